"""Weibull distributions fitted to the largest distances, for all classes at once."""

from __future__ import annotations

import torch
from torch import Tensor

TRANSLATION = 10_000.0
"""As in libMR, distances are shifted before the fit so that the smallest one of a tail has this value."""


def fit_tails(tails: list[Tensor]) -> Tensor:
    """Maximum-likelihood fits `[K, 3]`: shape, log of the scale, smallest distance; shape 0 for an empty tail.

    With u the standardised logarithms, the shape c is the root of sum(u exp(cu)) / sum(exp(cu)) - mean(u) - 1/c, which
    increases with c; a tail of equal distances gets the steepest shape.
    """
    size = max(1, *(len(t) for t in tails))
    x = torch.stack([torch.nn.functional.pad(t, (0, size - len(t)), value=torch.inf) for t in tails])
    there = x.isfinite()
    count = there.sum(1, keepdim=True).clamp_min(1)
    smallest = torch.where(there, x, torch.inf).amin(1, keepdim=True)
    smallest = torch.where(smallest.isfinite(), smallest, 0.0)
    log_x = torch.where(there, x - smallest, 0.0).div(TRANSLATION).log1p()
    mean = log_x.sum(1, keepdim=True) / count
    std = ((log_x - mean).square() * there).sum(1, keepdim=True).div(count).sqrt().clamp_min(1e-12)
    u = torch.where(there, (log_x - mean) / std, -torch.inf)
    finite = torch.where(there, u, 0.0)
    low, high = torch.full_like(mean, -3.0), torch.full_like(mean, 4.0)
    for _ in range(60):
        log_c = (low + high) / 2
        c = log_c.exp()
        rises = ((c * u).softmax(1) * finite).sum(1, keepdim=True) - 1 / c > 0
        low, high = torch.where(rises, low, log_c), torch.where(rises, log_c, high)
    c = high.exp()
    log_scale = mean + std * ((c * u).logsumexp(1, keepdim=True) - count.log()) / c
    empty = ~there.any(1, keepdim=True)
    fitted = torch.cat([c / std, log_scale, smallest], 1)
    return torch.where(empty, torch.zeros_like(fitted), fitted)


def cdf(distance: Tensor, weibull: Tensor) -> Tensor:
    """Weibull distribution function of distances `[...]` under fits `[..., 3]`; 1 for an empty fit."""
    shape, log_scale, smallest = weibull.unbind(-1)
    log_x = ((distance - smallest) / TRANSLATION).clamp_min(-1 + 1e-12).log1p()
    value = -torch.expm1(-(shape * (log_x - log_scale)).exp())
    return torch.where(shape > 0, value, 1.0)
