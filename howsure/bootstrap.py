"""The bootstrap, for all resamples at once.

Images are drawn with replacement. Metrics work on how often each image was drawn, counts `[images, resamples]`: sorted
by score, their cumulative sums give every metric of every resample at once. Equal sizes and seeds give equal draws, so
the intervals of two methods on the same images are paired.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import pairwise
from math import isqrt, prod
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

_ROUNDING = 1e-6  # tables of resamples are in single precision
_WORKING_SET = 2**19  # numbers in a table, so that it fits in a processor's cache: several times faster

Floats = NDArray[Any]
Ints = NDArray[np.intp]


class Interval(NamedTuple):
    """A value and its 95 % percentile bootstrap interval; NaN where undefined.

    The ends are also NaN if all resamples give the same value, as for two sets of scores that do not overlap: an
    interval of no width would be misleading.
    """

    value: float
    low: float
    high: float


class _Memory(threading.local):
    """Memory for tables, reused for every part of the resamples: allocating it costs more than the arithmetic."""

    def __init__(self) -> None:
        self.pool, self.used = np.empty(0, np.uint8), 0

    def reset(self) -> None:
        """Release all tables, and grow to what was asked for since the last reset."""
        if self.used > len(self.pool):
            self.pool = np.empty(self.used, np.uint8)
        self.used = 0

    def table(self, shape: tuple[int, ...], dtype: Any) -> Floats:
        """An uninitialised array, valid until `reset`."""
        size = prod(shape) * np.dtype(dtype).itemsize
        start, self.used = self.used, self.used + -(-size // 64) * 64
        if self.used > len(self.pool):
            return np.empty(shape, dtype)
        return self.pool[start : start + size].view(dtype).reshape(shape)


memory = _Memory()


@lru_cache(maxsize=32)
def counts_of(n: int, resamples: int, width: int, seed: int, stream: int) -> tuple[NDArray[np.uint8], ...]:
    """How often each of n images is drawn in each resample, in parts `[n, width]`; the draws do not depend on width."""
    random = np.random.default_rng([seed, stream])
    parts = []
    for start in range(0, resamples, width):
        draws = [np.bincount(random.integers(n, size=n), minlength=n) for _ in range(min(width, resamples - start))]
        parts.append(np.stack(draws, axis=1, dtype=np.uint8, casting="unsafe"))
    return tuple(parts)


def width_for(rows: int) -> int:
    """How many resamples to work on at once, so that a table with this many rows stays small."""
    return max(64, _WORKING_SET // rows)


def once(n: int) -> NDArray[np.uint8]:
    """The counts `[n, 1]` of the sample itself: every image once."""
    return np.ones((n, 1), np.uint8)


def intervals(
    names: tuple[str, ...], value: Floats, resampled: Callable[[], Iterator[Floats]], resamples: int
) -> dict[str, Interval]:
    """Intervals by name, from values `[k, 1]` and the parts `[k, width]` of their resamples; NaN without resamples."""
    low = high = np.full(len(names), np.nan)
    if resamples:
        low, high = _percentiles(np.concatenate(list(resampled()), axis=1))
    rows = zip(names, value[:, 0].tolist(), low.tolist(), high.tolist(), strict=True)
    return {name: Interval(v, *_ends(v, a, b)) for name, v, a, b in rows}


def _ends(value: float, low: float, high: float) -> tuple[float, float]:
    """The ends, where those that differ from the value only by rounding become the value; NaN if both do."""
    low, high = (value if abs(end - value) < _ROUNDING else end for end in (low, high))
    return (low, high) if low < high else (np.nan, np.nan)


def _percentiles(samples: Floats) -> Floats:
    """The 2.5th and 97.5th percentiles `[2, k]` of `samples` `[k, B]`, ignoring NaN."""
    defined = ~np.isnan(samples[0])
    if defined.all():
        return np.quantile(samples, [0.025, 0.975], axis=1)
    limits = np.full((2, len(samples)), np.nan)
    for k, row in enumerate(samples):
        kept = row[~np.isnan(row)]
        if len(kept):
            limits[:, k] = np.quantile(kept, [0.025, 0.975])
    return limits


def cumulative(rows: Floats) -> Floats:
    """Sums `[n + 1, B]` of the rows before each; first within blocks, then across them, which takes few calls."""
    n, size = len(rows), isqrt(len(rows)) + 1
    total = memory.table((1 + size * -(-n // size), rows.shape[1]), rows.dtype)
    total[0], total[1 : n + 1], total[n + 1 :] = 0, rows, 0
    blocks = total[1:].reshape(-1, size, rows.shape[1])
    for row in range(1, size):
        blocks[:, row] += blocks[:, row - 1]
    for before, block in pairwise(blocks):
        block += before[-1]
    return total[: n + 1]


def rows_at(table: Floats, index: Ints, copy: bool = False) -> Floats:
    """`table[index]` for an ascending index; if the index is consecutive, a view rather than a copy."""
    if not copy and index[-1] - index[0] == len(index) - 1 and (np.diff(index) == 1).all():
        return table[index[0] : index[-1] + 1]
    return np.take(table, index, 0, memory.table((len(index), table.shape[1]), table.dtype), "clip")


def in_order(counts: NDArray[np.uint8], order: Ints, dtype: type) -> Floats:
    """`counts[order]` as floating-point numbers."""
    weights = memory.table(counts.shape, dtype)
    np.copyto(weights, rows_at(counts, order, copy=True))
    return weights


def products(weights: Floats, values: Floats) -> Floats:
    """Sums `[B]` of the products in each column; in double precision, since errors over many rows would reach 1e-4."""
    return np.einsum("ib,ib->b", weights, values, dtype=np.float64)


def added(table: Floats, other: Floats) -> Floats:
    return np.add(table, other, out=memory.table(table.shape, table.dtype))
