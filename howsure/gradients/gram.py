"""Squared norms from two Gram matrices, without the gradient itself, and with a guard against cancellation."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_BAND = 48  # rows of a Gram matrix made at a time: both matrices are symmetric, so nearly half of them is left out


def gram_is_cheaper(length: int, i: int, o: int) -> bool:
    """Whether half of ``L^2 (I + O)`` is less work than ``L I O``, each with the reading of its result.

    A multiplication of the narrow bands costs 1.45 times one of the whole product.
    """
    rows = length + min(length, _BAND)
    return 1.45 * rows * length * (i + o + 12) < 2 * i * o * (length + 4)


def sequence_gram_sq_norms(a: Tensor, d: Tensor, doubts: list[Tensor] | None = None) -> Tensor:
    """``sum_{l,m} (a_l . a_m)(d_l . d_m)`` for ``a [n, I, L]`` and ``d [n, O, L]``: ``[n]``."""
    length = a.shape[2]
    total = trace = a.new_zeros(len(a))
    for start in range(0, length, _BAND):
        stop = min(start + _BAND, length)
        both = a[:, :, start:stop].mT @ a[:, :, start:]
        both *= d[:, :, start:stop].mT @ d[:, :, start:]
        square = both[:, :, : stop - start]
        total = total + 2 * both.sum((1, 2)) - square.sum((1, 2))
        trace = trace + torch.diagonal(square, dim1=1, dim2=2).sum(1)
    return guarded(total, trace, lambda at: d[at] @ a[at].mT, doubts)


def gram_sq_norms(
    a: Tensor, d: Tensor, n: int, explicit: Callable[[Tensor], Tensor], doubts: list[Tensor] | None
) -> Tensor:
    """``sum(a * d)`` over two Gram matrices, and over the groups of each sample: ``[n * groups, L, L] -> [n]``."""
    trace = (torch.diagonal(a, dim1=1, dim2=2) * torch.diagonal(d, dim1=1, dim2=2)).reshape(n, -1).sum(1)
    return guarded(a.mul_(d).reshape(n, -1).sum(1), trace, explicit, doubts)


def guarded(total: Tensor, trace: Tensor, explicit: Callable[[Tensor], Tensor], doubts: list[Tensor] | None) -> Tensor:
    """``total``, but from the gradients ``explicit(samples)`` themselves where its terms cancel.

    The products of two Gram matrices may have either sign. The rounding error of their sum was at most 20 machine
    epsilons times the trace on every layer measured, so it only matters where the sum is far below the trace. With a
    list of ``doubts`` it is only noted there whether any do.
    """
    doubtful = total < (2e-2 if total.dtype == torch.float32 else 1e-4) * trace
    if doubts is not None:
        doubts.append(doubtful.any())
    elif doubtful.any():
        at = doubtful.nonzero()[:, 0]
        total[at] = explicit(at).flatten(1).square().sum(1)
    return total
