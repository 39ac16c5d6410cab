"""What every rule offers, and helpers that walk over the arguments of a call."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from .layout import Layout


class Again(Exception):
    """A pass has found out what it should have known: it starts again."""

    def learn(self, plan: Any) -> None:
        """Note in the network's plan what was found out."""


class Rule:
    """How one call turns the gradient at its output into per-sample gradients of its weights.

    ``arguments`` holds what the call was given, weights detached; ``saved`` names the data tensors that the backward
    pass still needs (an in-place operation replaces them by copies). Arrays are per sample: ``n`` is the number of
    samples in the batch, and the first dimension of every result.
    """

    name = "rule"
    needs: tuple[str, ...] = ()

    def __init__(self, func: Callable[..., Any], arguments: dict[Any, Any], weights: set[Any]):
        self.func, self.arguments, self.weights = func, arguments, weights
        self.saved: dict[Any, Tensor] = {key: arguments[key] for key in self.needs if key not in weights}
        self.doubts: list[Tensor] | None = None
        """Where to note that terms of a sum cancel; None to mend it at once."""

    @classmethod
    def accepts(cls, arguments: dict[Any, Any], weights: set[Any]) -> bool:
        """Whether the rule knows this form of the call; if not, the general path takes it."""
        raise NotImplementedError

    def connected(self) -> bool:
        """Whether an input hangs on others in autograd's graph."""
        given = self.arguments.items()
        return any(isinstance(v, Tensor) and v.requires_grad and k not in self.weights for k, v in given)

    def forward(self) -> Any:
        out = self.func(**self.arguments)
        self.settle()
        return out

    def settle(self) -> None:
        """Keep no data but what the backward pass needs."""
        self.arguments = {k: v for k, v in self.arguments.items() if k in self.weights or not isinstance(v, Tensor)}

    def fits(self, layout: Layout) -> bool:
        """Whether the rule holds with the samples of its output laid out like this."""
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
        """A saved tensor, detached, in at least single precision; integers in the weight's."""
        t = self.saved[key].detach()
        if not t.is_floating_point():
            t = t.to(next(self.arguments[w].dtype for w in self.weights))
        return t if t.dtype in (torch.float32, torch.float64) else t.float()


QUEUED = {"cuda"}
"""Kinds of device that work is queued for: whoever asks for a number waits until all before it is done."""


def queued(device: torch.device) -> bool:
    return device.type in QUEUED


_scratch = threading.local()


def scratch(like: Tensor) -> Tensor:
    """Uninitialised memory in the shape and order of ``like``; on a CPU the same each time: fresh pages cost much.

    Each thread has its own. The content lasts until the next call.
    """
    if queued(like.device):  # fresh memory costs nothing there, and the backward pass runs on a thread of its own
        return torch.empty_like(like)
    kept = vars(_scratch).setdefault("kept", {})
    key = (like.dtype, like.device)
    if key not in kept or kept[key].numel() < like.numel():
        kept[key] = like.new_empty(like.numel())
    return kept[key][: like.numel()].as_strided(like.shape, torch.empty_like(like, device="meta").stride())


def free_scratch() -> None:
    vars(_scratch).pop("kept", None)


def sq_norm(t: Tensor) -> Tensor:
    """Squared norm over all dimensions but the first: ``[n, …] -> [n]``.

    Row by row first: in single precision the error of one sum grows with its length.
    """
    if t.dim() > 2:
        t = torch.linalg.vector_norm(t, dim=tuple(range(2, t.dim())))
    return torch.linalg.vector_norm(t if t.dim() > 1 else t[:, None], dim=1).square()


def added(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.stack(parts).sum(0)


def merged(t: Tensor, layout: Layout, n: int) -> Tensor:
    """``[n * inner, …]`` in any order as ``[n * inner, …]`` with each sample's rows together."""
    return t if layout.rows else layout.split(t, n).flatten(0, 1)


def per_sample(t: Tensor, n: int) -> Tensor:
    """``[n * inner, …] -> [n, …]`` by summing the rows of each sample."""
    return t if t.shape[0] == n else t.unflatten(0, (n, -1)).sum(1)


def tensors(tree: Any) -> Iterator[Tensor]:
    """The tensors in nested tuples, lists and dictionaries."""
    for item in tree.values() if isinstance(tree, dict) else tree:
        if isinstance(item, Tensor):
            yield item
        elif isinstance(item, (tuple, list, dict)):
            yield from tensors(item)


def map_tensors(f: Callable[[Tensor], Any], tree: Any) -> Any:
    """The same nest with ``f`` of each tensor."""
    if isinstance(tree, Tensor):
        return f(tree)
    if isinstance(tree, dict):
        return {k: map_tensors(f, v) for k, v in tree.items()}
    if type(tree) in (tuple, list):
        return type(tree)(map_tensors(f, v) for v in tree)
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(map_tensors(f, v) for v in tree))
    return tree
