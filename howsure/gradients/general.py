"""The exact path for any other call: its own vector-Jacobian product, with one sample's output gradient at a time.

The gradient at the output with all entries but those of sample i set to zero, pulled back through the call, is the
gradient of sample i's loss. No knowledge of the call's inputs is needed. All samples go through one vectorised
product (``is_grads_batched``), or one after the other where the call has no batching rule.
"""

from __future__ import annotations

import warnings
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from .layout import Layout
from .rewrites import SOUND
from .rule import Rule
from .weights import Weights


def one_sample_each(d: Tensor, layout: Layout, n: int) -> Tensor:
    """``[n, *d.shape]``: in row i only the entries of sample i are left."""
    rows = d.new_zeros(n, *d.shape)
    apart = Layout(layout.dim + 1, layout.after, layout.before).apart(rows, n)
    at = torch.arange(n, device=d.device)
    apart[at, at] = layout.apart(d, n)
    return rows


def pull_back(outputs: list[Tensor], inputs: list[Tensor], rows: list[Tensor]) -> list[Tensor | None]:
    """For each row of output gradients ``[n, …]``, the gradients of ``inputs``: a list of ``[n, *shape]`` or None."""

    def once(seeds: list[Tensor], batched: bool) -> tuple[Tensor | None, ...]:
        return torch.autograd.grad(
            outputs, inputs, seeds, retain_graph=True, is_grads_batched=batched, allow_unused=True
        )

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            return list(once(rows, True))
    except (RuntimeError, UserWarning, NotImplementedError):
        each = [once([r[i] for r in rows], False) for i in range(rows[0].shape[0])]
        return [
            None if all(g is None for g in gs) else torch.stack([g for g in gs if g is not None])
            for gs in zip(*each, strict=True)
        ]


def autocasting(kind: str, enabled: bool | None = None) -> Any:
    """Automatic mixed precision on devices of this kind as it is now, or on or off, to be entered again later."""
    if not torch.amp.is_autocast_available(kind):
        return nullcontext()
    enabled = torch.is_autocast_enabled(kind) if enabled is None else enabled
    return torch.autocast(kind, torch.get_autocast_dtype(kind), enabled, cache_enabled=False)


_SPARSE = {"embedding": 4, "embedding_bag": 5}
"""Calls whose fourth argument scales gradients by frequency, and where they are asked for sparse ones."""


class General(Rule):
    """Any call. Weights are keyed by their position among its flattened arguments."""

    name = "general path: vector-Jacobian product of the call, sample by sample"

    def __init__(self, func: Any, leaves: list[Any], spec: Any, weights: set[int], overwrites: bool):
        self.func, self.arguments, self.spec, self.weights = func, dict(enumerate(leaves)), spec, weights
        self.overwrites = overwrites
        self.autocast = autocasting(self.arguments[next(iter(weights))].device.type)
        self.saved = {i: t for i, t in self.arguments.items() if isinstance(t, Tensor) and i not in weights}
        if overwrites:
            self.saved[0] = self.arguments[0].detach().clone()

    @classmethod
    def bind(
        cls,
        func: Any,
        args: tuple,
        kwargs: dict,
        among: Weights,
        overwrites: bool = False,
    ) -> tuple[General, dict[int, Tensor]]:
        sparse = _SPARSE.get(getattr(func, "__name__", ""))
        if sparse is not None and any(args[3:4]):
            raise RuntimeError("an embedding that scales its gradient by frequency counts those of the whole batch")
        if sparse is not None and any(args[sparse : sparse + 1]):
            args = (*args[:sparse], False, *args[sparse + 1 :])  # a dense gradient of the same entries
        func = SOUND.get(func, func)
        leaves, spec = pytree.tree_flatten((args, kwargs))
        weights = {i: t for i, t in enumerate(leaves) if isinstance(t, Tensor) and among.wants(t)}
        plain = [among.strip(t) if isinstance(t, Tensor) else t for t in leaves]
        return cls(func, plain, spec, set(weights), overwrites), weights

    def call(self, leaves: dict[int, Any]) -> Any:
        args, kwargs = pytree.tree_unflatten([leaves[i] for i in range(len(leaves))], self.spec)
        out = self.func(*args, **kwargs)
        return args[0] if self.overwrites else out

    def forward(self) -> Any:
        out = self.call(self.arguments)
        self.settle()
        return out

    def fits(self, layout: Layout) -> bool:
        return True

    def grads(self, key: Any, d: Any, layout: Any, n: int) -> Tensor:
        """As every rule, but with tuples: one gradient and one layout for each output of the call."""
        leaves = {**self.arguments, **{i: t.detach() for i, t in self.saved.items()}}
        if self.overwrites:
            leaves[0] = leaves[0].clone()
        with torch.enable_grad(), self.autocast:
            weight = leaves[key] = self.arguments[key].detach().requires_grad_()
            out = self.call(leaves)
        outs = [out] if isinstance(out, Tensor) else [t for t in pytree.tree_leaves(out) if isinstance(t, Tensor)]
        pairs = [
            (o, one_sample_each(g, where, n))
            for o, g, where in zip(outs, d, layout, strict=True)
            if o.requires_grad and g is not None
        ]
        if not pairs:
            return weight.new_zeros(n, *weight.shape)
        (grad,) = pull_back([o for o, _ in pairs], [weight], [r for _, r in pairs])
        return weight.new_zeros(n, *weight.shape) if grad is None else grad
