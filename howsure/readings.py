"""What taps take of a layer: one row an image."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .layers import by_channel

_CACHED = 2**18


def as_vector(value: Tensor, layer: nn.Module) -> Tensor:
    """All of it, one vector an image."""
    return value.flatten(1)


def channel_means(value: Tensor, layer: nn.Module) -> Tensor:
    """Mean of each channel over positions, `[n, C]`."""
    return by_channel(value, layer).mean(2)


def channel_moments(value: Tensor, layer: nn.Module) -> Tensor:
    """Mean and standard deviation of each channel over positions, `[n, 2, C]`."""
    x = by_channel(value, layer)
    mean = x.mean(2)
    return torch.stack([mean, rms_difference(x, mean[..., None])], 1)


def rms_difference(x: Tensor, y: Tensor) -> Tensor:
    """Root mean square of `x - y` over positions, `[n, C, L]` and `[n, C, L or 1]` to `[n, C]`.

    On a CPU a few images at a time, so that the differences stay in cache: torch's `std` takes ten times as long.
    """
    few = max(1, _CACHED // max(1, x[:1].numel())) if x.device.type == "cpu" else max(1, len(x))
    pairs = zip(x.split(few), y.split(few), strict=True)
    return torch.cat([(a - b).square_().mean(2) for a, b in pairs]).sqrt_()


def moment_norms(value: Tensor, layer: nn.Module) -> Tensor:
    """Norms over channels of the channels' means and of their standard deviations, `[n, 2]`."""
    return channel_moments(value, layer).norm(dim=2)
