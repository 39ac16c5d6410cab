"""The representations that many methods share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, cast

import torch
from torch import Tensor, nn

from .layers import module
from .losses import Confound, Loss
from .readings import as_vector, channel_means, channel_moments, moment_norms
from .representation import Batch, Representation, Tap

if TYPE_CHECKING:
    from .network import Network

_EPSILON = 1e-20
NO_LAYERS = "no normalisation, convolution or linear layer before the last gives one row per image"


@dataclass(frozen=True)
class Logits(Representation[Tensor]):
    """The network's output, `[N, C]`, float32."""

    def compute(self, batch: Batch, **state: Tensor) -> Tensor:
        return batch.logits


@dataclass(frozen=True)
class Labels(Representation[Tensor]):
    """True class indices `[N]`, int64; meaningless for images that belong to no known class."""

    cost = "free"
    fit_only = True

    def compute(self, batch: Batch, **state: Tensor) -> Tensor:
        return batch.labels


@dataclass(frozen=True)
class ImageIds(Representation[Tensor]):
    """A 63-bit hash of each image's pixels, `[N]`, int64; a corrupted image has the hash of the clean one."""

    cost = "free"
    fit_only = True

    def compute(self, batch: Batch, **state: Tensor) -> Tensor:
        return batch.ids


class HeadWeights(NamedTuple):
    """The last linear layer: `weight [C, D]` and `bias [C]` (zeros if the layer has none)."""

    weight: Tensor
    bias: Tensor


@dataclass(frozen=True)
class Head(Representation[HeadWeights]):
    """The last linear layer of the network, as `HeadWeights`; independent of the images.

    A 1×1 convolution of a map with one position counts as linear. If the logits are the mean of several layers
    (distillation), these are merged into one layer on their concatenated inputs.
    """

    cost = "free"
    per_image = False

    def skip(self, network: Network) -> str | None:
        return None if network.heads else "the logits are neither the output of a linear layer nor the mean of several"

    def compute(self, batch: Batch, **state: Tensor) -> HeadWeights:
        heads = _heads(batch.network)
        weight = torch.cat([head.weight.detach().float().flatten(1) for head in heads], 1) / len(heads)
        biases = [head.bias.detach().float() for head in heads if head.bias is not None]
        return HeadWeights(
            weight, torch.stack(biases).sum(0) / len(heads) if biases else torch.zeros_like(weight[:, 0])
        )

    def pack(self, value: HeadWeights) -> dict[str, Tensor]:
        return value._asdict()

    def unpack(self, arrays: dict[str, Tensor]) -> HeadWeights:
        return HeadWeights(**arrays)


@dataclass(frozen=True)
class HasBias(Representation[Tensor]):
    """Whether the last linear layer has a bias, bool `[1]`, which `Head` does not say; independent of the images."""

    cost = "free"
    per_image = False

    def compute(self, batch: Batch, **state: Tensor) -> Tensor:
        return torch.tensor([any(head.bias is not None for head in _heads(batch.network))])


def _heads(network: Network) -> list[nn.Linear | nn.Conv2d]:
    return [cast(nn.Linear | nn.Conv2d, module(network.model, name)) for name in network.heads]


@dataclass(frozen=True)
class Features(Representation[Tensor]):
    """Penultimate features: the input of the last linear layer, `[N, D]`; of several such layers, concatenated."""

    def skip(self, network: Network) -> str | None:
        return Head().skip(network)

    def taps(self, network: Network) -> tuple[Tap, ...]:
        return tuple(Tap(name, as_vector, "input") for name in network.heads)

    def compute(self, batch: Batch, **state: Tensor) -> Tensor:
        return torch.cat([batch.readings[tap] for tap in self.taps(batch.network)], 1)


@dataclass(frozen=True)
class LayerMeans(Representation[dict[str, Tensor]]):
    """Channel means of feature maps, `{layer: [N, C_l]}`.

    `layers` are dotted names; by default the last layer of each stage of the network (`howsure.layers.stages`).
    """

    layers: tuple[str, ...] | None = None

    def skip(self, network: Network) -> str | None:
        return None if self.layers or network.stages else "channel means need a feature map; the network has none"

    def taps(self, network: Network) -> tuple[Tap, ...]:
        names = self.layers or network.stages
        return tuple(Tap(name, channel_means) for name in names)

    def compute(self, batch: Batch, **state: Tensor) -> dict[str, Tensor]:
        return {tap.layer: batch.readings[tap] for tap in self.taps(batch.network)}


@dataclass(frozen=True)
class LayerMoments(Representation[dict[str, Tensor]]):
    """Mean and standard deviation over positions of each normalisation layer's channels, `{layer: [N, 2, C_l]}`.

    A network without normalisation layers gives those of its convolution and linear layers but the last. Layers whose
    output does not have one row per image are left out.
    """

    def skip(self, network: Network) -> str | None:
        return None if network.norms else NO_LAYERS

    def taps(self, network: Network) -> tuple[Tap, ...]:
        return tuple(Tap(name, channel_moments) for name in network.norms)

    def compute(self, batch: Batch, **state: Tensor) -> dict[str, Tensor]:
        return {tap.layer: batch.readings[tap] for tap in self.taps(batch.network)}


@dataclass(frozen=True)
class ActivationNorms(Representation[Tensor]):
    """Logs of the L2 norms of the two rows of `LayerMoments`, for each of the L layers, `[N, 2L]`."""

    def skip(self, network: Network) -> str | None:
        return LayerMoments().skip(network)

    def taps(self, network: Network) -> tuple[Tap, ...]:
        return tuple(Tap(name, moment_norms) for name in network.norms)

    def compute(self, batch: Batch, **state: Tensor) -> Tensor:
        norms = torch.cat([batch.readings[tap] for tap in self.taps(batch.network)], 1)
        return norms.clamp_min(_EPSILON).log()


@dataclass(frozen=True)
class GradNorms(Representation[Tensor]):
    """Squared L2 norms of the loss gradient, `[N, P]`: one column per parameter set in `model.named_parameters()`.

    The representation of Lee & AlRegib, 2020, arXiv:2008.08030; by default with their all-ones confounding label.
    """

    cost = "backward"
    loss: Loss = field(default_factory=Confound)

    def skip(self, network: Network) -> str | None:
        return self.loss.skip(network.num_classes)

    def losses(self) -> tuple[Loss, ...]:
        return (self.loss,)

    def compute(self, batch: Batch, **state: Tensor) -> Tensor:
        return batch.grads[self.loss].sq_norms


@dataclass(frozen=True)
class SmallGrads(Representation[Tensor]):
    """Gradients of the one-dimensional parameters (biases, scales and shifts of normalisation), `[N, Q]`."""

    cost = "backward"
    small = True
    loss: Loss = field(default_factory=Confound)

    def skip(self, network: Network) -> str | None:
        return self.loss.skip(network.num_classes)

    def losses(self) -> tuple[Loss, ...]:
        return (self.loss,)

    def compute(self, batch: Batch, **state: Tensor) -> Tensor:
        small = batch.grads[self.loss].small
        assert small is not None
        return small
