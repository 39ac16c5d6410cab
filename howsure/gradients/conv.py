"""Convolutions in one to three dimensions, by the cheapest of five exact rules.

With input a, output gradient d, output positions p and kernel offsets o, the gradient of a sample is
``G[o] = sum_p d_p a_{s p + o}^T``, one matrix [O, I] per offset and group.

- **Gram**: ``|G|^2 = sum_{p,q} (d_p . d_q) sum_o (a_{s p + o} . a_{s q + o})``. All inner sums are strided slices of
  one Gram matrix of the raw input, so nothing is unfolded. For small maps.
- **tiles**: where the kernel's positions do not overlap (1×1, or a stride as wide as the kernel), this is a linear
  layer on a sequence, and takes its rules.
- **unfolded**: each position's whole window in a row, and one product. For the few channels of an image.
- **windows**: the input along each row of the kernel side by side, and one batched product per row.
- **grouped**: samples as groups of one convolution, whose weight gradient is then each sample's own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property
from itertools import product
from math import prod
from typing import Any

import torch
from torch import Tensor

from ..products import DILATION, convolutions_win, single
from .conv_gram import shifted_gram
from .device import fast_grouped, queued
from .geometry import Geometry
from .gram import gram_is_cheaper, gram_sq_norms
from .layout import Layout
from .linear import linear, linear_sq_norms
from .norm import channel_sums
from .rule import Rule
from .sums import added, per_sample, sq_norm

_SHIFT = 12  # cost of reading and adding an entry of a shifted Gram matrix, in multiplications of a matrix product
_READ = 4  # the same, of writing and squaring an entry of a gradient
_FEW = 32  # entries of a whole window up to which it is unfolded, and of one row up to which rows are not copied
_SMALL = 100  # positions up to which depthwise kernels other than 3×3 are slow in channels-last
_IMAGE = 4  # channels of an image, at most, which are unfolded for many output channels
_NARROW = 3  # input channels per output channel up to which windows win where grouped convolution is slow
_COPIES = 2e6  # bytes of copies for each thread that stay in cache


class Conv(Rule):
    name = "convolution"
    needs = ("input",)

    @classmethod
    def accepts(cls, arguments: dict[Any, Any], weights: set[Any]) -> bool:
        return "input" not in weights and arguments["input"].dim() == arguments["weight"].dim()

    def forward(self) -> Any:
        a = self.arguments
        weight, self.groups = a["weight"], a.get("groups", 1)
        self.geometry = Geometry.of(tuple(a["input"].shape[2:]), tuple(weight.shape[2:]), a)
        a["weight"] = self.geometry.touching(weight)
        if self.geometry.touched is not None:
            a["padding"] = tuple(before for before, _ in self.geometry.pads)
        if prod(self.geometry.kernel) == 1 and single(a["input"]) and convolutions_win():
            a["dilation"] = DILATION
        if self.groups == 1 and self.geometry.meets_all:
            out = self._at_once()
        else:
            if _channels_last(a["input"]) and single(a["input"]):  # torch would do so once for each direction
                a["weight"] = a["weight"].contiguous(memory_format=torch.channels_last)
            out = super().forward()
        self.arguments["weight"] = weight
        return out

    def _at_once(self) -> Tensor:
        """As a linear layer, without padding or reordering, where the kernel meets all the input at each position."""
        a, maps = self.arguments, self.geometry.maps
        x, weight, bias = a["input"], a["weight"], a.get("bias")
        last = _channels_last(x)
        if prod(maps) == 1 and weight.is_contiguous():
            matrix, x = weight.flatten(1), x.flatten(1)
        else:
            matrix, x = self.geometry.at_each_position(weight), x.movedim(1, -1).flatten(1)
        flat = linear(x, matrix, bias if bias is None else bias.repeat(prod(maps)))
        self.settle()
        out = torch.ops.aten._unsafe_view(flat, [len(flat), *maps, len(weight)]).movedim(-1, 1)
        return out if last else out.contiguous()  # in a convolution's order, since the network may `view` it

    # -- which rule ---------------------------------------------------------------------------------------------

    @cached_property
    def way(self) -> str:
        """The rule with the least estimated work, in multiplications per sample (see ``docs/gradients.md``)."""
        (o, i), kernel = self.arguments["weight"].shape[:2], self.geometry.kernel
        g, length, size = self.groups, prod(self.geometry.maps), prod(self.geometry.sizes)
        offsets = prod(kernel)
        work = length * o * i * offsets
        gram = size * size * i * g + length * length * (o + _SHIFT * sum(kernel) * g)
        if g == 1 and self.geometry.apart:
            return "tiles"
        if gram < work + _READ * o * i * offsets:
            return "gram"
        if g > 1:
            return "grouped"
        if i * offsets <= _FEW:
            return "unfolded"
        if fast_grouped(self.arguments["weight"].device.type):
            return "grouped"
        if i <= _IMAGE and i * offsets <= _NARROW * o:
            return "unfolded"
        return "windows" if i <= _NARROW * o else "grouped"

    @property
    def makes_gradient(self) -> bool:
        """Whether the chosen rule makes the gradient itself."""
        if self.way != "tiles":
            return self.way != "gram"
        (o, i), length = self.arguments["weight"].shape[:2], prod(self.geometry.maps)
        return length > 1 and not gram_is_cheaper(length, i * prod(self.geometry.kernel), o)

    # -- gradients ----------------------------------------------------------------------------------------------

    def sq_norms(self, key: Any, d: Tensor, layout: Layout, n: int) -> Tensor:
        if key == "bias" or d.shape[0] != n:
            return sq_norm(self.grads(key, d, layout, n))
        a = self.input("input")
        if self.way == "gram":
            return self.by_gram(d, a)
        if self.way == "tiles":
            return linear_sq_norms(self.geometry.tiles(a), d.flatten(2), self.doubts)
        return torch.cat([self._of_few(*few) for few in self.few(d, a)])

    def _of_few(self, d: Tensor, a: Tensor) -> Tensor:
        if self.way == "windows":
            return added([sq_norm(part) for part in self.windows(d, a)])
        return sq_norm(self.explicit(d, a))

    def grads(self, key: Any, d: Tensor, layout: Layout, n: int) -> Tensor:
        d = layout.merged(d, n)
        if key == "bias":
            return per_sample(channel_sums(d), n)
        a = layout.merged(self.input("input"), n)
        return self.geometry.whole(per_sample(self.explicit(d, a), n), self.arguments["weight"])

    def explicit(self, d: Tensor, a: Tensor) -> Tensor:
        """Per-sample gradients ``[rows, O, I, *kernel]`` of the rows of ``d`` and ``a``."""
        ways = {"tiles": self.by_tiles, "unfolded": self.by_unfolding, "windows": self.by_windows}
        return ways.get(self.way, self.grouped)(d, a)

    def by_gram(self, d: Tensor, a: Tensor) -> Tensor:
        """Squared norms, not gradients."""
        n = len(d)
        flat = d.reshape(n * self.groups, -1, prod(self.geometry.maps))
        shifted = shifted_gram(a, self.groups, self.geometry)

        def band(start: int, stop: int) -> Tensor:
            return shifted[:, start:, start:stop]

        return gram_sq_norms(band, flat, n, lambda at: self.grouped(d[at], a[at]), self.doubts)

    def by_tiles(self, d: Tensor, a: Tensor) -> Tensor:
        o, i = self.arguments["weight"].shape[:2]
        return (d.flatten(2) @ self.geometry.tiles(a).mT).view(-1, o, i, *self.geometry.kernel)

    def by_unfolding(self, d: Tensor, a: Tensor) -> Tensor:
        (o, i), n = self.arguments["weight"].shape[:2], len(d)
        products = self.geometry.unfolded(a) @ d.movedim(1, -1).reshape(n, -1, o)
        return products.mT.reshape(n, o, i, *self.geometry.kernel)

    def windows(self, d: Tensor, a: Tensor) -> Iterator[Tensor]:
        """Gradients ``[n, O, kernel width * I]``, one for each row of the kernel; each overwrites the last."""
        (o, i), n, kernel = self.arguments["weight"].shape[:2], len(d), self.geometry.kernel
        width = kernel[-1] * i
        lines = self.geometry.lines(a)
        d = d.movedim(1, -1).reshape(n, -1, o).mT
        out = d.new_empty(n, o, width)
        for offset in product(*map(range, kernel[:-1])):
            at = (slice(None), *self.geometry.positions(offset))
            yield torch.bmm(d, lines[at].reshape(n, -1, width), out=out)

    def few(self, d: Tensor, a: Tensor) -> Iterable[tuple[Tensor, Tensor]]:
        """``d`` and ``a`` of a few samples at a time where they are copied, so that a CPU's cache holds the copies."""
        if self.way not in ("windows", "grouped") or queued(d.device):
            return [(d, a)]
        if self.way == "windows":
            each, least = a[0].nbytes * self.geometry.kernel[-1], 4  # fewer cost more than they save
        else:
            each, least = a[0].nbytes + d[0].nbytes + self.arguments["weight"].nbytes, 1
        parts = -(-len(d) // (torch.get_num_threads() * max(least, int(_COPIES / each))))
        return zip(d.tensor_split(parts), a.tensor_split(parts), strict=True)

    def by_windows(self, d: Tensor, a: Tensor) -> Tensor:
        o, i = self.arguments["weight"].shape[:2]
        each = torch.stack([out.clone() for out in self.windows(d, a)], dim=2)
        return each.view(-1, o, *self.geometry.kernel, i).movedim(-1, 2)

    def grouped(self, d: Tensor, a: Tensor) -> Tensor:
        at = self.geometry
        padding = [before for before, _ in at.pads]
        if any(before != after for before, after in at.pads):
            a, padding = at.padded(a), [0] * len(at.pads)
        n, (o, i) = len(d), self.arguments["weight"].shape[:2]
        # other depthwise kernels are up to ten times slower so, on small maps or with AVX-512
        large = prod(at.maps) > _SMALL and not fast_grouped(d.device.type)
        last = i > 1 or large or (o == self.groups and at.kernel == (3, 3))
        a, d = _beside(a, last), _beside(d, last)
        # nothing reads this weight, but in another order it would be copied
        order = torch.channels_last if d.dim() == 4 and d.stride(1) == 1 else torch.contiguous_format
        weight = torch.empty((n * o, i, *at.kernel), dtype=d.dtype, device=d.device, memory_format=order)
        _, grad, _ = torch.ops.aten.convolution_backward(
            d, a, weight, None, at.stride, padding, at.dilation, False, [0] * len(at.pads), n * self.groups,
            [False, True, False],
        )  # fmt: skip
        return grad.view(n, o, i, *at.kernel)

    def describe(self, key: Any, n: int) -> str:
        if key == "bias":
            return "sum of d over positions"
        way = self.way
        if way == "tiles":
            way += ", |a|² |d|²" if prod(self.geometry.maps) == 1 else ", product" if self.makes_gradient else ", Gram"
        return f"convolution: {way} over {'×'.join(map(str, self.geometry.maps))} positions"


def _channels_last(t: Tensor) -> bool:
    """Whether the channels of a map lie side by side in memory, and its positions do not."""
    return t.dim() == 4 and not t.is_contiguous() and t.is_contiguous(memory_format=torch.channels_last)


def _beside(t: Tensor, last: bool) -> Tensor:
    """The channels of all samples side by side, ``[1, n * C, …]``, with ``last`` in memory too if each sample's are."""
    if last and t.dim() == 4 and t.is_contiguous(memory_format=torch.channels_last):
        return t.permute(2, 3, 0, 1).reshape(1, *t.shape[2:], -1).movedim(-1, 1)
    # flattened first, since the stride of a dimension of size one is arbitrary, and torch may read a format into it
    return t.flatten().view(1, -1, *t.shape[2:])
