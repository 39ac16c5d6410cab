"""What the engine returns."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class GradResult(NamedTuple):
    """What ``grad_sq_norms`` returns, for K losses, N samples, P parameters and C classes."""

    norms: Tensor
    """``[K, N, P]``: squared L2 norms, in squared units of loss per unit of parameter."""
    names: tuple[str, ...]
    """The P parameter names, in the order of ``model.named_parameters()``."""
    logits: Tensor
    """``[N, C]``: the network's output."""
    small: Tensor | None
    """``[K, N, Q]``: per-sample gradients of one-dimensional parameters side by side, or None."""
    small_names: tuple[str, ...]
    """Their names, in order."""
    small_sizes: tuple[int, ...]
    """How many of the Q columns each takes."""
