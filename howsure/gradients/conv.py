"""Convolutions in one to three dimensions, by the cheapest of four exact rules.

With input a, output gradient d, output positions p and kernel offsets o, the gradient of a sample is
``G[o] = sum_p d_p a_{s p + o}^T``, one matrix [O, I] per offset and group.

- **Gram**: ``|G|^2 = sum_{p,q} (d_p . d_q) sum_o (a_{s p + o} . a_{s q + o})``. All inner sums are strided slices of
  one Gram matrix of the raw input, so nothing is unfolded. For small maps.
- **tiles**: where the kernel's positions do not overlap (1×1, or a stride as wide as the kernel) the layer is a linear
  layer on a sequence, and takes its rules.
- **product**: one batched matrix product per offset. Where the stride is one, the padded input is flattened and d is
  padded on the right to the same width, so that each offset is a view that starts a little further on: no copies.
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

from .gram import gram_sq_norms
from .layout import Layout
from .linear import linear_sq_norms
from .norm import channel_sums
from .rule import Rule, merged, per_sample, sq_norm

_SHIFT = 12  # one entry of a shifted Gram matrix read and added, in multiplications of a matrix product
_READ = 4  # one entry of a gradient written and squared
_LARGE = 2**18  # entries of a weight above which grouped convolution loses to batched products on a CPU


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
        out = super().forward()
        self.maps = tuple(out.shape[2:])
        unpadded = not any(p for pair in self.pads for p in pair)
        points = all(k == 1 for k in self.kernel)
        patches = self.kernel == self.stride and all(e == 1 for e in self.dilation)
        self.tiles = self.groups == 1 and unpadded and (points or patches)
        return out

    # -- which rule ---------------------------------------------------------------------------------------------

    def choose(self) -> str:
        """The rule with the least estimated work, in multiplications per sample (see ``docs/gradients.md``)."""
        o, i = self.arguments["weight"].shape[:2]
        g, length, size = self.groups, prod(self.maps), prod(self.saved["input"].shape[2:])
        offsets = prod(self.kernel)
        gram = size * size * i * g + length * length * (o + _SHIFT * offsets * g)
        explicit = length * o * i * offsets + _READ * o * i * offsets
        if self.tiles:
            return "tiles"
        if gram < explicit:
            return "gram"
        batched_product = g == 1 and (o * i * offsets > _LARGE or self.saved["input"].is_cuda)
        return "product" if batched_product else "grouped"

    # -- gradients ----------------------------------------------------------------------------------------------

    def sq_norms(self, key: Any, d: Tensor, layout: Layout, n: int) -> Tensor:
        rule = self.choose()
        if key == "bias" or d.shape[0] != n or rule not in ("gram", "tiles"):
            return sq_norm(self.grads(key, d, layout, n))
        a = self.input("input")
        if rule == "tiles":
            return linear_sq_norms(self.cut(a), d.flatten(2))
        g, length = self.groups, prod(self.maps)
        d_gram = d.reshape(n * g, -1, length)
        a_gram = self.shifted_gram(a)
        total = (
            gram_sq_norms(
                a_gram.view(n, -1, length), (d_gram.mT @ d_gram).view(n, -1, length), lambda s: self.grouped(d[s], a[s])
            )
            if g == 1
            else self._grouped_gram(a, d, a_gram, d_gram, n)
        )
        return total

    def _grouped_gram(self, a: Tensor, d: Tensor, a_gram: Tensor, d_gram: Tensor, n: int) -> Tensor:
        g = self.groups
        per_group = gram_sq_norms(
            a_gram,
            d_gram.mT @ d_gram,
            lambda s: self.grouped(d, a).unflatten(1, (g, -1)).flatten(0, 1)[s],
        )
        return per_group.view(n, g).sum(1)

    def grads(self, key: Any, d: Tensor, layout: Layout, n: int) -> Tensor:
        d = merged(d, layout, n)
        if key == "bias":
            return per_sample(channel_sums(d), n)
        a = merged(self.input("input"), layout, n)
        return per_sample(self.explicit(d, a), n)

    def explicit(self, d: Tensor, a: Tensor) -> Tensor:
        """Per-sample gradients ``[rows, O, I, *kernel]`` of the rows of ``d`` and ``a``."""
        rules = {"tiles": self.by_tiles, "product": self.product}
        return rules.get(self.choose(), self.grouped)(d, a)

    def product(self, d: Tensor, a: Tensor) -> Tensor:
        if any(p for pair in self.pads for p in pair):
            a = F.pad(a, [p for pair in reversed(self.pads) for p in pair])
        o, i = self.arguments["weight"].shape[:2]
        out = d.new_empty(prod(self.kernel), d.shape[0], o, i)
        d, views = self.aligned(d, a)
        for at, view in enumerate(views):
            torch.bmm(d, view.mT, out=out[at])
        return out.permute(1, 2, 3, 0).reshape(-1, o, i, *self.kernel)

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

    def aligned(self, d: Tensor, a: Tensor) -> tuple[Tensor, Iterator[Tensor]]:
        """``d`` as ``[n, O, L]`` and, for each kernel offset, the padded input at its positions as ``[n, I, L]``."""
        offsets = [
            tuple(x * e for x, e in zip(index, self.dilation, strict=True))
            for index in product(*map(range, self.kernel))
        ]
        if any(s != 1 for s in self.stride):
            cuts = [
                tuple(slice(x, x + s * (m - 1) + 1, s) for x, s, m in zip(at, self.stride, self.maps, strict=True))
                for at in offsets
            ]
            return d.flatten(2), (a[(slice(None), slice(None), *cut)].flatten(2) for cut in cuts)
        widths = a.shape[2:]
        short = [w - m for w, m in zip(widths[1:], self.maps[1:], strict=True)]
        steps = [prod(widths[k + 1 :]) for k in range(len(widths))]
        if any(short):
            d = F.pad(d, [v for s in reversed(short) for v in (0, s)])
        length = prod(d.shape[2:]) - sum(s * t for s, t in zip(short, steps[1:], strict=True))
        flat = a.flatten(2)
        starts = [sum(x * s for x, s in zip(at, steps, strict=True)) for at in offsets]
        return d.flatten(2)[:, :, :length], (flat[:, :, start : start + length] for start in starts)

    def grouped(self, d: Tensor, a: Tensor) -> Tensor:
        if any(before != after for before, after in self.pads):
            a = F.pad(a, [p for pair in reversed(self.pads) for p in pair])
            padding = [0] * len(self.pads)
        else:
            padding = [before for before, _ in self.pads]
        n, (o, i) = d.shape[0], self.arguments["weight"].shape[:2]
        weight = d.new_empty(1).expand(n * o, i, *self.kernel)
        a, d = a.reshape(1, -1, *a.shape[2:]), d.reshape(1, -1, *d.shape[2:])
        zeros = [0] * len(padding)
        _, grad, _ = torch.ops.aten.convolution_backward(
            d, a, weight, None, self.stride, padding, self.dilation, False, zeros, n * self.groups, [False, True, False]
        )
        return grad.view(n, o, i, *self.kernel)

    def shifted_gram(self, a: Tensor) -> Tensor:
        """``sum_o a_{s p + o} . a_{s q + o}`` as ``[n * groups, L, L]``."""
        size = tuple(a.shape[2:])
        flat = a.reshape(a.shape[0] * self.groups, -1, prod(size))
        raw = (flat.mT @ flat).view(-1, *size, *size)
        out = raw.new_zeros(raw.shape[0], *self.maps, *self.maps)
        for index in product(*map(range, self.kernel)):
            where, source = [], []
            for k, x in enumerate(index):
                shift, s = x * self.dilation[k] - self.pads[k][0], self.stride[k]
                first = max(0, -(shift // s))
                last = min(self.maps[k] - 1, (size[k] - 1 - shift) // s)
                if last < first:
                    break
                where.append(slice(first, last + 1))
                source.append(slice(first * s + shift, last * s + shift + 1, s))
            else:
                out[(slice(None), *where, *where)] += raw[(slice(None), *source, *source)]
        return out.view(-1, prod(self.maps), prod(self.maps))

    def describe(self, key: Any, n: int) -> str:
        if key == "bias":
            return "sum of d over positions"
        return f"convolution: {self.choose()} over {'×'.join(map(str, self.maps))} positions"


def _each(value: Any, dims: int) -> tuple[int, ...]:
    return (value,) * dims if isinstance(value, int) else tuple(value) * (dims if len(value) == 1 else 1)
