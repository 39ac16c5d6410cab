"""A place where weights met data, and what it keeps until the gradient at its output arrives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .layout import Layout
from .rule import Rule


class Site:
    """One call in which weights met data: number ``meeting`` of such calls, number ``index`` of those with a site."""

    def __init__(
        self, index: int, meeting: int, rule: Rule, weights: dict[Any, Tensor], label: str, outputs: list[Tensor]
    ):
        self.index, self.meeting, self.rule, self.weights, self.label = index, meeting, rule, weights, label
        self.shapes = tuple(tuple(t.shape) for t in outputs)
        self.half = any(t.dtype == torch.float16 for t in outputs)
        self.layout: tuple[Layout, ...] = ()
        """Of each output."""
        self._weight_versions = {key: t._version for key, t in weights.items()}
        self._input_versions = {key: t._version for key, t in rule.saved.items()}

    def check_inputs(self) -> None:
        for key, version in self._input_versions.items():
            if self.rule.saved[key]._version != version:
                raise RuntimeError(
                    f"the input of {self.label} was overwritten in place after it was used, so its gradient is lost"
                    " (ordinary autograd refuses this too); make the later operation out of place"
                )

    def check_weight(self, key: Any) -> None:
        if self.weights[key]._version != self._weight_versions[key]:
            raise RuntimeError(
                f"{self.label} was changed in place after it was used, so what it was made of at that time is lost;"
                " make the change out of place"
            )

    def keep_copy(self, key: Any) -> None:
        """Copy an input that is about to be overwritten."""
        self.rule.saved[key] = self.rule.saved[key].clone()
        self._input_versions[key] = self.rule.saved[key]._version

    def release(self) -> None:
        """Let go of the inputs, which no later pass needs."""
        self.rule.saved, self._input_versions = {}, {}


class Start(torch.autograd.Function):
    """Makes the output of a first site require grad though neither its input nor its weights do."""

    @staticmethod
    def forward(ctx, anchor, run):
        return run()

    @staticmethod
    def backward(ctx, *grads):
        return None, None


def start(anchor: Tensor, run: Callable[[], Any]) -> Any:
    """What ``run`` gives, requiring grad as ``anchor`` does."""
    made: list[Any] = []

    def once() -> Any:
        made.append(run())
        return made[0]

    out = Start.apply(anchor, once)
    return out if isinstance(out, Tensor) else like(made[0], out)


def like(outputs: Any, others: tuple[Tensor, ...]) -> Any:
    """The tensors of a call's ``others`` named as its ``outputs`` are, where these have names."""
    return others if type(outputs) in (tuple, list) else type(outputs)(others)


class Tie(torch.autograd.Function):
    """Ties the outputs of one call together, so that their gradients arrive at the same time."""

    @staticmethod
    def forward(ctx, sink, *outputs):
        ctx.sink = sink
        ctx.set_materialize_grads(True)
        return tuple(o.clone() for o in outputs)

    @staticmethod
    def backward(ctx, *grads):
        ctx.sink(grads)
        return (None, *grads)
