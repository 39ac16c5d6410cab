"""Compares what a network gives for images alone and among others."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from .caches import caches_aside
from .parameters import Contents, requires_grad, select

_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-2}  # of logits in other company, relative to the largest
_AGAIN = 1e-3  # the same, as a fraction of it, of the same images' logits in another pass
_MET = 1e-3  # of the summed gradient of images that a network sorts or routes, relative to that of each alone


def doubt_of_logits(net: Contents, x: Tensor) -> str:
    """What is wrong with the logits of the first images: they differ when all of ``x`` are in the batch, or after the
    network, which changes its buffers, has seen others; empty if nothing."""
    few = min(2, len(x) - 1)
    kept = {name: b.clone() for name, b in net.model.named_buffers()}
    with _as_in_a_pass(net):
        alone, among = (net.model(part.detach().clone()) for part in (x[:few], x))
        changed = [name for name, b in net.model.named_buffers() if name in kept and not _equal(kept[name], b)]
        again = net.model(x[:few].detach().clone()) if changed else alone
    if not all(isinstance(z, Tensor) and z.dim() == 2 and z.is_floating_point() for z in (alone, among, again)):
        return ""
    off, later = (_off(alone, z[:few], among) for z in (among, again))
    bound = _TOLERANCE.get(among.dtype, 0.1)
    if later > _AGAIN * bound:
        return (
            f"the network changes {changed[0]} in each forward pass, and with it the logits (by {later:.1e} of the"
            " largest), so they depend on the images seen before; switch that off (observers of quantisation-aware"
            " training: model.apply(torch.ao.quantization.disable_observer))"
        )
    if off > bound:
        return (
            f"the logits of an image depend on the other images of the batch, or on chance (they differ by {off:.1e} of"
            " the largest), so no image has a gradient of its own; use running statistics, and no dropout"
        )
    return ""


def same_alone(net: Contents, x: Tensor) -> bool:
    """Whether samples have the same logits alone as in the batch, but for rounding, and gradients with the same sum."""
    watched = list(select(net, None).values())

    def pulled(logits: Tensor, seed: Tensor) -> Sequence[Tensor]:
        return torch.autograd.grad(logits, watched, seed, materialize_grads=True)

    try:
        with _as_in_a_pass(net):
            among, each = net.model(x.detach().clone()), []
            seed = torch.randn(among.shape, generator=torch.Generator().manual_seed(0), device="cpu").to(among)
            sums = [torch.zeros_like(p) for p in watched]
            for image, its in zip(x.split(1), seed.split(1), strict=True):
                each.append(net.model(image.detach().clone()))
                sums = [total + g for total, g in zip(sums, pulled(each[-1], its), strict=True)]
            alike = [bool((g - s).norm() <= _MET * g.norm()) for g, s in zip(pulled(among, seed), sums, strict=True)]
    except Exception:  # the network takes no single image
        return False
    bound = _AGAIN * _TOLERANCE.get(among.dtype, 0.1)
    return all(alike) and _off(torch.cat(each), among, among) <= bound


@contextmanager
def _as_in_a_pass(net: Contents) -> Iterator[None]:
    with (
        torch.enable_grad(),
        caches_aside(net.modules.values()),
        requires_grad(net, select(net, None).values()),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield


def _equal(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.to_dense(), b.to_dense()) if a.layout != torch.strided else torch.equal(a, b)


def _off(logits: Tensor, others: Tensor, among: Tensor) -> float:
    """The largest difference, relative to the largest number in ``among``."""
    largest = among.detach().abs().amax().clamp_min(torch.finfo(among.dtype).tiny)
    return float((logits - others).detach().abs().amax() / largest)
