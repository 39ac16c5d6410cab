"""Scoring rows in chunks, so that memory stays bounded."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def by_rows(score: Callable[..., Tensor], *arrays: Tensor, size: int = 2048) -> Tensor:
    """`score(*arrays)` in chunks of `size` rows, `[N]`."""
    starts = range(0, max(1, len(arrays[0])), size)
    return torch.cat([score(*(a[i : i + size] for a in arrays)) for i in starts])
