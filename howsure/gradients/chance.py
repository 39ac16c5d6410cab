"""Refuses networks whose logits depend on chance."""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

from torch import Tensor, nn

from .trees import tensors

_DROPOUTS = {
    *("dropout", "dropout_", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "alpha_dropout_"),
    *("feature_dropout", "feature_dropout_", "feature_alpha_dropout", "feature_alpha_dropout_", "native_dropout"),
}
_DRAWS = {
    *("rand", "randn", "randint", "randperm", "rand_like", "randn_like", "randint_like", "normal", "normal_"),
    *("poisson", "bernoulli", "bernoulli_", "uniform_", "exponential_", "geometric_", "cauchy_", "log_normal_"),
    *("random_", "multinomial", "binomial", "gumbel_softmax"),
}
_CHANCE = {
    *_DROPOUTS,
    *("lstm", "gru", "rnn_tanh", "rnn_relu", "rrelu", "rrelu_"),
    *("scaled_dot_product_attention", "multi_head_attention_forward"),
}


class Chance:
    """Watches the calls of one pass through ``model``, which may draw random numbers but not use them."""

    def __init__(self, model: nn.Module):
        self.model = model
        self.drawn: dict[int, tuple[str, Tensor]] = {}
        """Random numbers, and the call that drew them."""

    def check(self, name: str, args: tuple, kwargs: dict) -> None:
        """Raise ``RuntimeError`` where a call gives a different result each time, or reads what was drawn."""
        if name in _CHANCE and _by_chance(name, args, kwargs):
            raise RuntimeError(_refusal(self.model, name))
        for t in tensors((args, kwargs)) if self.drawn else ():
            if id(t) in self.drawn:
                raise RuntimeError(_refusal(self.model, self.drawn[id(t)][0]))

    def note(self, name: str, out: Any) -> None:
        self.drawn |= {id(t): (name, t) for t in tensors((out,))}


def draws(name: str, kwargs: dict) -> bool:
    """Whether a call draws numbers without a generator of its own."""
    return name in _DRAWS and kwargs.get("generator") is None


def _by_chance(name: str, args: tuple, kwargs: dict) -> bool:
    """Whether a call of one of ``_CHANCE`` gives a different result each time."""
    if name in _DROPOUTS:
        p = args[1] if len(args) > 1 else kwargs.get("p", 0.5)
        on = args[2] if len(args) > 2 else kwargs.get("training", kwargs.get("train", "alpha" not in name))
        return bool(p and on)
    if name == "scaled_dot_product_attention":
        return bool(args[4] if len(args) > 4 else kwargs.get("dropout_p"))
    if name == "multi_head_attention_forward":
        p, on = (args[at] if len(args) > at else kwargs.get(key) for at, key in ((10, "dropout_p"), (13, "training")))
        return bool(p) and on is not False
    if name.startswith("rrelu"):
        return bool(args[3] if len(args) > 3 else kwargs.get("training"))
    recurrent = zip(args, args[1:], args[2:], strict=False)  # …, number of layers, dropout, training, …
    return any(type(p) is float and p > 0 and on is True and layers > 1 for layers, p, on in recurrent)


def _refusal(model: nn.Module, name: str) -> str:
    layers = {id(m): f"{layer} ({type(m).__name__})" for layer, m in model.named_modules() if layer}
    frame: FrameType | None = sys._getframe()
    while frame is not None and id(frame.f_locals.get("self")) not in layers:
        frame = frame.f_back
    return (
        f"{layers[id(frame.f_locals['self'])] if frame else 'the network'} draws random numbers ({name}), so the"
        " logits depend on chance and no sample has a gradient of its own; call model.eval(), or seed a generator"
    )
