"""Folds a batch norm into the convolution that it alone reads, and takes both gradients from one.

With s = γ / σ the two are one convolution, y = s (W * a + c - μ) + β = (s W) * a + s (c - μ) + β. No map is made
between them, neither forward nor backward. From the gradient d at y and ``G = sum_p d_p a_p^T``, in an output channel:

    grad W = s G        grad c = s sum d        grad γ = (G . W + (c - μ) sum d) / σ        grad β = sum d

The first pass through a network shows which batch norms (``find``): where nothing else reads the convolution's output,
its rule makes G anyway, and the kernel is smaller than the maps. Later passes hand the batch norm an empty shell in
place of the convolution's output. If anything else looks into the shell or keeps it, or the batch norm is called
differently or not at all, ``Unfolded`` is raised before a wrong number is made, and the engine starts again without
this fold.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .conv import Conv
from .graph import readers_of
from .layout import Layout
from .norm import CENTRED, BatchNorm, SumsOnce, affine_shift
from .plan import Again, Plan
from .rule import Rule
from .rules import EXPORTED, bind
from .site import Site
from .sums import added, per_sample

_IMAGES = 8  # a kernel larger than the maps of so many images is not worth folding
SHAPES = {
    torch.Tensor.dim,
    torch.Tensor.size,
    *(getattr(torch.Tensor, name).__get__ for name in ("shape", "ndim", "dtype", "device")),
}
"""What may be asked of an empty shell."""
_DEVICE: Any = torch.Tensor.device
DEVICE = _DEVICE.__get__


class Unfolded(Again):
    """The output of a folded convolution is needed after all."""

    def __init__(self, fold: Fold):
        super().__init__("the output of a folded convolution is needed")
        self.fold = fold

    def learn(self, plan: Plan) -> None:
        plan.give_up_fold(self.fold)


class Misread(Again):
    """A pass with folds failed, perhaps since a shell was looked into unseen."""

    def learn(self, plan: Plan) -> None:
        plan.folds = {}


@dataclass(eq=False, repr=False)
class Fold:
    """The parameters of a convolution, and the arguments ``norm`` of the batch norm behind it, without its input."""

    weight: Tensor
    bias: Tensor | None
    func: Any
    norm: dict[str, Any]
    rstd: Tensor = field(init=False)
    scale: Tensor = field(init=False)
    centre: Tensor = field(init=False)
    folded: tuple[Tensor, Tensor] = field(init=False)

    def weights(self) -> dict[str, Tensor]:
        """The batch norm's parameters, by the names that ``Folded`` gives them."""
        found = {"scale": self.norm.get("weight"), "shift": self.norm.get("bias")}
        return {key: t for key, t in found.items() if t is not None}

    @torch.no_grad()
    def refresh(self) -> Tensor:
        """Take the parameters as they are now; return how many standard deviations from zero the maps lie at most."""
        scale, shift = self.norm.get("weight"), self.norm.get("bias")
        self.rstd = torch.rsqrt(self.norm["running_var"] + self.norm.get("eps", 1e-5))
        self.scale = self.rstd if scale is None else self.rstd * scale
        self.centre = self.norm["running_mean"] if self.bias is None else self.norm["running_mean"] - self.bias
        constant = affine_shift(self.centre, self.scale, shift)
        self.folded = self.weight * self.scale.view(-1, *[1] * (self.weight.dim() - 1)), constant
        return torch.linalg.vector_norm(self.centre * self.rstd, torch.inf)

    def takes(self, rule: Rule, bias: Tensor | None) -> bool:
        """Whether the convolution can be made folded this time."""
        if bias is not self.bias:
            raise Unfolded(self)
        if not isinstance(rule, Conv) or rule.saved["input"].dtype != self.weight.dtype:
            return False
        return not torch.is_autocast_enabled(self.weight.device.type)

    def is_call(self, func: Any, args: tuple, kwargs: dict) -> bool:
        """Whether this is the batch norm's call, as it was when it was found."""
        func = EXPORTED.get(func, func)
        call = bind(func, args, kwargs) if func is self.func else {}
        call.pop("input", None)
        return call.keys() == self.norm.keys() and all(_same(call[key], value) for key, value in self.norm.items())


def _same(a: Any, b: Any) -> bool:
    return a is b if isinstance(a, Tensor) or isinstance(b, Tensor) else bool(a == b)


def refreshed(folds: Mapping[int, Fold] | None) -> dict[int, Fold]:
    """The folds with the parameters as they are now, without those where ``grad γ`` would cancel."""
    if not folds:
        return {}
    folds = {key: copy.copy(fold) for key, fold in folds.items()}
    off = torch.stack([fold.refresh() for fold in folds.values()]).tolist()
    return {key: fold for (key, fold), o in zip(folds.items(), off, strict=True) if o <= CENTRED}


