"""Calls made in another form: one that shows where weights meet data, or whose gradients are cheap or right."""

from __future__ import annotations

import types
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only


def opened(func: types.FunctionType) -> Callable[..., Any]:
    """``func`` of ``torch.nn.functional`` without its own dispatch, so that the calls in its body are seen."""
    blind = {name: (lambda *_: False) for name in func.__globals__ if name.startswith("has_torch_function")}
    copy = types.FunctionType(
        func.__code__, {**func.__globals__, **blind}, func.__name__, func.__defaults__, func.__closure__
    )
    copy.__kwdefaults__ = func.__kwdefaults__
    return copy


def _sound(norm: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """``norm`` with map and gradient in the same order in memory, and with its own running statistics.

    Torch's gradient (2.14) is wrong for a single row of maps where they differ. Instance norm is a batch norm of one
    row, which in torch 2.10 writes to its running statistics even where it only reads them.
    """

    @wraps(norm)
    def sound(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if len(input) > 1 and "batch" in norm.__name__:
            return norm(input, *args, **kwargs)
        args, kwargs = tree_map_only(Tensor, lambda t: t if t.requires_grad else t.clone(), (args, kwargs))
        out = norm(input.contiguous(), *args, **kwargs)
        if out.requires_grad:
            out.register_hook(lambda d: d.contiguous())
        return out

    return sound


_F = torch.nn.functional
SOUND = {norm: _sound(norm) for norm in (_F.batch_norm, torch.batch_norm, _F.instance_norm, torch.instance_norm)}
"""Calls whose backward pass in torch cannot be trusted, and sound ones to make where no rule takes them."""


def attention(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
    """Scaled dot-product attention step by step, so that a mask made of parameters is a plain addition."""
    if dropout_p or is_causal or enable_gqa or attn_mask is None or attn_mask.dtype == torch.bool:
        raise NotImplementedError
    scores = (query * (query.shape[-1] ** -0.5 if scale is None else scale)) @ key.transpose(-2, -1)
    return (scores + attn_mask).softmax(dim=-1) @ value


def repeat_as_expand(t: Tensor, *sizes: Any) -> Tensor:
    """``t.repeat``, through a view where only dimensions of size one are repeated, whose gradient is a cheap sum."""
    flat = sizes[0] if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)) else sizes
    shape = (1,) * (len(flat) - t.dim()) + tuple(t.shape)
    if any(r > 1 and s != 1 for r, s in zip(flat, shape, strict=True)):
        return t.repeat(*sizes)
    wide = t.reshape(shape).expand([r * s for r, s in zip(flat, shape, strict=True)])
    return wide.clone(memory_format=torch.contiguous_format)
