"""Calls made in another form, in which the places where weights meet data are seen, or their gradients are cheap."""

from __future__ import annotations

import types
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor

FLIPPED = {torch.Tensor.__radd__: torch.Tensor.add, torch.Tensor.__rmul__: torch.Tensor.mul}
"""A weight on the left, in the order that the rules know."""


def opened(func: types.FunctionType) -> Callable[..., Any]:
    """``func`` of ``torch.nn.functional`` without its own dispatch, so that the calls in its body are seen."""
    blind = {name: (lambda *_: False) for name in func.__globals__ if name.startswith("has_torch_function")}
    copy = types.FunctionType(
        func.__code__, {**func.__globals__, **blind}, func.__name__, func.__defaults__, func.__closure__
    )
    copy.__kwdefaults__ = func.__kwdefaults__
    return copy


def _sound(norm: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """As torch's, whose gradient is wrong (in 2.14) for a single row of maps that lies in memory in one order and its
    gradient in another: both are put in the same. Instance norm is a batch norm of one row."""

    @wraps(norm)
    def sound(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if len(input) > 1 and "batch" in norm.__name__:
            return norm(input, *args, **kwargs)
        out = norm(input.contiguous(), *args, **kwargs)
        if out.requires_grad:
            out.register_hook(lambda d: d.contiguous())
        return out

    return sound


_F = torch.nn.functional
SOUND = {norm: _sound(norm) for norm in (_F.batch_norm, torch.batch_norm, _F.instance_norm, torch.instance_norm)}
"""What torch's own backward pass must not be trusted with, where no rule takes it."""


def attention(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
    """Scaled dot product attention in single steps, so that a mask made of parameters is a plain addition."""
    if dropout_p or is_causal or enable_gqa or attn_mask is None or attn_mask.dtype == torch.bool:
        raise NotImplementedError
    scores = (query * (query.shape[-1] ** -0.5 if scale is None else scale)) @ key.transpose(-2, -1)
    return (scores + attn_mask).softmax(dim=-1) @ value


def repeat_as_expand(t: Tensor, *sizes: Any) -> Tensor:
    """``t.repeat``; by way of a view where only dimensions of size one are repeated: its gradient is a cheap sum."""
    flat = sizes[0] if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)) else sizes
    shape = (1,) * (len(flat) - t.dim()) + tuple(t.shape)
    if any(r > 1 and s != 1 for r, s in zip(flat, shape, strict=True)):
        return t.repeat(*sizes)
    wide = t.reshape(shape).expand([r * s for r, s in zip(flat, shape, strict=True)])
    return wide.clone(memory_format=torch.contiguous_format)
