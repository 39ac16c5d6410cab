"""Exact nearest neighbours by matrix products, in chunks; in hundreds of dimensions this is faster than a tree."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ._rows import by_rows

CLOSE = 0.03
ALIKE = 1e-6  # half squared norms of unit rows differ by less in single precision


def unit(features: Tensor) -> Tensor:
    """`h / |h|`, float32; zeros stay zeros."""
    return F.normalize(features.double(), dim=1).float()


def kth_distance(queries: Tensor, bank: Tensor, k: int) -> Tensor:
    """Euclidean distance `[N]`, float64, of rows to their k-th nearest row in the bank; `k` is capped at its size.

    The neighbour is found by products in the precision of the rows, and its distance computed in float64. Products of
    unit rows in single precision are wrong by 1e-7, which matters for distances below `CLOSE`: there, the neighbour is
    searched again in float64.
    """
    k = min(k, len(bank))

    def distance(x: Tensor) -> Tensor:
        found = _kth(x, bank, k)
        close = found < CLOSE
        if bank.dtype != torch.float64 and close.any():
            found[close] = _kth(x[close].double(), bank.double(), k)
        return found

    return by_rows(distance, queries, size=512)


def _kth(x: Tensor, bank: Tensor, k: int) -> Tensor:
    half_sq, closeness = bank.square().sum(1) / 2, x @ bank.T
    if bank.dtype == torch.float64 or half_sq.amax() - half_sq.amin() > ALIKE:
        closeness -= half_sq
    nearest = closeness.topk(k, dim=1).indices[:, -1]
    return (x.double() - bank[nearest].double()).norm(dim=1)


def share_of_rows(n: int, share: float) -> Tensor:
    """Indices of `round(share * n)` (at least one) evenly spaced rows."""
    size = max(1, round(share * n))
    return torch.linspace(0, n - 1, size, dtype=torch.float64).round().long()
