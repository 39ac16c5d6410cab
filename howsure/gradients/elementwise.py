"""Sums and products of data with a weight that is broadcast: position embeddings, layer scale, attention biases."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .general import one_sample_each
from .layout import Layout
from .rule import Rule


class Elementwise(Rule):
    """``y = f(x, w)``, entry by entry. The gradient of w is d times dy/dw, summed over where w was broadcast."""

    @classmethod
    def accepts(cls, arguments: dict[Any, Any], weights: set[Any]) -> bool:
        other = "input" if "other" in weights else "other"
        return (
            len(weights) == 1
            and len(arguments) == 2
            and other not in weights
            and arguments[next(iter(weights))].is_floating_point()
        )

    def __init__(self, func: Any, arguments: dict[Any, Any], weights: set[Any]):
        self.data_key = "other" if "input" in weights else "input"
        self.data_needed = isinstance(self, Mul)
        super().__init__(func, arguments, weights)
        x = arguments[self.data_key]
        if self.data_needed and isinstance(x, Tensor):
            self.saved = {self.data_key: x}

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
        if padded[layout.dim] != 1:
            g = one_sample_each(g, layout, n)
            axes = [i + 1 for i, s in enumerate(padded) if s == 1 and g.shape[i + 1] != 1]
            return (g.sum(axes) if axes else g).reshape(n, *shape)
        g = layout.split(g, n)
        sizes = (*padded[: layout.dim], 1, *padded[layout.dim + 1 :])
        axes = [i + 1 for i, s in enumerate(sizes) if s == 1 and g.shape[i + 1] != 1]
        return (g.sum(axes) if axes else g).reshape(n, *shape)


class Add(Elementwise):
    name = "sum of d where the weight was added"


class Sub(Elementwise):
    name = "sum of ±d where the weight was subtracted"

    def through(self, key: Any, d: Tensor) -> Tensor:
        return -d if key == "other" else d


class Mul(Elementwise):
    name = "sum of d·x where the weight was multiplied"

    def through(self, key: Any, d: Tensor) -> Tensor:
        return d * self.input(self.data_key)
