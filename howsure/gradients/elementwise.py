"""Sums and products of data with a weight that is broadcast: position embeddings, layer scale, attention biases."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .layout import Layout
from .rule import Rule


class Elementwise(Rule):
    """``y = f(x, w)``, entry by entry. The gradient of w is d times dy/dw, summed over where w was broadcast."""

    @classmethod
    def accepts(cls, arguments: dict[Any, Any], weights: set[Any]) -> bool:
        return len(weights) == 1 and len(arguments) == 2 and all(arguments[w].is_floating_point() for w in weights)

    def forward(self) -> Tensor:
        out = self.func(self.arguments["input"], self.arguments["other"])
        self.settle()
        return out

    def fits(self, layout: Layout) -> bool:
        return True

    def through(self, key: Any, d: Tensor) -> Tensor:
        """d times dy/dw, in the shape of the output."""
        return d

    def grads(self, key: Any, d: Tensor, layout: Layout, n: int) -> Tensor:
        shape = self.arguments[key].shape
        g = self.through(key, d)
        padded = (1,) * (g.dim() - len(shape)) + tuple(shape)
        g = layout.split(g, n) if padded[layout.dim] == 1 else layout.one_each(g, n)
        axes = [i + 1 for i, s in enumerate(padded) if s == 1 and g.shape[i + 1] != 1]
        return (g.sum(axes) if axes else g).reshape(n, *shape)


class Add(Elementwise):
    name = "sum of d where the weight was added"


class Sub(Elementwise):
    name = "sum of ±d where the weight was subtracted"

    def through(self, key: Any, d: Tensor) -> Tensor:
        return -d if key == "other" else d


class Mul(Elementwise):
    name = "sum of d·x where the weight was multiplied"
    needs = ("input", "other")  # of which the one that is no weight is saved

    def through(self, key: Any, d: Tensor) -> Tensor:
        return d * self.input("other" if key == "input" else "input")
