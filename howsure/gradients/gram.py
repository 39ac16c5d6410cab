"""Squared norms from two Gram matrices, without making the gradient, and guarded against cancellation."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from .sums import added

_BAND = 64
"""Columns of a Gram matrix made at a time. It is symmetric, so the part above a band's own square is left out."""


def gram_is_cheaper(length: int, i: int, o: int) -> bool:
    """Whether half of ``L^2 (I + O)`` is less work than ``L I O``, each including the reading of its result.

    A multiplication of the narrow bands costs 1.13 times one of the whole product.
    """
    rows = length + min(length, _BAND)
    return 1.13 * rows * length * (i + o + 12) < 2 * i * o * (length + 4)


def sequence_gram_sq_norms(a: Tensor, d: Tensor, doubts: list[Tensor] | None = None) -> Tensor:
    """``sum_{l,m} (a_l . a_m)(d_l . d_m)`` for ``a [n, I, L]`` and ``d [n, O, L]``: ``[n]``."""
    return gram_sq_norms(partial(_band, a), d, len(a), lambda at: d[at] @ a[at].mT, doubts)


def gram_sq_norms(
    other: Callable[[int, int], Tensor],
    d: Tensor,
    n: int,
    explicit: Callable[[Tensor], Tensor],
    doubts: list[Tensor] | None,
) -> Tensor:
    """``sum(A * D)`` over two symmetric matrices and each sample's groups, ``D`` the Gram matrix of ``d``: ``[n]``.

    Parameters
    ----------
    other
        ``other(start, stop)`` gives the columns of ``A`` from ``start`` to ``stop``, with the rows from ``start`` on.
    d
        ``[n * groups, O, L]``.
    explicit
        The gradients themselves of chosen samples, ``[len(samples), …]``.
    """
    length, sums, traces = d.shape[2], [], []
    for start in range(0, length, _BAND):
        stop = min(start + _BAND, length)
        both = _band(d, start, stop).mul_(other(start, stop))
        traces.append(torch.diagonal(both[:, : stop - start], dim1=1, dim2=2).sum(1))
        sums.append(both.sum((1, 2)))
        if stop < length:
            sums.append(both[:, stop - start :].sum((1, 2)))
    return guarded(_by_sample(sums, n), _by_sample(traces, n), explicit, doubts)


def _by_sample(parts: list[Tensor], n: int) -> Tensor:
    """The sum of parts ``[n * groups]`` by sample."""
    total = added(parts)
    return total if len(total) == n else total.view(n, -1).sum(1)


def _band(t: Tensor, start: int, stop: int) -> Tensor:
    """The columns of the Gram matrix of ``t [n, I, L]`` from ``start`` to ``stop``, with the rows from ``start`` on.

    Columns, not rows: this way round the products take 0.8 of the time on the CPUs measured.
    """
    return t[:, :, start:].mT @ t[:, :, start:stop]


def guarded(total: Tensor, trace: Tensor, explicit: Callable[[Tensor], Tensor], doubts: list[Tensor] | None) -> Tensor:
    """``total``, taken from the gradients ``explicit(samples)`` where its terms cancel; ``doubts`` only notes whether.

    The products of two Gram matrices may have either sign. The rounding error of their sum was at most 20 machine
    epsilons times the trace on every layer measured, so it only matters where the sum is far below the trace.
    """
    doubtful = total < (2e-2 if total.dtype == torch.float32 else 1e-4) * trace
    if doubts is not None:
        doubts.append(doubtful.any())
    elif doubtful.any():
        at = doubtful.nonzero()[:, 0]
        total[at] = explicit(at).flatten(1).square().sum(1)
    return total
