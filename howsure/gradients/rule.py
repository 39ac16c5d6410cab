"""What every rule offers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .layout import Layout
from .sums import sq_norm


class Rule:
    """How one call turns the gradient at its output into per-sample gradients of its weights.

    ``arguments`` holds what the call was given, weights detached; ``saved`` the data tensors that the backward pass
    still needs (copies replace those that are about to be overwritten). The first dimension of every result is ``n``,
    the number of samples in the batch.
    """

    name = "rule"
    needs: tuple[str, ...] = ()

    def __init__(self, func: Callable[..., Any], arguments: dict[Any, Any], weights: set[Any]):
        self.func, self.arguments, self.weights = func, arguments, weights
        self.saved: dict[Any, Tensor] = {key: arguments[key] for key in self.needs if key not in weights}
        self.doubts: list[Tensor] | None = None
        """Where to note that terms of a sum cancel; None to deal with it at once."""

    @classmethod
    def accepts(cls, arguments: dict[Any, Any], weights: set[Any]) -> bool:
        """Whether the rule covers this form of the call; if not, the general path takes it."""
        raise NotImplementedError

    def connected(self) -> bool:
        """Whether an input is already part of autograd's graph."""
        given = self.arguments.items()
        return any(isinstance(v, Tensor) and v.requires_grad and k not in self.weights for k, v in given)

    def forward(self) -> Any:
        out = self.func(**self.arguments)
        self.settle()
        return out

    def settle(self) -> None:
        """Drop the data that the backward pass does not need."""
        self.arguments = {k: v for k, v in self.arguments.items() if k in self.weights or not isinstance(v, Tensor)}

    def fits(self, layout: Layout) -> bool:
        """Whether the rule holds when the samples of its output are laid out like this."""
        return layout.dim == 0

    def grads(self, key: Any, d: Tensor, layout: Layout, n: int) -> Tensor:
        """Per-sample gradients ``[n, *weight.shape]`` of the weight ``key``, from the gradient ``d`` at the output."""
        raise NotImplementedError

    def sq_norms(self, key: Any, d: Tensor, layout: Layout, n: int) -> Tensor:
        """Their squared L2 norms ``[n]``."""
        return sq_norm(self.grads(key, d, layout, n))

    def describe(self, key: Any, n: int) -> str:
        """The rule in words, for ``explain``."""
        return self.name

    def input(self, key: str) -> Tensor:
        """A saved tensor, detached, in at least single precision; integers in the weight's dtype."""
        t = self.saved[key].detach()
        if not t.is_floating_point():
            t = t.to(next(self.arguments[w].dtype for w in self.weights))
        return t if t.dtype in (torch.float32, torch.float64) else t.float()
