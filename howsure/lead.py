"""The lead of one score over another on the same images."""

from __future__ import annotations

from typing import Any

import numpy as np

from .bootstrap import Interval
from .metrics import checked, shares_below


def auroc_lead(first: tuple[Any, Any], second: tuple[Any, Any]) -> Interval:
    """How much higher the AUROC of one score is than that of another on the same images, in [-1, 1].

    Args:
        first: `(id_scores [n], shift_scores [m])`, higher means more uncertain.
        second: the other score of the same images in the same order.

    Returns:
        The difference with its 95 % interval after DeLong et al., 1988 (doi:10.2307/2531595): an AUROC is a mean of
        contributions of single images, so the variance of the difference is estimated from their differences. The
        interval covers the randomness of the test images, not that of fitting. Its ends are NaN if the variance is
        zero, as for two scores that make no mistake, which other images might distinguish.

    Raises:
        ValueError: sizes differ, a set has fewer than two images, or a score is not finite.
    """
    known, other_known = (checked(scores[0], "ID scores") for scores in (first, second))
    shifted, other_shifted = (checked(scores[1], "shifted scores") for scores in (first, second))
    if known.shape != other_known.shape or shifted.shape != other_shifted.shape:
        raise ValueError("both scores must be of the same images: their sizes differ")
    if min(len(known), len(shifted)) < 2:
        raise ValueError("a lead needs at least two ID images and two shifted ones")
    apart = (
        shares_below(other_shifted, other_known) - shares_below(shifted, known),
        shares_below(known, shifted) - shares_below(other_known, other_shifted),
    )
    lead = float(apart[1].mean())
    half = 1.959964 * float(np.sqrt(sum(d.var(ddof=1) / len(d) for d in apart))) or float("nan")
    return Interval(lead, lead - half, lead + half)
