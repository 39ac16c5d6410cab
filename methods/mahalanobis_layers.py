"""Mahalanobis distance at several layers, and the representation it scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import NonNegativeFloat
from torch import Tensor

from howsure import Batch, Labels, LayerMeans, Method, Network, Representation, Reps, Tap
from howsure.detector import fit_detector, score_detector
from howsure.gaussian import class_means, sq_distances
from howsure.layers import module
from howsure.readings import channel_means
from howsure.values import Fraction

from ._gaussians import whiten
from ._passes import gradient_at, output_at, recorded, tracked


@dataclass(frozen=True)
class LayerDistances(Representation[Tensor]):
    """Smallest squared Mahalanobis distance to a class mean at each layer, `[N, L]`, float64.

    Distances are between channel means of feature maps, with one covariance per layer for all classes. For each layer
    the input first moves by `epsilon` (in pixel values) so as to reduce that layer's distance, along the sign of its
    gradient. Layers that are constant on the training images (dead ones) are left out. `shrinkage` is the weight of
    each covariance's own diagonal.
    """

    cost = "passes"
    reads_logits = False
    epsilon: float = 0.0014
    shrinkage: float = 0.0

    needs = (LayerMeans(), Labels())

    def taps(self, network: Network) -> tuple[Tap, ...]:
        return () if self.epsilon else LayerMeans().taps(network)

    def fit(self, train: Reps) -> dict[str, Tensor]:
        classes, labels = train[Labels()].unique(return_inverse=True)
        state, layers = {}, train[LayerMeans()]
        live = {name: x for name, x in layers.items() if (x != x[0]).any()}
        for i, (name, x) in enumerate((live or layers).items()):
            means = class_means(x, labels, len(classes))
            state[f"{i:03d} means {name}"] = means
            state[f"{i:03d} whiten {name}"] = whiten(x.double() - means[labels], self.shrinkage)
        return state

    def compute(self, batch: Batch, **state: Tensor) -> Tensor:
        gaussians: dict[str, list[Tensor]] = {}
        for key in sorted(state):  # "000 means LAYER", "000 whiten LAYER", "001 means …"
            gaussians.setdefault(key.split(" ", 2)[2], []).append(state[key].to(batch.images.device))
        if not self.epsilon:
            readings = LayerMeans().compute(batch)
            return torch.stack([_closest(readings[name], *gaussian) for name, gaussian in gaussians.items()], 1)
        return self._stepped(batch, gaussians)

    def _stepped(self, batch: Batch, gaussians: dict[str, list[Tensor]]) -> Tensor:
        model, columns = batch.network.model, []
        gradients = batch.share("layer distances", lambda: _gradients(batch, gaussians))
        for (name, gaussian), gradient in zip(gaussians.items(), gradients, strict=True):
            with torch.no_grad():
                moved = output_at(model, batch.images - self.epsilon / batch.network.std * gradient.sign(), name)
                columns.append(_at(moved, name, batch, gaussian))
        return torch.stack(columns, 1)


def _gradients(batch: Batch, gaussians: dict[str, list[Tensor]]) -> list[Tensor]:
    """Gradient of each layer's distance with respect to the input; the same for every ε."""
    model = batch.network.model
    with torch.enable_grad(), recorded(model, tuple(gaussians)) as maps:
        x = tracked(batch.images)
        model(x)
        distances = [_at(maps[name], name, batch, gaussian) for name, gaussian in gaussians.items()]
        return [gradient_at(x, d, keep=True) for d in distances]


def _at(output: Tensor, name: str, batch: Batch, gaussian: list[Tensor]) -> Tensor:
    return _closest(channel_means(output, module(batch.network.model, name)), *gaussian)


def _closest(x: Tensor, means: Tensor, whiten: Tensor) -> Tensor:
    return sq_distances(x, means, whiten).amin(1)


@dataclass(frozen=True)
class MahalanobisLayers(Method):
    """Mahalanobis distance over layers. Lee et al., 2018, arXiv:1807.03888.

    At each layer l: M_l = min_c (f_l(x_l) - μ_lc)ᵀ Σ_l⁻¹ (f_l(x_l) - μ_lc), f_l the channel means of the feature map
    and x_l = x - ε sign(∇ M_l(x)). score = log-odds of a logistic regression on (M_1, …, M_L), trained on held-out
    in-distribution images and outliers; shape [N], higher means more uncertain. L + 1 forward and L backward passes,
    each only as far as its layer.

    Layers are the last of each stage. The distances are standardised before the regression (the authors' code uses them
    raw), and both classes have equal weight; `kind` "mlp" is the two-layer detector instead. `shrinkage` is the weight
    of each covariance's own diagonal.
    """

    epsilon: NonNegativeFloat = 0.0014
    kind: Literal["logistic", "mlp"] = "logistic"
    shrinkage: Fraction = 0.0

    supervision = "outliers"
    grid = {"epsilon": (0.0, 0.0005, 0.001, 0.0014, 0.002, 0.0024, 0.005, 0.01)}

    @property
    def needs(self):
        return (LayerDistances(self.epsilon, self.shrinkage),)

    def fit(self, train: Reps, outliers: Reps) -> dict[str, Tensor]:
        return fit_detector(train[self.needs[0]], outliers[self.needs[0]], self.kind)

    def score(self, reps: Reps, **state: Tensor) -> Tensor:
        return score_detector(reps[self.needs[0]], **state)
