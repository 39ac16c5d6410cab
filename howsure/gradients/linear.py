"""Linear layers: ``y = x W^T + b`` on vectors or sequences.

With L positions per sample, input a [L, I] and output gradient d [L, O]:

    |grad W|^2 = |sum_l d_l a_l^T|^2 = sum_{l,m} (a_l . a_m)(d_l . d_m)        grad b = sum_l d_l

The first form costs ``L I O`` multiplications, the second ``L^2 (I + O) / 2`` by symmetry. Positions without a gradient
are left out if they are the majority, as behind a class token, here and on the way to the input.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..products import Product, pays, rows_times
from .device import queued
from .gram import gram_is_cheaper, sequence_gram_sq_norms
from .layout import Layout
from .rule import Rule
from .sums import sq_norm


def linear_sq_norms(a: Tensor, d: Tensor, doubts: list[Tensor] | None = None) -> Tensor:
    """``|sum_l d_l a_l^T|^2`` of inputs ``[n, I, L]`` and output gradients ``[n, O, L]``, features first: ``[n]``."""
    (i, length), o = a.shape[1:], d.shape[1]
    if length <= 1:
        return sq_norm(d) * sq_norm(a)
    if gram_is_cheaper(length, i, o):
        return sequence_gram_sq_norms(a, d, doubts)
    return sq_norm(d @ a.mT)


def reached(d: Tensor) -> Tensor | None:
    """The positions of ``d [n, L, O]`` at which any sample has a gradient; None unless those are known to be few.

    If they are many, one feature of the first sample nearly always shows it. A GPU is not asked, since its host would
    wait.
    """
    if queued(d.device) or not d.numel() or 2 * int(d[0, :, 0].count_nonzero()) > d.shape[1]:
        return None
    at = (d.abs().amax(-1) != 0).any(0).nonzero()[:, 0]
    return at if 2 * len(at) <= d.shape[1] else None


class _Product(Product):
    """The backward pass leaves out rows without a gradient."""

    @staticmethod
    def backward(ctx, d):
        try:
            at = reached(d[None])
        except (RuntimeError, UserWarning):  # batched gradients, for a parameter used unseen, cannot be looked into
            at = None
        if at is None:
            return Product.backward(ctx, d)
        return d.new_zeros(len(d), ctx.weight.shape[1]).index_copy_(0, at, rows_times(d[at], ctx.weight.mT)), None, None


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, product: type[Product] | None = None) -> Tensor:
    """``x W^T + b`` for rows ``x``: by ``product`` where nothing but the gradient at ``x`` can be asked for."""
    product = Product if product is None and pays(x, weight) else product
    constants = not any(t is not None and t.requires_grad for t in (weight, bias))
    if product is None or not constants or queued(x.device) or torch.is_autocast_enabled(x.device.type):
        return torch.nn.functional.linear(x, weight, bias)
    return product.apply(x, weight, bias)


class Linear(Rule):
    name = "linear"
    needs = ("input",)

    @classmethod
    def accepts(cls, arguments: dict[Any, Any], weights: set[Any]) -> bool:
        weight, bias = arguments.get("weight"), arguments.get("bias")
        if "input" in weights or not isinstance(weight, Tensor) or weight.dim() != 2 or arguments["input"].dim() < 2:
            return False
        if not weight.numel():
            return False
        return bias is None or bias.shape == weight.shape[:1]

    def forward(self) -> Any:
        a = self.arguments
        x, weight = a["input"], a["weight"]
        if not x.is_contiguous():
            return super().forward()
        # like `linear`, whose output would be a view, which would have to be copied to carry a hook
        flat = linear(x.flatten(0, -2), weight, a.get("bias"), _Product if x.dim() > 2 else None)
        self.settle()
        return torch.ops.aten._unsafe_view(flat, [*x.shape[:-1], weight.shape[0]])

    def fits(self, layout: Layout) -> bool:
        return layout.dim < self.saved["input"].dim() - 1

    def positions(self, t: Tensor, layout: Layout, n: int) -> Tensor:
        """``[n, L, features]``."""
        if layout.rows:
            return t.reshape(n, -1, t.shape[-1])
        return layout.split(t, n).reshape(n, -1, t.shape[-1])

    def grads(self, key: Any, d: Tensor, layout: Layout, n: int) -> Tensor:
        d = self.positions(d, layout, n)
        if key == "bias":
            return d.sum(1)
        return d.mT @ self.positions(self.input("input"), layout, n)

    def sq_norms(self, key: Any, d: Tensor, layout: Layout, n: int) -> Tensor:
        if key == "bias":
            return sq_norm(self.grads(key, d, layout, n))
        d = self.positions(d, layout, n)
        a, at = self.positions(self.input("input"), layout, n), reached(d)
        if at is not None:
            a, d = a[:, at], d[:, at]
        return linear_sq_norms(a.mT, d.mT, self.doubts)

    def describe(self, key: Any, n: int) -> str:
        if key == "bias":
            return "sum of d over positions"
        o, i = self.arguments["weight"].shape
        length = max(self.saved["input"].numel() // i // n, 1)
        if length == 1:
            return "linear: |a|² |d|²"
        return f"linear: {'Gram' if gram_is_cheaper(length, i, o) else 'product'} over {length} positions"
