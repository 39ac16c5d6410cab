"""Attribution gradients at feature maps, for both forms of GAIA."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from howsure import Batch, Network, Representation
from howsure.layers import by_channel, module

from ._passes import recorded, tracked

_MAPS: WeakKeyDictionary[Network, Maps] = WeakKeyDictionary()
LEAST_ZEROS = 0.05
NO_MAPS = "GAIA needs feature maps [N, C, H, W] or [N, H, W, C] after normalisation layers; the network has none"


class Maps(NamedTuple):
    """Names of layers whose output is a map, `[N, C, H, W]` or `[N, H, W, C]`."""

    norms: tuple[str, ...]
    """Normalisation layers."""
    inner: tuple[str, ...]
    """Those normalisation layers whose map is not that of the last stage."""
    last: str | None
    """The last layer of the last stage."""


def feature_maps(network: Network) -> Maps:
    """The layers that GAIA uses, found by a pass over random images."""
    if network not in _MAPS:
        example = network.example()
        names, last = tuple(network.norms), network.stages[-1:]
        with torch.no_grad(), recorded(network.model, tuple(dict.fromkeys([*names, *last]))) as outputs:
            network.model(example)
        maps = {name: out for name, out in outputs.items() if out.dim() == 4 and len(out) == len(example)}
        norms, end = tuple(n for n in names if n in maps), next((n for n in last if n in maps), None)
        inner = tuple(n for n in norms if end is None or not torch.equal(maps[n], maps[end]))
        _MAPS[network] = Maps(norms, inner, end)
    return _MAPS[network]


@dataclass(frozen=True)
class NonZeroShare(Representation[Tensor]):
    """Share of positions where the gradient of the top logit is not zero, for each channel of each map, `[N, ΣC]`."""

    cost = "passes"
    reads_logits = False

    def skip(self, network: Network) -> str | None:
        if not feature_maps(network).norms:
            return NO_MAPS
        shares = self._shares(network, network.example())
        enough = 1 - shares[shares > 0].mean() >= LEAST_ZEROS
        return None if enough else "hardly any gradient at its normalisation layers is zero: no ReLU follows"

    def compute(self, batch: Batch, **state: Tensor) -> Tensor:
        return self._shares(batch.network, batch.images)

    def _shares(self, network: Network, images: Tensor) -> Tensor:
        names = feature_maps(network).norms
        with torch.enable_grad(), recorded(network.model, names) as outputs:
            top = network.model(tracked(images)).amax(1).sum()
            gradients = torch.autograd.grad(top, [outputs[name] for name in names])
        return torch.cat([_means(network, n, (g != 0).float()) for n, g in zip(names, gradients, strict=True)], 1)


@dataclass(frozen=True)
class AverageGradients(Representation[dict[str, Tensor]]):
    """Channel means of gradients: `inner [N, ΣC]`, of the last map's sum at the inner maps; `output [N, C]`, of Σ log p
    at the last map."""

    cost = "passes"
    reads_logits = False

    def skip(self, network: Network) -> str | None:
        maps = feature_maps(network)
        return None if maps.inner and maps.last else NO_MAPS

    def compute(self, batch: Batch, **state: Tensor) -> dict[str, Tensor]:
        _, inner, last = feature_maps(batch.network)
        assert last is not None
        model: nn.Module = batch.network.model
        with torch.enable_grad(), recorded(model, (*inner, last)) as outputs:
            total = model(tracked(batch.images)).log_softmax(1).sum()
            (output,) = torch.autograd.grad(total, outputs[last], retain_graph=True)
            maps = [outputs[name] for name in inner]
            found = torch.autograd.grad(outputs[last].sum(), maps, allow_unused=True, materialize_grads=True)
        means = [_means(batch.network, name, g) for name, g in zip(inner, found, strict=True)]
        return {"inner": torch.cat(means, 1), "output": _means(batch.network, last, output)}


def _means(network: Network, name: str, values: Tensor) -> Tensor:
    """Channel means `[N, C]` over positions, of values in the layout of a layer's map."""
    return by_channel(values, module(network.model, name)).mean(2)
