"""Which rule takes which torch function."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .conv import Conv
from .elementwise import Add, Mul, Sub
from .linear import Linear
from .norm import BatchNorm, GroupNorm, LayerNorm, RMSNorm
from .rule import Rule
from .weights import Weights

_CONV = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_PAIR = ("input", "other")

RULES: dict[Any, tuple[tuple[str, ...], type[Rule]]] = {
    F.linear: (("input", "weight", "bias"), Linear),
    torch.conv1d: (_CONV, Conv),
    torch.conv2d: (_CONV, Conv),
    torch.conv3d: (_CONV, Conv),
    F.batch_norm: (
        ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"),
        BatchNorm,
    ),
    torch.batch_norm: (
        ("input", "weight", "bias", "running_mean", "running_var", "training", "momentum", "eps", "cudnn_enabled"),
        BatchNorm,
    ),
    F.layer_norm: (("input", "normalized_shape", "weight", "bias", "eps"), LayerNorm),
    torch.layer_norm: (("input", "normalized_shape", "weight", "bias", "eps", "cudnn_enable"), LayerNorm),
    F.group_norm: (("input", "num_groups", "weight", "bias", "eps"), GroupNorm),
    torch.group_norm: (("input", "num_groups", "weight", "bias", "eps", "cudnn_enabled"), GroupNorm),
    F.rms_norm: (("input", "normalized_shape", "weight", "eps"), RMSNorm),
    **dict.fromkeys((torch.add, torch.Tensor.add), (_PAIR, Add)),
    **dict.fromkeys((torch.sub, torch.Tensor.sub), (_PAIR, Sub)),
    **dict.fromkeys((torch.mul, torch.Tensor.mul), (_PAIR, Mul)),
}

OUT_OF_PLACE: dict[Any, Any] = {
    **dict.fromkeys((torch.Tensor.add_, torch.Tensor.__iadd__), torch.add),
    **dict.fromkeys((torch.Tensor.sub_, torch.Tensor.__isub__), torch.sub),
    **dict.fromkeys((torch.Tensor.mul_, torch.Tensor.__imul__), torch.mul),
}

_ATEN: Any = torch.ops.aten
EXPORTED = {
    _ATEN.linear.default: F.linear,
    _ATEN.conv1d.default: torch.conv1d,
    _ATEN.conv2d.default: torch.conv2d,
    _ATEN.conv3d.default: torch.conv3d,
    _ATEN.batch_norm.default: torch.batch_norm,
    _ATEN.layer_norm.default: torch.layer_norm,
    _ATEN.group_norm.default: torch.group_norm,
    _ATEN.add.Tensor: torch.add,
    _ATEN.sub.Tensor: torch.sub,
    _ATEN.mul.Tensor: torch.mul,
}
"""Operators as an exported network calls them, and the functions of the same arguments."""


def bind(func: Any, args: tuple, kwargs: dict) -> dict[str, Any]:
    """The arguments of a call that has a rule, by name."""
    return {**dict(zip(RULES[func][0], args, strict=False)), **kwargs}


def rule_for(func: Any, args: tuple, kwargs: dict, among: Weights) -> tuple[Rule | None, dict[Any, Tensor]]:
    """The rule of this call, and its weights by argument name; None if there is none."""
    func = OUT_OF_PLACE.get(func, EXPORTED.get(func, func))
    if func not in RULES:
        return None, {}
    names, rule = RULES[func]
    if len(args) > len(names) or any(key not in names for key in kwargs):
        return None, {}
    arguments, weights = bind(func, args, kwargs), {}
    for key, value in arguments.items():
        if isinstance(value, Tensor):
            if value.is_complex():
                return None, {}
            if among.wants(value):
                weights[key] = value
            arguments[key] = among.strip(value)
    wanted = set(weights)
    return (rule(func, arguments, wanted), weights) if rule.accepts(arguments, wanted) else (None, {})
