"""Functions for taps: each reduces a layer's input or output to one row per image."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .layers import by_channel

_CACHED = 2**19


def as_vector(value: Tensor, layer: nn.Module) -> Tensor:
    """Everything, flattened to one vector per image."""
    return value.flatten(1)


def channel_means(value: Tensor, layer: nn.Module) -> Tensor:
    """Mean of each channel over positions, `[n, C]`."""
    return by_channel(value, layer).mean(2)


def channel_moments(value: Tensor, layer: nn.Module) -> Tensor:
    """Mean and standard deviation of each channel over positions, `[n, 2, C]`."""
    return few_at_a_time(_moments, by_channel(value, layer))


def _moments(x: Tensor) -> Tensor:
    mean = x.mean(2)
    return torch.stack([mean, rms_difference(x, mean[..., None])], 1)


def few_at_a_time(read: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """`read(x)` for images `[n, C, L]`; on a CPU for a few at a time, so that its intermediate results fit in cache."""
    few = max(1, _CACHED // max(1, x[:1].numel())) if x.device.type == "cpu" else max(1, len(x))
    return torch.cat([read(some) for some in x.split(few)])


def rms_difference(x: Tensor, y: Tensor) -> Tensor:
    """Root mean square of `x - y` over positions, `[n, C, L]` and `[n, C, L or 1]` to `[n, C]`.

    Much faster than torch's `std`, and than its `vector_norm` on maps with their channels side by side.
    """
    return F.mse_loss(x, y.expand_as(x), reduction="none").mean(2).sqrt_()


def moment_norms(value: Tensor, layer: nn.Module) -> Tensor:
    """L2 norms over channels of the channels' means and of their standard deviations, `[n, 2]`."""
    return channel_moments(value, layer).norm(dim=2)
