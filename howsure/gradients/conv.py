"""Convolutions in one to three dimensions, by the cheapest of five exact rules.

With input a, output gradient d, output positions p and kernel offsets o, the gradient of a sample is
``G[o] = sum_p d_p a_{s p + o}^T``, one matrix [O, I] per offset and group.

- **Gram**: ``|G|^2 = sum_{p,q} (d_p . d_q) sum_o (a_{s p + o} . a_{s q + o})``. All inner sums are strided slices of
  one Gram matrix of the raw input, so nothing is unfolded. For small maps.
- **tiles**: where the kernel's positions do not overlap (1×1, or a stride as wide as the kernel) the layer is a linear
  layer on a sequence, and takes its rules.
- **unfolded**: each position's whole window side by side, one product. For the few channels of an image.
- **windows**: the positions along a row of the kernel side by side, one batched matrix product per row.
- **grouped**: all samples side by side as groups of one convolution, whose weight gradient is then each sample's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .gram import gram_is_cheaper, gram_sq_norms
from .layout import Layout
from .linear import linear_sq_norms
from .norm import channel_sums
from .rule import Rule, merged, per_sample, sq_norm

_SHIFT = 12  # one entry of a shifted Gram matrix read and added, in multiplications of a matrix product
_READ = 4  # one entry of a gradient written and squared
_FEW = 32  # entries of a whole window up to which it is unfolded
_NARROW = 64  # entries of a window's row below which copying rows loses to grouped convolution


class Conv(Rule):
    name = "convolution"
    needs = ("input",)

    @classmethod
    def accepts(cls, arguments: dict[Any, Any], weights: set[Any]) -> bool:
        return "input" not in weights and arguments["input"].dim() == arguments["weight"].dim()

    def forward(self) -> Any:
        a = self.arguments
        dims = a["weight"].dim() - 2
        self.kernel = tuple(a["weight"].shape[2:])
        self.stride, self.dilation = _each(a.get("stride", 1), dims), _each(a.get("dilation", 1), dims)
        self.groups = a.get("groups", 1)
        padding = a.get("padding", 0)
        reach = [d * (k - 1) for d, k in zip(self.dilation, self.kernel, strict=True)]
        if padding == "same":
            self.pads = tuple((r // 2, r - r // 2) for r in reach)
        elif padding == "valid":
            self.pads = ((0, 0),) * dims
        else:
            self.pads = tuple((p, p) for p in _each(padding, dims))
        self.maps = tuple(
            (size + before + after - r - 1) // s + 1
            for size, (before, after), r, s in zip(a["input"].shape[2:], self.pads, reach, self.stride, strict=True)
        )
        weight = a["weight"]
        self._cut_kernel(tuple(a["input"].shape[2:]), reach)
        a["weight"] = self.touching(weight)
        if self.touched is not None:
            a["padding"] = tuple(before for before, _ in self.pads)
        if dims == 2 and a["input"].is_contiguous(memory_format=torch.channels_last):
            a["weight"] = a["weight"].contiguous(memory_format=torch.channels_last)  # once, not in each direction
        out = super().forward()
        self.arguments["weight"] = weight
        unpadded = not any(p for pair in self.pads for p in pair)
        points = all(k == 1 for k in self.kernel)
        patches = self.kernel == self.stride and all(e == 1 for e in self.dilation)
        self.tiles = self.groups == 1 and unpadded and (points or patches)
        return out

    def _cut_kernel(self, sizes: tuple[int, ...], reach: list[int]) -> None:
        """Leave out what meets nothing but padding at any position: all but the middle, on a map of one position."""
        self.touched: tuple[Any, ...] | None = None
        dims = list(zip(sizes, self.kernel, self.dilation, self.stride, self.maps, self.pads, reach, strict=True))
        if all(s * (m - 1) >= before and r - before < size for size, _, _, s, m, (before, _), r in dims):
            return
        cuts, pads = [], []
        for size, k, e, s, m, (before, _), _ in dims:
            meets = [i for i in range(k) if any(0 <= s * p + e * i - before < size for p in range(m))]
            first, last = (meets[0], meets[-1]) if meets else (0, k - 1)
            pad = before - e * first
            if pad < 0 or (size + 2 * pad - e * (last - first) - 1) // s + 1 != m:
                return
            cuts.append(slice(first, last + 1))
            pads.append((pad, pad))
        self.touched, self.pads = (..., *cuts), tuple(pads)
        self.kernel = tuple(cut.stop - cut.start for cut in cuts)

    def touching(self, weight: Tensor) -> Tensor:
        """The part of the kernel that meets the input."""
        return weight if self.touched is None else weight[self.touched]

    def whole(self, grads: Tensor) -> Tensor:
        """Gradients of the whole kernel from those of the part that meets the input."""
        if self.touched is None:
            return grads
        whole = grads.new_zeros(*grads.shape[:2], *self.arguments["weight"].shape[1:])
        whole[self.touched] = grads
        return whole

    # -- which rule ---------------------------------------------------------------------------------------------

    def choose(self) -> str:
        """The rule with the least estimated work, in multiplications per sample (see ``docs/gradients.md``)."""
        o, i = self.arguments["weight"].shape[:2]
        g, length, size = self.groups, prod(self.maps), prod(self.saved["input"].shape[2:])
        offsets = prod(self.kernel)
        work = length * o * i * offsets
        gram = size * size * i * g + length * length * (o + _SHIFT * sum(self.kernel) * g)
        if self.tiles:
            return "tiles"
        if gram < work + _READ * o * i * offsets:
            return "gram"
        if g == 1 and i * offsets <= _FEW:
            return "unfolded"
        return "windows" if g == 1 and i * self.kernel[-1] >= _NARROW else "grouped"

    # -- gradients ----------------------------------------------------------------------------------------------

    def sq_norms(self, key: Any, d: Tensor, layout: Layout, n: int) -> Tensor:
        if key == "bias" or d.shape[0] != n:
            return sq_norm(self.grads(key, d, layout, n))
        a, rule = self.input("input"), self.choose()
        if rule == "gram":
            return self.by_gram(d, a)
        if rule == "tiles":
            return linear_sq_norms(self.cut(a), d.flatten(2), self.doubts)
        if rule == "windows":
            return torch.stack([sq_norm(part) for part in self.windows(d, a)]).sum(0)
        return sq_norm(self.explicit(d, a))

    @property
    def makes_gradient(self) -> bool:
        """Whether the chosen rule makes the gradient itself."""
        rule = self.choose()
        if rule != "tiles":
            return rule != "gram"
        o, i = self.arguments["weight"].shape[:2]
        return not gram_is_cheaper(prod(self.maps), i * prod(self.kernel), o) and prod(self.maps) > 1

    def by_gram(self, d: Tensor, a: Tensor) -> Tensor:
        n = len(d)
        flat = d.reshape(n * self.groups, -1, prod(self.maps))
        shifted, d_gram = self.shifted_gram(a), flat.mT @ flat
        return gram_sq_norms(shifted, d_gram, n, lambda at: self.grouped(d[at], a[at]), self.doubts)

    def grads(self, key: Any, d: Tensor, layout: Layout, n: int) -> Tensor:
        d = merged(d, layout, n)
        if key == "bias":
            return per_sample(channel_sums(d), n)
        a = merged(self.input("input"), layout, n)
        return self.whole(per_sample(self.explicit(d, a), n))

    def explicit(self, d: Tensor, a: Tensor) -> Tensor:
        """Per-sample gradients ``[rows, O, I, *kernel]`` of the rows of ``d`` and ``a``."""
        rules = {"tiles": self.by_tiles, "unfolded": self.by_unfolding, "windows": self.by_windows}
        return rules.get(self.choose(), self.grouped)(d, a)

    def windows(self, d: Tensor, a: Tensor) -> Iterator[Tensor]:
        """Gradients ``[n, O, kernel width * I]``, one for each of the kernel's other offsets; each overwrites the last.

        The positions along the last dimension are laid side by side, so that each row of the kernel is one batched
        product instead of one for each offset: one copy of the input, as many times as the kernel is wide.
        """
        o, i = self.arguments["weight"].shape[:2]
        n, *rows, columns = d.shape[0], *self.kernel
        a = self.padded(a)
        *outer, step = a.stride()
        shape = (n, *a.shape[2:-1], self.maps[-1], columns, i)
        strides = (outer[0], *outer[2:], step * self.stride[-1], step * self.dilation[-1], outer[1])
        lines = a.as_strided(shape, strides, a.storage_offset()).contiguous().flatten(-2)
        d = d.movedim(1, -1).reshape(n, -1, o).mT
        out = d.new_empty(n, o, columns * i)
        for index in product(*map(range, rows)):
            at = [
                slice(k * e, k * e + (m - 1) * s + 1, s)
                for k, e, m, s in zip(index, self.dilation, self.maps, self.stride, strict=False)
            ]
            yield torch.bmm(d, lines[(slice(None), *at)].reshape(n, -1, columns * i), out=out)

    def by_windows(self, d: Tensor, a: Tensor) -> Tensor:
        o, i = self.arguments["weight"].shape[:2]
        each = torch.stack([out.clone() for out in self.windows(d, a)], dim=2)
        return each.view(-1, o, *self.kernel, i).movedim(-1, 2)

    def by_unfolding(self, d: Tensor, a: Tensor) -> Tensor:
        o, i = self.arguments["weight"].shape[:2]
        n, a = d.shape[0], self.padded(a).contiguous()
        images, channels, *along = a.stride()
        within = [step * e for step, e in zip(along, self.dilation, strict=True)]
        between = [step * s for step, s in zip(along, self.stride, strict=True)]
        lines = a.as_strided((n, i, *self.kernel, *self.maps), (images, channels, *within, *between))
        products = lines.reshape(n, -1, prod(self.maps)) @ d.movedim(1, -1).reshape(n, -1, o)
        return products.mT.reshape(n, o, i, *self.kernel)

    def padded(self, a: Tensor) -> Tensor:
        if not any(p for pair in self.pads for p in pair):
            return a
        return F.pad(a, [p for pair in reversed(self.pads) for p in pair])

    def by_tiles(self, d: Tensor, a: Tensor) -> Tensor:
        o, i = self.arguments["weight"].shape[:2]
        return (d.flatten(2) @ self.cut(a).mT).view(-1, o, i, *self.kernel)

    def cut(self, a: Tensor) -> Tensor:
        """The input where the kernel's positions do not overlap, ``[n, I * offsets, L]``; a view if 1×1 at stride 1."""
        n, size = a.shape[:2]
        if all(k == 1 for k in self.kernel):
            steps = [slice(None), slice(None), *(slice(None, None, s) for s in self.stride)]
            return a[tuple(steps)].flatten(2)
        inside = [slice(None), slice(None), *(slice(0, m * k) for m, k in zip(self.maps, self.kernel, strict=True))]
        a = a[tuple(inside)].reshape(n, size, *(v for pair in zip(self.maps, self.kernel, strict=True) for v in pair))
        dims = len(self.kernel)
        order = [0, 1, *range(3, 3 + 2 * dims, 2), *range(2, 2 + 2 * dims, 2)]
        return a.permute(order).flatten(2 + dims).flatten(1, 1 + dims)

    def grouped(self, d: Tensor, a: Tensor) -> Tensor:
        if any(before != after for before, after in self.pads):
            a = self.padded(a)
            padding = [0] * len(self.pads)
        else:
            padding = [before for before, _ in self.pads]
        n, (o, i) = d.shape[0], self.arguments["weight"].shape[:2]
        weight = d.new_empty(1).expand(n * o, i, *self.kernel)
        # by way of one dimension: the stride of a dimension of one entry is free, and torch may take it for a format
        a, d = (t.flatten().view(1, -1, *t.shape[2:]) for t in (a, d))
        zeros = [0] * len(padding)
        _, grad, _ = torch.ops.aten.convolution_backward(
            d, a, weight, None, self.stride, padding, self.dilation, False, zeros, n * self.groups, [False, True, False]
        )
        return grad.view(n, o, i, *self.kernel)

    def shifted_gram(self, a: Tensor) -> Tensor:
        """``sum_o a_{s p + o} . a_{s q + o}`` as ``[n * groups, L, L]``.

        The Gram matrix of the input, then the sum over the kernel's offsets along one dimension after the other.
        """
        size = tuple(a.shape[2:])
        flat = a.reshape(a.shape[0] * self.groups, -1, prod(size))
        gram = (flat.mT @ flat).view(-1, *size, *size)
        for k in range(len(size)):
            gram = self._shift(gram, k)
        return gram.reshape(-1, prod(self.maps), prod(self.maps))

    def _shift(self, gram: Tensor, k: int) -> Tensor:
        """The sum over the kernel's offsets along dimension ``k`` of both positions of ``gram``."""
        if self.kernel[k] == 1 and self.stride[k] == 1 and not any(self.pads[k]):
            return gram
        dims, size, m, s = len(self.kernel), gram.shape[1 + k], self.maps[k], self.stride[k]
        shape = list(gram.shape)
        shape[1 + k] = shape[1 + k + dims] = m
        out = gram.new_zeros(shape)
        for x in range(self.kernel[k]):
            shift = x * self.dilation[k] - self.pads[k][0]
            first, last = max(0, -(shift // s)), min(m - 1, (size - 1 - shift) // s)
            if first <= last:
                to = [slice(None)] * len(shape)
                source = list(to)
                to[1 + k] = to[1 + k + dims] = slice(first, last + 1)
                source[1 + k] = source[1 + k + dims] = slice(first * s + shift, last * s + shift + 1, s)
                out[tuple(to)] += gram[tuple(source)]
        return out

    def describe(self, key: Any, n: int) -> str:
        if key == "bias":
            return "sum of d over positions"
        rule = self.choose()
        if rule == "tiles":
            rule += ", |a|² |d|²" if prod(self.maps) == 1 else ", product" if self.makes_gradient else ", Gram"
        return f"convolution: {rule} over {'×'.join(map(str, self.maps))} positions"


def _each(value: Any, dims: int) -> tuple[int, ...]:
    return (value,) * dims if isinstance(value, int) else tuple(value) * (dims if len(value) == 1 else 1)
