"""GROOD, and the representation of its synthetic outliers: features from maps mixed with another class's mean."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pydantic import PositiveInt
from torch import Tensor
from torch.nn import functional as F

from howsure import Batch, Features, Labels, LayerMeans, Logits, Method, Network, Representation, Reps
from howsure.gaussian import class_means
from howsure.layers import by_channel, channels_come_last
from howsure.values import Fraction

from ._neighbours import kth_distance
from ._passes import changed, features


@dataclass(frozen=True)
class MixedFeatures(Representation[Tensor]):
    """Penultimate features after the first stage's map is mixed with the second most likely class's mean, `[N, D]`.

    The map becomes `lam * map + (1 - lam) * mean`, with one mean per channel.
    """

    cost = "passes"
    lam: float = 0.8

    needs = (LayerMeans(), Labels(), Logits())

    def skip(self, network: Network) -> str | None:
        return Features().skip(network)

    def fit(self, train: Reps) -> dict[str, Tensor]:
        name, x = next(iter(train[LayerMeans()].items()))
        return {name: class_means(x, train[Labels()], train[Logits()].shape[1]).float()}

    def compute(self, batch: Batch, **state: Tensor) -> Tensor:
        ((name, means),) = state.items()
        second = batch.logits.topk(min(2, batch.logits.shape[1]), 1).indices[:, -1]
        other = means.to(batch.images.device)[second]

        def mix(output: Tensor) -> Tensor:
            mean = other.unsqueeze(2).type_as(output).expand_as(by_channel(output))
            if channels_come_last(output):
                mean = mean.transpose(1, 2)
            return self.lam * output + (1 - self.lam) * mean.reshape(output.shape)

        with changed(batch.network.model, {name: mix}):
            return features(batch.network, batch.images)


@dataclass(frozen=True)
class Grood(Method):
    """GROOD. ElAraby et al., 2023, arXiv:2312.14427.

    The prototypes μ_c are the mean features of the classes, μ_o is that of synthetic outliers. With L the cross-entropy
    of softmax(-‖h - μ_c‖, …, -‖h - μ_o‖) to the predicted class, g = ∂L / ∂μ_o = p_o (h - μ_o) / ‖h - μ_o‖. score =
    distance of g to its k-th nearest neighbour among those of correctly classified training images; shape [N],
    higher means more uncertain. No backward pass, since g has a closed form; one more forward pass for the outliers.

    A synthetic outlier is a training image whose first feature map is mixed with the mean of the second most likely
    class. The paper mixes in the mean map; here it is the mean of each channel, since the maps of all training images
    would not fit in memory. The authors' code in OpenOOD mixes with lam = 0.5 and by default takes validation outliers
    instead. Classes without training images have no prototype.
    """

    lam: Fraction = 0.8
    k: PositiveInt = 1

    supervision = "id-train"
    grid = {"k": (1, 5, 10)}

    @property
    def needs(self):
        return (Features(), Logits(), Labels(), MixedFeatures(self.lam))

    def fit(self, train: Reps) -> dict[str, Tensor]:
        labels = train[Labels()]
        classes = class_means(train[Features()], labels, train[Logits()].shape[1])[labels.unique()]
        prototypes = torch.cat([classes, train[MixedFeatures(self.lam)].double().mean(0, keepdim=True)])
        right = train[Logits()].argmax(1) == labels
        bank = self._gradients(train, prototypes)
        return {"prototypes": prototypes, "bank": bank[right] if right.any() else bank}

    def score(self, reps: Reps, prototypes: Tensor, bank: Tensor) -> Tensor:
        return kth_distance(self._gradients(reps, prototypes), bank, self.k)

    def _gradients(self, reps: Reps, prototypes: Tensor) -> Tensor:
        h = reps[Features()].double()
        outlier = (-torch.cdist(h, prototypes)).softmax(1)[:, -1:]
        return outlier * F.normalize(h - prototypes[-1], dim=1)