class Folded(SumsOnce, Conv):
    """A convolution and its batch norm as one.

    The convolution's weight comes first in ``Site.weights``, and leaves ``G . W`` for the batch norm's scale.
    """

    def __init__(self, conv: Rule, fold: Fold):
        super().__init__(conv.func, conv.arguments, conv.weights | set(fold.weights()))
        self.fold = fold

    def forward(self) -> Any:
        plain = self.arguments
        self.arguments = plain | dict(zip(("weight", "bias"), self.fold.folded, strict=True))
        out = super().forward()
        self.arguments |= {key: plain.get(key) for key in ("weight", "bias")}
        return out

    def sq_norms(self, key: Any, d: Tensor, layout: Layout, n: int) -> Tensor:
        if key != "weight" or d.shape[0] != n:
            return Rule.sq_norms(self, key, d, layout, n)
        squares, products = zip(*(self._sums(*few) for few in self.few(d, self.input("input"))), strict=True)
        self.products = torch.cat(products)
        return torch.cat(squares) @ self.fold.scale.square()

    def _sums(self, d: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
        """``|G|^2`` and ``G . W`` of each output channel, ``[n, O]``."""
        squares, products = [], []
        for gradient, weight in self._pieces(d, a):
            squares.append(torch.linalg.vector_norm(gradient, dim=2).square_())
            products.append((gradient * weight).sum(2))
        return added(squares), added(products)

    def _pieces(self, d: Tensor, a: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """The gradient G in parts ``[n, O, m]``, each with the weights ``[O, m]`` that it belongs to."""
        weight = self.geometry.touching(self.arguments["weight"])
        if self.way != "windows":
            gradient = self.explicit(d, a)
            if gradient.movedim(2, -1).is_contiguous():  # in this order it need not be copied
                gradient, weight = gradient.movedim(2, -1), weight.movedim(1, -1)
            yield gradient.flatten(2), weight.flatten(1)
            return
        rows = weight.movedim(1, -1).flatten(-2)
        rows = rows.reshape(len(rows), -1, rows.shape[-1])
        yield from zip(self.windows(d, a), rows.unbind(1), strict=True)

    def grads(self, key: Any, d: Tensor, layout: Layout, n: int) -> Tensor:
        if key == "weight":
            g = per_sample(self.explicit(layout.merged(d, n), layout.merged(self.input("input"), n)), n)
            self.products = (g * self.geometry.touching(self.arguments["weight"])).flatten(2).sum(2)
            return self.geometry.whole(g, self.arguments["weight"]) * self.fold.scale.view(-1, *[1] * (g.dim() - 2))
        sums = per_sample(self.sums(layout.merged(d, n)), n)
        if key == "shift":
            return sums
        if key == "bias":
            return sums * self.fold.scale
        return (self.products - self.fold.centre * sums) * self.fold.rstd

    def describe(self, key: Any, n: int) -> str:
        if key == "scale":
            return "batch norm: from the convolution's gradient"
        return "batch norm: sum of d" if key == "shift" else super().describe(key, n)


def find(sites: Mapping[Any, Site], reads: Mapping[int, int], logits: Tensor, direct: set[int]) -> dict[int, Fold]:
    """The batch norms to fold, by the id of the convolution's weight.

    ``sites`` are keyed by the node of their output in the graph of ``logits``; ``reads`` says how often each output
    was read, by index; ``direct`` are the weights whose norms a rule gives by itself.
    """
    readers, found = readers_of(logits), {}
    for node, conv in sites.items():
        norm = sites.get(readers[node][0]) if len(readers[node]) == 1 else None
        if norm is not None and reads.get(conv.index) == 1 and _foldable(conv, norm, direct):
            assert isinstance(norm.rule, BatchNorm)
            weight, bias = conv.weights["weight"], conv.weights.get("bias")
            found[id(weight)] = Fold(weight, bias, norm.rule.func, {**norm.rule.call, **norm.weights})
    return found


def _foldable(conv: Site, norm: Site, direct: set[int]) -> bool:
    first, second = conv.rule, norm.rule
    if type(first) is not Conv or not isinstance(second, BatchNorm) or not conv.layout == norm.layout == (Layout(),):
        return False
    weight = conv.weights.get("weight")
    if weight is None or id(weight) not in direct or not first.makes_gradient:
        return False
    given = [(conv, first.arguments), (norm, second.call)]
    if any(call.get(key) is not None and key not in site.weights for site, call in given for key in ("weight", "bias")):
        return False
    dtypes = {weight.dtype, first.saved["input"].dtype, second.saved["input"].dtype, second.call["running_mean"].dtype}
    small = weight.numel() < _IMAGES * second.saved["input"][0].numel()
    return small and len(dtypes) == 1 and weight.dtype in (torch.float32, torch.float64)
