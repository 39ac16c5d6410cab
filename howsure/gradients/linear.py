"""Linear layers: ``y = x W^T + b`` on vectors or sequences.

With L positions per sample, input a [L, I] and output gradient d [L, O]:

    |grad W|^2 = |sum_l d_l a_l^T|^2 = sum_{l,m} (a_l . a_m)(d_l . d_m)        grad b = sum_l d_l

The left form costs ``L I O`` multiplications, the right one ``L^2 (I + O)``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .gram import gram_is_cheaper, gram_sq_norms
from .layout import Layout
from .rule import Rule, sq_norm


class Linear(Rule):
    name = "linear"
    needs = ("input",)

    @classmethod
    def accepts(cls, arguments: dict[Any, Any], weights: set[Any]) -> bool:
        return "input" not in weights and isinstance(arguments.get("weight"), Tensor) and arguments["weight"].dim() == 2

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
        a = self.positions(self.input("input"), layout, n)
        length, (o, i) = d.shape[1], self.arguments["weight"].shape
        if length == 1:
            return sq_norm(d[:, 0]) * sq_norm(a[:, 0])
        if gram_is_cheaper(length, i, o):
            return gram_sq_norms(a @ a.mT, d @ d.mT, lambda s: d[s].mT @ a[s])
        return sq_norm(torch.bmm(d.mT, a))

    def describe(self, key: Any, n: int) -> str:
        if key == "bias":
            return "sum of d over positions"
        o, i = self.arguments["weight"].shape
        length = max(self.saved["input"].numel() // i // n, 1)
        if length == 1:
            return "linear: |a|² |d|²"
        return f"linear: {'Gram' if gram_is_cheaper(length, i, o) else 'product'} over {length} positions"
