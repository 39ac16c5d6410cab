"""Sums over what belongs to one sample."""

from __future__ import annotations

import torch
from torch import Tensor


def sq_norm(t: Tensor) -> Tensor:
    """Squared norm over all dimensions but the first: ``[n, …] -> [n]``.

    Row by row first: in single precision the error of one sum grows with its length.
    """
    if t.dim() > 2:
        t = torch.linalg.vector_norm(t, dim=tuple(range(2, t.dim())))
    return torch.linalg.vector_norm(t if t.dim() > 1 else t[:, None], dim=1).square()


def added(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.stack(parts).sum(0)


def per_sample(t: Tensor, n: int) -> Tensor:
    """``[n * inner, …] -> [n, …]`` by summing the rows of each sample."""
    return t if t.shape[0] == n else t.unflatten(0, (n, -1)).sum(1)
