"""Normalisation layers: ``y = w x̂ + b`` with x̂ the normalised input.

    grad w = sum d x̂        grad b = sum d        over a sample's positions

Batch normalisation takes x̂ from its running statistics (evaluation mode only); the others from each sample alone.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor

from .device import queued, scratch
from .layout import Layout
from .rewrites import SOUND
from .rule import Rule
from .sums import per_sample

_AFFINE = ("weight", "bias")
CENTRED = 8  # standard deviations from zero up to which a channel's mean need not be subtracted first


def channel_sums(t: Tensor) -> Tensor:
    """``[rows, C, …] -> [rows, C]``."""
    return t.flatten(2).sum(2) if t.dim() > 2 else t


def affine_shift(mean: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """What ``scale * (x - mean) + bias`` adds to ``scale * x``."""
    return -mean * scale if bias is None else torch.addcmul(bias, mean, scale, value=-1)


class SumsOnce:
    """``channel_sums`` of a gradient, computed once for all parameters that need it."""

    _summed: tuple[weakref.ref[Tensor], Tensor] | None = None

    def sums(self, d: Tensor) -> Tensor:
        if self._summed is None or self._summed[0]() is not d:
            self._summed = weakref.ref(d), channel_sums(d)
        return self._summed[1]


class _Scaled(torch.autograd.Function):
    """A call whose output is its input ``x`` times ``scale`` plus a constant: the gradient is one multiplication."""

    @staticmethod
    def forward(ctx, x, run, scale):
        ctx.scale = scale
        return run()

    @staticmethod
    def backward(ctx, d):
        return (d * ctx.scale).to(d.dtype), None, None


class _Norm(Rule):
    needs = ("input",)

    @classmethod
    def accepts(cls, arguments: dict[Any, Any], weights: set[Any]) -> bool:
        return weights <= set(_AFFINE)


class BatchNorm(SumsOnce, _Norm):
    name = "batch norm"

    def describe(self, key: Any, n: int) -> str:
        return "batch norm: sum of " + ("d" if key == "bias" else "d·x̂")

    @classmethod
    def accepts(cls, arguments: dict[Any, Any], weights: set[Any]) -> bool:
        if arguments.get("training") or arguments.get("running_mean") is None:
            if len(arguments["input"]) == 1:  # each channel of each sample by itself, as instance norm may be written
                return False
            raise ValueError(
                "batch normalisation with batch statistics mixes the samples of a batch, so no sample has a gradient of"
                " its own; call model.eval(), and use layers with running statistics"
            )
        unseen = any(isinstance(t, Tensor) and t.requires_grad for key, t in arguments.items() if key != "input")
        return not unseen and super().accepts(arguments, weights)

    def forward(self) -> Any:
        a = self.arguments
        self.call = {key: value for key, value in a.items() if key != "input"}
        x, weight = a["input"], a.get("weight")
        self.shape = (-1,) + (1,) * (x.dim() - 2)
        full = torch.promote_types(x.dtype, torch.float32)
        self.mean = a["running_mean"].to(full)
        self.rstd = torch.rsqrt(a["running_var"].to(full) + a.get("eps", 1e-5))
        # sum d (x - mean) may be taken as sum d x - mean sum d, which saves a pass over the maps, unless that cancels;
        # a GPU is not asked, since its host would wait
        off = torch.linalg.vector_norm(self.mean * self.rstd, torch.inf)
        self.off_centre = queued(x.device) or not off.item() <= CENTRED
        scale = self.rstd if weight is None else self.rstd * weight
        # `batch_norm` gives one of two orders in memory, `addcmul` its input's
        usual = x.is_contiguous() or (x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last))
        plain = usual and x.dtype == full and all(a.get(k) is None or a[k].dtype == full for k in _AFFINE)
        if self.off_centre or not plain:
            return _Scaled.apply(x, super().forward, scale.view(self.shape))
        # as `batch_norm` does it on a CPU, in half the time
        shift = affine_shift(self.mean, scale, a.get("bias"))
        self.settle()
        return torch.addcmul(shift.view(self.shape), x, scale.view(self.shape))

    def grads(self, key: Any, d: Tensor, layout: Layout, n: int) -> Tensor:
        d = layout.merged(d, n)
        sums = self.sums(d)
        if key == "bias":
            return per_sample(sums, n)
        x = layout.merged(self.input("input"), n)
        if self.off_centre:
            x = torch.sub(x, self.mean.view(self.shape), out=scratch(x))
        total = channel_sums(torch.mul(x, d, out=scratch(x)))
        if not self.off_centre:
            total -= self.mean * sums
        return per_sample(total * self.rstd, n)


class LayerNorm(_Norm):
    name = "layer norm"

    def forward(self) -> Any:
        a = self.arguments
        shape, eps = a["normalized_shape"], a.get("eps", 1e-5)
        self.depth = len(shape)
        out, mean, rstd = torch.native_layer_norm(a["input"], shape, a.get("weight"), a.get("bias"), eps)
        self.mean, self.rstd = mean.detach(), rstd.detach()
        self.settle()
        return out

    def fits(self, layout: Layout) -> bool:
        return layout.dim < self.saved["input"].dim() - self.depth

    def sums(self, t: Tensor, layout: Layout, n: int) -> Tensor:
        """Sum over every dimension but the sample and the normalised ones."""
        t = layout.split(t, n)
        middle = t.dim() - 1 - self.depth
        return t.flatten(1, middle).sum(1) if middle else t

    def grads(self, key: Any, d: Tensor, layout: Layout, n: int) -> Tensor:
        if key == "bias":
            return self.sums(d, layout, n)
        x = self.input("input")
        normed = torch.sub(x, self.mean, out=scratch(x)).mul_(self.rstd).mul_(d)
        return self.sums(normed, layout, n)


class RMSNorm(LayerNorm):
    name = "RMS norm"

    def forward(self) -> Any:
        a = self.arguments
        self.depth, self.eps = len(a["normalized_shape"]), a.get("eps")
        return Rule.forward(self)

    def grads(self, key: Any, d: Tensor, layout: Layout, n: int) -> Tensor:
        x = self.input("input")
        eps = torch.finfo(x.dtype).eps if self.eps is None else self.eps
        dims = tuple(range(-self.depth, 0))
        return self.sums(x * torch.rsqrt(x.square().mean(dims, keepdim=True) + eps) * d, layout, n)


class GroupNorm(_Norm):
    name = "group norm"

    def forward(self) -> Any:
        self.func = SOUND.get(self.func, self.func)
        return super().forward()

    def grads(self, key: Any, d: Tensor, layout: Layout, n: int) -> Tensor:
        d = layout.merged(d, n)
        if key == "bias":
            return per_sample(channel_sums(d), n)
        x = layout.merged(self.input("input"), n)
        groups, eps = self.arguments["num_groups"], self.arguments.get("eps", 1e-5)
        normed = SOUND[torch.nn.functional.group_norm](x, groups, None, None, eps)
        return per_sample(channel_sums(normed.mul_(d)), n)
