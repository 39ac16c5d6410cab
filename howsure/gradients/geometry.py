"""Where a convolution's kernel meets its input."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import product
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

Sizes = tuple[int, ...]

_TWICE = 2  # how many times its size a kernel may be written out to, as a matrix of positions


@dataclass(frozen=True)
class Geometry:
    """One number or pair per dimension. The kernel is reduced to the part that meets the input at some position.

    Attributes:
        sizes: the input's.
        kernel: the size of that part.
        stride, dilation: as in the call.
        pads: entries before and after the input.
        maps: the output's size.
        touched: that part as an index into the kernel; None for all of it.
    """

    sizes: Sizes
    kernel: Sizes
    stride: Sizes
    dilation: Sizes
    pads: tuple[tuple[int, int], ...]
    maps: Sizes
    touched: tuple[Any, ...] | None = None

    @classmethod
    def of(cls, sizes: Sizes, kernel: Sizes, call: dict[str, Any]) -> Geometry:
        """For an input and a kernel of these sizes, and the arguments of the call."""
        dims, padding = len(kernel), call.get("padding", 0)
        stride, dilation = _each(call.get("stride", 1), dims), _each(call.get("dilation", 1), dims)
        return _geometry(sizes, kernel, stride, dilation, padding if isinstance(padding, str) else _each(padding, dims))

    @cached_property
    def apart(self) -> bool:
        """Whether the kernel's positions do not overlap, and cover the input but for a stride's gaps."""
        if any(p for pair in self.pads for p in pair):
            return False
        return all(k == 1 for k in self.kernel) or (self.kernel == self.stride and all(e == 1 for e in self.dilation))

    @cached_property
    def meets_all(self) -> bool:
        """Whether the kernel meets all of the input at every position, of which there are few, so that this is a linear
        layer: a kernel as large as its input, or a padded 3×3 one on a map of 2×2."""
        each = zip(self.sizes, self.kernel, self.dilation, self.stride, self.maps, self.pads, strict=True)
        for size, k, e, s, m, (before, _) in each:
            if (e > 1 and k > 1) or before - s * (m - 1) < 0 or before + size > k:
                return False
        return prod(self.maps) * prod(self.sizes) <= _TWICE * prod(self.kernel)

    def at_each_position(self, weight: Tensor) -> Tensor:
        """The part of the kernel that meets the input at each position, if it ``meets_all``: ``[L * O, sizes * I]``."""
        dims = list(zip(self.sizes, self.stride, self.maps, self.pads, strict=True))
        meets = [[slice(at - s * p, at - s * p + size) for p in range(m)] for size, s, m, (at, _) in dims]
        parts: list[tuple[Any, ...]] = [(slice(None), *part) for part in product(*meets)]
        last = weight.movedim(1, -1).contiguous()  # one pass of strided reads instead of one for each position
        return torch.stack([last[part] for part in parts]).flatten(0, 1).flatten(1)

    def cut(self, reach: list[int]) -> Geometry:
        """The same without the parts of the kernel that only ever meet padding: all but its middle, on a 1×1 map."""
        dims = list(zip(self.sizes, self.kernel, self.dilation, self.stride, self.maps, self.pads, reach, strict=True))
        if all(s * (m - 1) >= before and r - before < size for size, _, _, s, m, (before, _), r in dims):
            return self
        cuts, pads = [], []
        for size, k, e, s, m, (before, _), _ in dims:
            meets = [i for i in range(k) if any(0 <= s * p + e * i - before < size for p in range(m))]
            first, last = (meets[0], meets[-1]) if meets else (0, k - 1)
            pad = before - e * first
            if pad < 0 or (size + 2 * pad - e * (last - first) - 1) // s + 1 != m:
                return self
            cuts.append(slice(first, last + 1))
            pads.append((pad, pad))
        kernel = tuple(cut.stop - cut.start for cut in cuts)
        return Geometry(self.sizes, kernel, self.stride, self.dilation, tuple(pads), self.maps, (..., *cuts))

    def touching(self, weight: Tensor) -> Tensor:
        """The part of the kernel that meets the input."""
        return weight if self.touched is None else weight[self.touched]

    def whole(self, grads: Tensor, weight: Tensor) -> Tensor:
        """Gradients of the whole kernel ``[n, *weight.shape]`` from those of its part."""
        if self.touched is None:
            return grads
        whole = grads.new_zeros(*grads.shape[:2], *weight.shape[1:])
        whole[self.touched] = grads
        return whole

    def padded(self, a: Tensor) -> Tensor:
        if not any(p for pair in self.pads for p in pair):
            return a
        return F.pad(a, [p for pair in reversed(self.pads) for p in pair])

    def tiles(self, a: Tensor) -> Tensor:
        """The input, if positions are ``apart``, as ``[n, I * offsets, L]``; a view if 1×1 at stride 1."""
        n, size = a.shape[:2]
        if all(k == 1 for k in self.kernel):
            steps = [slice(None), slice(None), *(slice(None, None, s) for s in self.stride)]
            return a[tuple(steps)].flatten(2)
        dims, pairs = len(self.kernel), list(zip(self.maps, self.kernel, strict=True))
        inside = [slice(None), slice(None), *(slice(0, m * k) for m, k in pairs)]
        a = a[tuple(inside)].reshape(n, size, *(v for pair in pairs for v in pair))
        order = [0, 1, *range(3, 3 + 2 * dims, 2), *range(2, 2 + 2 * dims, 2)]
        return a.permute(order).flatten(2 + dims).flatten(1, 1 + dims)

    def unfolded(self, a: Tensor) -> Tensor:
        """Each position's whole window, ``[n, I * offsets, L]``."""
        n, size, a = *a.shape[:2], self.padded(a).contiguous()
        images, channels, *along = a.stride()
        within = [step * e for step, e in zip(along, self.dilation, strict=True)]
        between = [step * s for step, s in zip(along, self.stride, strict=True)]
        windows = a.as_strided((n, size, *self.kernel, *self.maps), (images, channels, *within, *between))
        return windows.reshape(n, -1, prod(self.maps))

    def lines(self, a: Tensor) -> Tensor:
        """The padded input with each window's entries along the last dimension side by side, ``[n, …, L, k * I]``: a
        copy k times as large."""
        n, size = a.shape[:2]
        a = self.padded(a)
        images, channels, *along, step = a.stride()
        shape = (n, *a.shape[2:-1], self.maps[-1], self.kernel[-1], size)
        strides = (images, *along, step * self.stride[-1], step * self.dilation[-1], channels)
        return a.as_strided(shape, strides, a.storage_offset()).contiguous().flatten(-2)

    def positions(self, offset: Sizes) -> list[slice]:
        """Where the padded input meets the kernel at ``offset``, which may name the first dimensions only."""
        each = zip(offset, self.dilation, self.maps, self.stride, strict=False)
        return [slice(k * e, k * e + (m - 1) * s + 1, s) for k, e, m, s in each]


@lru_cache(maxsize=4096)
def _geometry(sizes: Sizes, kernel: Sizes, stride: Sizes, dilation: Sizes, padding: str | Sizes) -> Geometry:
    reach = [e * (k - 1) for e, k in zip(dilation, kernel, strict=True)]
    pads = _pads(padding, reach)
    maps = tuple(
        (size + before + after - r - 1) // s + 1
        for size, (before, after), r, s in zip(sizes, pads, reach, stride, strict=True)
    )
    return Geometry(sizes, kernel, stride, dilation, pads, maps).cut(reach)


def _pads(padding: str | Sizes, reach: list[int]) -> tuple[tuple[int, int], ...]:
    if padding == "same":
        return tuple((r // 2, r - r // 2) for r in reach)
    if padding == "valid":
        return ((0, 0),) * len(reach)
    return tuple((int(p), int(p)) for p in padding)


def _each(value: Any, dims: int) -> Sizes:
    return (value,) * dims if isinstance(value, int) else tuple(value) * (dims if len(value) == 1 else 1)
