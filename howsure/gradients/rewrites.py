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


def _exact(norm: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Group ``norm``, for which torch is less exact on maps in channels-last than in the plain format."""

    @wraps(norm)
    def exact(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        last = input.dim() == 4 and input.is_contiguous(memory_format=torch.channels_last)
        if not last or input.is_contiguous() or input.device.type != "cpu":
            return norm(input, *args, **kwargs)
        return norm(input.contiguous(), *args, **kwargs).contiguous(memory_format=torch.channels_last)

    return exact


_F = torch.nn.functional
SOUND: dict[Any, Callable[..., Any]] = {
    **{norm: _sound(norm) for norm in (_F.batch_norm, torch.batch_norm, _F.instance_norm, torch.instance_norm)},
    **{norm: _exact(norm) for norm in (_F.group_norm, torch.group_norm)},
}
"""Calls that torch makes or differentiates wrongly or inexactly, and sound ones to make where no rule makes its own."""


def attention(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
    """Scaled dot-product attention step by step, so that a mask made of parameters is a plain addition."""
    if dropout_p or is_causal or enable_gqa or attn_mask is None or attn_mask.dtype == torch.bool:
        raise NotImplementedError
    scores = (query * (query.shape[-1] ** -0.5 if scale is None else scale)) @ key.transpose(-2, -1)
    return (scores + attn_mask).softmax(dim=-1) @ value


def bilinear(input1: Tensor, input2: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A bilinear layer on vectors as a linear one on all products of their features."""
    if input1.dim() != 2:  # at many positions these would fill the memory
        raise NotImplementedError
    products = input1.unsqueeze(-1) * input2.unsqueeze(-2)
    return _F.linear(products.flatten(-2), weight.flatten(1), bias)


def lstm_cell(input, hx, w_ih, w_hh, b_ih=None, b_hh=None):
    """A step of an LSTM by linear layers."""
    gates = _F.linear(input, w_ih, b_ih) + _F.linear(hx[0], w_hh, b_hh)
    i, f, g, o = gates.chunk(4, -1)
    c = f.sigmoid() * hx[1] + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def gru_cell(input, hx, w_ih, w_hh, b_ih=None, b_hh=None):
    """The same of a GRU."""
    (r, z, n), (rh, zh, nh) = (_F.linear(x, w, b).chunk(3, -1) for x, w, b in ((input, w_ih, b_ih), (hx, w_hh, b_hh)))
    n, z = (n + (r + rh).sigmoid() * nh).tanh(), (z + zh).sigmoid()
    return n + z * (hx - n)


def rnn_tanh_cell(input, hx, w_ih, w_hh, b_ih=None, b_hh=None):
    """The same of a plain recurrent network."""
    return (_F.linear(input, w_ih, b_ih) + _F.linear(hx, w_hh, b_hh)).tanh()


def rnn_relu_cell(input, hx, w_ih, w_hh, b_ih=None, b_hh=None):
    """The same with ReLU."""
    return (_F.linear(input, w_ih, b_ih) + _F.linear(hx, w_hh, b_hh)).relu()


STEPS: dict[Any, Callable[..., Any]] = {
    _F.scaled_dot_product_attention: attention,
    _F.bilinear: bilinear,
    torch.lstm_cell: lstm_cell,
    torch.gru_cell: gru_cell,
    torch.rnn_tanh_cell: rnn_tanh_cell,
    torch.rnn_relu_cell: rnn_relu_cell,
}
"""Calls that meet weights, as several calls for which there are rules."""


def repeat_as_expand(t: Tensor, *sizes: Any) -> Tensor:
    """``t.repeat``, through a view where only dimensions of size one are repeated, whose gradient is a cheap sum."""
    flat = sizes[0] if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)) else sizes
    shape = (1,) * (len(flat) - t.dim()) + tuple(t.shape)
    if any(r > 1 and s != 1 for r, s in zip(flat, shape, strict=True)):
        return t.repeat(*sizes)
    wide = t.reshape(shape).expand([r * s for r, s in zip(flat, shape, strict=True)])
    return wide.clone(memory_format=torch.contiguous_format)
