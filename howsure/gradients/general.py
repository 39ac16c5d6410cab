"""The exact path for any other call: its own vector-Jacobian product.

The gradient at the output with all entries but those of sample i set to zero, pulled back through the call, is the
gradient of sample i's loss. This needs no knowledge of the call's inputs, but each of n samples costs the call of all
n. So the call is first tried on each sample's part of the inputs alone (``parts.py``), and that taken where it adds up.
"""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from .layout import Layout
from .parts import Call
from .rewrites import SOUND
from .rule import Rule
from .weights import Weights


def autocasting(kind: str, enabled: bool | None = None) -> Any:
    """Autocast on devices of this kind as it is now, or on or off, to be entered again later."""
    if not torch.amp.is_autocast_available(kind):
        return nullcontext()
    enabled = torch.is_autocast_enabled(kind) if enabled is None else enabled
    return torch.autocast(kind, torch.get_autocast_dtype(kind), enabled, cache_enabled=False)


_SPARSE = {"embedding": 4, "embedding_bag": 5}
"""Calls whose fourth argument scales gradients by frequency, and the position of the one that makes them sparse."""


class General(Rule):
    """Any call. Weights are keyed by their position among its flattened arguments."""

    name = "general path: vector-Jacobian product of the call, sample by sample"
    guess: dict[int, Layout] | None = None
    """How samples lie in the inputs, as an earlier pass found; empty if no guess held, None if none was made."""

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
            raise RuntimeError(
                "an embedding scales its gradient by how often each index occurs in the whole batch, so no sample has a"
                " gradient of its own; leave scale_grad_by_freq off"
            )
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

    def all_grads(self, d: Any, layout: Any, n: int) -> dict[Any, Tensor]:
        """Per-sample gradients of all weights; ``d`` and ``layout`` have an item for each output of the call."""
        at = [k for k, g in enumerate(d) if g is not None]
        given = {i: t.detach() for i, t in {**self.arguments, **self.saved}.items() if isinstance(t, Tensor)}
        outputs = partial(self._outputs, at)
        call = Call(outputs, given, self.weights, [d[k] for k in at], [layout[k] for k in at], n)
        found = self._in_parts(call)
        if found is None:
            self.guess = {}
            return call.one_after_the_other()
        return found

    def _in_parts(self, call: Call) -> dict[int, Tensor] | None:
        """What the first guess that holds gives, the known one before others; None where none does."""
        known = self.guess
        if known == {} or call.n <= 2 or not any(call.given[k].numel() for k in self.weights):
            return None
        for cut in sorted(call.guesses(), key=lambda cut: cut != known):
            found = call.in_parts(cut)
            if found is None:
                continue
            holds = call.adds_up(found)
            if self.doubts is not None and cut == known:
                self.doubts.append(~holds)
                return found
            if holds:
                self.guess = cut
                return found
        return None

    def _outputs(self, at: list[int], tensors: dict[int, Tensor]) -> list[Tensor]:
        """The call's outputs number ``at``, with these tensors among its arguments."""
        leaves = {**self.arguments, **tensors}
        if self.overwrites:
            leaves[0] = leaves[0].clone()
        with self.autocast:
            out = self.call(leaves)
        outs = [t for t in pytree.tree_leaves(out) if isinstance(t, Tensor)]
        return [outs[k] for k in at]
