"""How well uncertainty scores separate sets of images, with bootstrap intervals.

Higher scores always mean more uncertain. In-distribution (ID) images are the positive class of FPR@95TPR and AUPR-in,
shifted images that of AUROC and AUPR-out. All metrics depend only on the order of the scores, and none on the order in
which images are listed, even if scores tie.

- **AUROC**: the probability that a shifted image scores above an ID image; ties count one half.
- **FPR@95TPR**: keep the smallest set of lowest scores that contains at least 95 % of the ID images, together with
  everything that ties with its highest score; the metric is the share of shifted images kept. OpenOOD 1.5 and
  pytorch-ood take shifted images as positives instead, and report the share of ID images flagged when 95 % of the
  shifted ones are: `detection(-shift_scores, -id_scores)["fpr95"]`, a different number.
- **AUPR-out**, **AUPR-in**: average precision as scikit-learn defines it, a step function without interpolation;
  OpenOOD and pytorch-ood connect the points by straight lines.
- **Detection accuracy**: the best balanced accuracy over all thresholds, including "accept all" (Lee et al., 2018,
  arXiv:1807.03888).
- **AURC**: the risk (error rate) of the k least uncertain images, averaged over k = 1 … n (Geifman & El-Yaniv, 2017,
  arXiv:1705.08500). Among equal scores, the risk is its expected value over all their orders.
- **E-AURC**: AURC minus that of the best possible order, with all correct images first (Geifman et al., 2019,
  arXiv:1805.08206); for the latter the exact sum is used rather than the paper's integral.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .bootstrap import (
    Floats,
    Interval,
    Ints,
    added,
    counts_of,
    cumulative,
    in_order,
    intervals,
    memory,
    once,
    products,
    rows_at,
    width_for,
)

DETECTION = ("auroc", "fpr95", "aupr_in", "aupr_out", "detection_accuracy")
MISCLASSIFICATION = ("auroc", "fpr95", "aupr_success", "aupr_error", "detection_accuracy", "aurc", "eaurc")


def auroc(id_scores: Any, shift_scores: Any) -> float:
    """The AUROC alone, in [0, 1], the same value as from `detection`. Raises the same errors."""
    return float(shares_below(checked(id_scores, "ID scores"), checked(shift_scores, "shifted scores")).mean())


def shares_below(some: Floats, others: Floats) -> Floats:
    """For each of the `others`, the share of `some` below it; ties count one half."""
    ordered = np.sort(some)
    return (ordered.searchsorted(others, "left") + ordered.searchsorted(others, "right")) / (2 * len(ordered))


def detection(id_scores: Any, shift_scores: Any, *, resamples: int = 1000, seed: int = 0) -> dict[str, Interval]:
    """How well scores separate shifted images from ID images.

    Args:
        id_scores: `[n]`, higher means more uncertain.
        shift_scores: `[m]`.
        resamples: bootstrap resamples, ID and shifted images drawn separately; 0 leaves the intervals NaN.
        seed: of the resamples.

    Returns:
        An `Interval` for each of `DETECTION`, all in [0, 1]; its ends are NaN if a set has only one image.

    Raises:
        ValueError: a set is empty, not one-dimensional, or contains a score that is not finite.
    """
    pair = _Pair.of(checked(id_scores, "ID scores"), checked(shift_scores, "shifted scores"))
    n, m = len(pair.id_order), len(pair.shift_order)

    def resampled() -> Iterator[Floats]:
        width = width_for(n + m)
        parts = zip(counts_of(n, resamples, width, seed, 0), counts_of(m, resamples, width, seed, 1), strict=True)
        return (_detection(pair, id_counts, shift_counts, np.float32) for id_counts, shift_counts in parts)

    value = _detection(pair, once(n), once(m), np.float64)
    return intervals(DETECTION, value, resampled, resamples if min(n, m) > 1 else 0)


def misclassification(scores: Any, errors: Any, *, resamples: int = 1000, seed: int = 0) -> dict[str, Interval]:
    """How well scores separate wrong predictions from right ones.

    Args:
        scores: `[n]`, higher means more uncertain.
        errors: `[n]`, true if the prediction is wrong.
        resamples: bootstrap resamples of all images; those without errors, or with nothing else, count only for AURC
            and E-AURC. 0 leaves the intervals NaN.
        seed: of the resamples.

    Returns:
        An `Interval` for each of `MISCLASSIFICATION`, all in [0, 1]. All but the last two are those of `DETECTION` with
        right predictions in place of ID and errors in place of shifted images (`aupr_success` has right predictions as
        positives, `aupr_error` errors). They are NaN if `why_undefined(errors)` gives a reason, and their ends are NaN
        if there is only one error or only one right prediction.

    Raises:
        ValueError: there are no scores, one is not finite, or the sizes differ.
    """
    scores = checked(scores, "scores")
    wrong = _errors(errors, len(scores))
    right, n = ~wrong, len(scores)
    risk = _Risk.of(scores, wrong)
    pair = _Pair.of(scores[right], scores[wrong]) if why_undefined(wrong) is None else None
    several = pair if min(right.sum(), wrong.sum()) > 1 else None

    def at(pair: _Pair | None, counts: NDArray[np.uint8], dtype: type) -> Floats:
        curve = _risk(risk, counts)
        if pair is None:
            return np.vstack([np.full((len(DETECTION), counts.shape[1]), np.nan), curve])
        return np.vstack([_detection(pair, counts[right], counts[wrong], dtype), curve])

    def resampled() -> Iterator[Floats]:
        return (at(several, counts, np.float32) for counts in counts_of(n, resamples, width_for(2 * n), seed, 2))

    return intervals(MISCLASSIFICATION, at(pair, once(n), np.float64), resampled, resamples)


def why_undefined(errors: Any) -> str | None:
    """Why errors `[n]` cannot be separated from right predictions, or None if they can."""
    wrong = np.asarray(errors, dtype=bool)
    if wrong.all():
        return f"all {wrong.size} predictions are wrong: there is no right one to compare with"
    return None if wrong.any() else f"all {wrong.size} predictions are right: there is no error to find"


@dataclass(frozen=True)
class _Pair:
    """The order of the scores in two sets, and for each sorted score how many of either set lie below it."""

    id_order: Ints
    shift_order: Ints
    id_up_to: Ints  # ID scores <= each ID score
    shift_up_to: Ints  # shifted scores <= each ID score
    shift_below: Ints  # shifted scores < each ID score
    id_under: Ints  # ID scores < each shifted score
    shift_under: Ints  # shifted scores < each shifted score

    @classmethod
    def of(cls, id_scores: Floats, shift_scores: Floats) -> _Pair:
        id_order, shift_order = id_scores.argsort(), shift_scores.argsort()
        low, high = id_scores[id_order], shift_scores[shift_order]
        return cls(
            id_order,
            shift_order,
            low.searchsorted(low, "right"),
            high.searchsorted(low, "right"),
            high.searchsorted(low, "left"),
            low.searchsorted(high, "left"),
            high.searchsorted(high, "left"),
        )


def _detection(pair: _Pair, id_counts: NDArray[np.uint8], shift_counts: NDArray[np.uint8], dtype: type) -> Floats:
    """The `DETECTION` metrics `[5, B]`, from how often images were drawn, `[n, B]` and `[m, B]`; NaN if none was."""
    memory.reset()
    w_id, w_shift = in_order(id_counts, pair.id_order, dtype), in_order(shift_counts, pair.shift_order, dtype)
    sum_id, sum_shift = cumulative(w_id), cumulative(w_shift)
    n, m = sum_id[-1], sum_shift[-1]
    kept_id, kept_shift = rows_at(sum_id, pair.id_up_to), rows_at(sum_shift, pair.shift_up_to)
    with np.errstate(divide="ignore", invalid="ignore"):
        values = np.stack(
            [
                _auroc(pair, w_id, kept_shift, sum_shift, n, m),
                _fpr95(pair, sum_id, sum_shift),
                _precision(w_id, kept_id, added(kept_id, kept_shift)) / n,
                _aupr_out(pair, w_shift, sum_id, sum_shift),
                _accuracy(kept_id, kept_shift, n, m),
            ]
        )
    values[:, (n == 0) | (m == 0)] = np.nan
    return values


def _auroc(pair: _Pair, w_id: Floats, kept_shift: Floats, sum_shift: Floats, n: Floats, m: Floats) -> Floats:
    not_above = products(w_id, kept_shift)
    (tied,) = np.nonzero(pair.shift_up_to != pair.shift_below)
    if len(tied):
        equal = rows_at(kept_shift, tied, copy=True)
        equal -= rows_at(sum_shift, pair.shift_below[tied])
        not_above -= products(rows_at(w_id, tied), equal) / 2
    return 1 - not_above / n / m


def _fpr95(pair: _Pair, sum_id: Floats, sum_shift: Floats) -> Floats:
    """Bisects every column of `sum_id` for the lowest score that keeps 95 % of the ID images."""
    n, column = sum_id[-1], np.arange(sum_id.shape[1])
    need = np.ceil(n * 19 / 20)
    low, high = np.zeros(len(column), int), np.full(len(column), len(sum_id) - 1)
    for _ in range(len(sum_id).bit_length()):
        middle = (low + high) // 2
        enough = sum_id[middle, column] >= need
        high, low = np.where(enough, middle, high), np.where(enough, low, np.minimum(middle + 1, high))
    return sum_shift[pair.shift_up_to[high - 1], column] / sum_shift[-1]


def _aupr_out(pair: _Pair, w_shift: Floats, sum_id: Floats, sum_shift: Floats) -> Floats:
    found = rows_at(sum_shift, pair.shift_under, copy=True)
    np.subtract(sum_shift[-1], found, out=found)
    flagged = added(found, sum_id[-1])
    flagged -= rows_at(sum_id, pair.id_under)
    return _precision(w_shift, found, flagged) / sum_shift[-1]


def _precision(weights: Floats, found: Floats, taken: Floats) -> Floats:
    """The sum `[B]` over positives of the precision at each; overwrites `taken`."""
    np.maximum(taken, 1, out=taken)
    return products(weights, np.divide(found, taken, out=taken))


def _accuracy(kept_id: Floats, kept_shift: Floats, n: Floats, m: Floats) -> Floats:
    """The best threshold is an ID score or below all: between two ID scores the share of ID images kept is constant."""
    gap = memory.table(kept_shift.shape, kept_shift.dtype)
    np.multiply(kept_shift, -n / m, out=gap)
    gap += kept_id
    return (1 + np.maximum(gap.max(axis=0), 0) / n) / 2


@dataclass(frozen=True)
class _Risk:
    """The order of images by score, the bounds of groups of equal scores, and the places of right predictions in it."""

    order: Ints
    bounds: Ints
    right: Ints

    @classmethod
    def of(cls, scores: Floats, wrong: NDArray[np.bool_]) -> _Risk:
        order = scores.argsort(kind="stable")
        (starts,) = np.nonzero(np.diff(scores[order], prepend=-np.inf))
        return cls(order, np.append(starts, len(scores)), np.nonzero(~wrong[order])[0])


def _risk(risk: _Risk, counts: NDArray[np.uint8]) -> Floats:
    """AURC and E-AURC `[2, B]`, given how often images were drawn, `[n, B]`.

    With E errors among W images before a group of equal scores, and a share p of errors within it, the expected risk
    at its j-th image is (E + p j) / (W + j) = p + (E - p W) / (W + j), whose sums are harmonic numbers.
    """
    memory.reset()
    weights = in_order(counts, risk.order, np.float64)
    images = rows_at(cumulative(weights), risk.bounds)
    weights[risk.right] = 0
    errors = rows_at(cumulative(weights), risk.bounds)
    harmonic = _harmonic(len(risk.order))
    n, wrong = images[-1].astype(np.intp), errors[-1].astype(np.intp)
    right = n - wrong
    best = (wrong - right * (harmonic[n] - harmonic[right])) / n
    aurc = (wrong + np.einsum("ib,ib->b", _excess(images, errors), _steps(harmonic, images))) / n
    return np.stack([aurc, np.maximum(aurc - best, 0)])


def _excess(images: Floats, errors: Floats) -> Floats:
    """E - p W for each group."""
    size, share = (memory.table((len(images) - 1, images.shape[1]), images.dtype) for _ in range(2))
    np.maximum(np.subtract(images[1:], images[:-1], out=size), 1, out=size)
    np.divide(np.subtract(errors[1:], errors[:-1], out=share), size, out=share)
    return np.subtract(errors[:-1], np.multiply(share, images[:-1], out=share), out=share)


def _steps(harmonic: Floats, images: Floats) -> Floats:
    """The difference of the harmonic numbers at the end and the start of each group."""
    index, number = memory.table(images.shape, np.intp), memory.table(images.shape, harmonic.dtype)
    np.copyto(index, images, casting="unsafe")
    np.take(harmonic, index, out=number, mode="clip")
    return np.subtract(number[1:], number[:-1], out=index[1:].view(number.dtype))


@lru_cache(maxsize=8)
def _harmonic(n: int) -> Floats:
    """Harmonic numbers 0 … n."""
    return np.append(0.0, np.cumsum(1 / np.arange(1, n + 1)))


def checked(scores: Any, what: str) -> Floats:
    """Scores as float64 `[n]`. Raises ValueError if there are none, or if they are not one finite number per image."""
    array = np.asarray(scores, dtype=np.float64)
    if array.ndim != 1:
        raise ValueError(f"{what} must be one number per image, got shape {list(array.shape)}")
    if not array.size:
        raise ValueError(f"{what} are empty: there is nothing to compare")
    bad = int((~np.isfinite(array)).sum())
    if bad:
        first = int(np.argmin(np.isfinite(array)))
        raise ValueError(f"{bad} of {array.size} {what} are not finite (first: image {first}, {array[first]})")
    return array


def _errors(errors: Any, n: int) -> NDArray[np.bool_]:
    wrong = np.asarray(errors)
    if wrong.shape != (n,):
        raise ValueError(f"errors must have shape [{n}], one for each score, got {list(wrong.shape)}")
    return wrong.astype(bool)
