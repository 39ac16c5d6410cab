"""Squared norms from two Gram matrices, without the gradient itself, and with a guard against cancellation."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def gram_is_cheaper(length: int, i: int, o: int) -> bool:
    """Whether ``L^2 (I + O)`` is less work than ``L I O`` plus reading its result."""
    return length * length * (i + o + 4) < i * o * (length + 4)


def gram_sq_norms(a: Tensor, d: Tensor, explicit: Callable[[Tensor], Tensor]) -> Tensor:
    """``sum(a * d)`` over the last two dimensions: ``[n, L, L] -> [n]``.

    The products may have either sign. Their rounding errors are about the machine epsilon times the trace of
    ``a * d``; where the sum is far below the trace (gradients of the positions that cancel), ``explicit(samples)``
    gives the gradients of those samples instead.
    """
    total = (a * d).flatten(1).sum(1)
    trace = (torch.diagonal(a, dim1=1, dim2=2) * torch.diagonal(d, dim1=1, dim2=2)).sum(1)
    doubtful = total < 1e-2 * trace
    if doubtful.any():
        at = doubtful.nonzero()[:, 0]
        total[at] = explicit(at).flatten(1).square().sum(1)
    return total
