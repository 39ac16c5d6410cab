"""Nearest neighbours by products of chunks: exact, and faster than a tree in hundreds of dimensions."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from howsure import UserError

from ._rows import by_rows


def unit(features: Tensor) -> Tensor:
    """`h / |h|`, float32; zeros stay zeros."""
    return F.normalize(features.double(), dim=1).float()


def kth_distance(queries: Tensor, bank: Tensor, k: int, half_sq: Tensor | None = None) -> Tensor:
    """Euclidean distance `[N]`, float64, of rows to their k-th nearest row of the bank.

    `half_sq` is half the squared norm of each row of the bank, which unit rows do without. `k` is capped at the bank's
    size. The neighbour is found by products in the precision of the rows; its distance is then taken in float64 from
    the difference, so that near duplicates keep their digits.
    """
    if k < 1:
        raise UserError(f"k = {k} neighbours: k must be at least 1")
    k = min(k, len(bank))

    def distance(x: Tensor) -> Tensor:
        closeness = x @ bank.T
        if half_sq is not None:
            closeness -= half_sq
        nearest = closeness.topk(k, dim=1).indices[:, -1]
        return (x.double() - bank[nearest].double()).norm(dim=1)

    return by_rows(distance, queries, size=512)


def share_of_rows(n: int, share: float) -> Tensor:
    """Indices of `round(share * n)` (at least one) evenly spaced rows."""
    if not 0 < share <= 1:
        raise UserError(f"bank = {share} is the share of images kept: it must lie above 0 and not above 1")
    size = max(1, round(share * n))
    return torch.linspace(0, n - 1, size, dtype=torch.float64).round().long()
