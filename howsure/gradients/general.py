"""The exact path for any other call: its own vector-Jacobian product.

The gradient at the output with all entries but those of sample i set to zero, pulled back through the call, is the
gradient of sample i's loss. No knowledge of the call's inputs is needed, but each of n samples costs the call of all n.
So what ``parts.py`` makes of each sample's part of the inputs alone comes first, where that adds up.
"""

from __future__ import annotations

import warnings
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from .layout import Layout
from .parts import Call, spread
from .rewrites import SOUND
from .rule import Rule
from .weights import Weights


def one_sample_each(d: Tensor, layout: Layout, n: int) -> Tensor:
    """``[n, *d.shape]``: in row i only the entries of sample i are left."""
    return spread(layout.split(d, n), d.shape, layout)


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
    way: dict[int, Layout] | None = None
    """Which guess of how samples lie in the inputs held in an earlier pass; an empty one if none did."""

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

    def all_grads(self, d: Any, layout: Any, n: int) -> dict[Any, Tensor]:
        """Per-sample gradients of all weights; ``d`` and ``layout`` have an item for each output of the call."""
        at = [k for k, g in enumerate(d) if g is not None]
        given = {i: t.detach() for i, t in {**self.arguments, **self.saved}.items() if isinstance(t, Tensor)}
        outputs = lambda tensors: self._outputs(tensors, at)  # noqa: E731
        call = Call(outputs, given, self.weights, [d[k] for k in at], [layout[k] for k in at], n)
        worth = n > 2 and any(given[k].numel() for k in self.weights)
        guesses, known = call.guesses() if worth else [], self.way
        for cut in sorted(guesses, key=lambda cut: cut != known) if known != {} else []:
            found = call.in_parts(cut)
            if found is None:
                continue
            holds = call.adds_up(found)
            if self.doubts is not None and cut == known:
                self.doubts.append(~holds)
                return found
            if holds:
                self.way = cut
                return found
        self.way = {}
        return self._one_after_the_other(call)

    def _one_after_the_other(self, call: Call) -> dict[Any, Tensor]:
        weights = {k: call.given[k].requires_grad_() for k in sorted(self.weights)}
        with torch.enable_grad():
            outs = call.outputs(call.given)
        rows = [one_sample_each(g, where, call.n) for g, where in zip(call.grads, call.layouts, strict=True)]
        pairs = [(o, r) for o, r in zip(outs, rows, strict=True) if o.requires_grad]
        grads = pull_back([o for o, _ in pairs], list(weights.values()), [r for _, r in pairs]) if pairs else []
        found = dict(zip(weights, grads, strict=False))
        return {k: w.new_zeros(call.n, *w.shape) if (g := found.get(k)) is None else g for k, w in weights.items()}

    def _outputs(self, tensors: dict[int, Tensor], at: list[int]) -> list[Tensor]:
        leaves = {**self.arguments, **tensors}
        if self.overwrites:
            leaves[0] = leaves[0].clone()
        with self.autocast:
            out = self.call(leaves)
        outs = [t for t in pytree.tree_leaves(out) if isinstance(t, Tensor)]
        return [outs[k] for k in at]
