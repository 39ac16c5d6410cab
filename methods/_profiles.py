"""Gaussians around the mean of the predicted class, with a covariance shrunk to its diagonal, and layers to use."""

from __future__ import annotations

from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from howsure import Network
from howsure.gaussian import class_means, whitener
from howsure.layers import Normalisation

from ._passes import recorded

FLOOR = 1e-12
ROUNDING = 1e-6
_LAYERS: WeakKeyDictionary[Network, tuple[str, ...]] = WeakKeyDictionary()


def telling_layers(network: Network) -> tuple[str, ...]:
    """Names of the layers to use: the normalisation layers or, if all of these are layer norms of tokens, the linear
    layers.

    Layer norm erases the norms that distinguish tokens, so the linear layers but the last serve better there. Layer
    norms are of maps if the first is, and most are: those of queries and keys are not. Layers whose output does not
    have one row per image are left out.
    """
    if network not in _LAYERS:
        model, example, norms = network.model, network.example(), network.norms
        kinds = [m for m in model.modules() if isinstance(m, Normalisation)]
        linear = [name for name, m in model.named_modules() if isinstance(m, nn.Linear) and name not in network.heads]
        with torch.no_grad(), recorded(model, tuple({*norms, *linear})) as outputs:
            model(example)
        of_maps = [output.dim() == 4 for name, output in outputs.items() if name in norms]
        on_maps = bool(of_maps) and of_maps[0] and sum(of_maps) > len(of_maps) / 2
        of_tokens = bool(kinds) and all(isinstance(m, nn.LayerNorm) for m in kinds) and not on_maps
        names = linear if of_tokens and len(linear) > 2 else norms
        _LAYERS[network] = tuple(name for name in names if name in outputs and len(outputs[name]) == len(example))
    return _LAYERS[network]


def first_half(ids: Tensor) -> Tensor:
    """Whether each image belongs to the half that layers are fitted on, by its hash; all do if a half is too small."""
    first = ids % 2 == 0
    return first if 1 < int(first.sum()) < len(ids) - 1 else torch.ones_like(first)


def fit_around(x: Tensor, group: Tensor, groups: int, shrinkage: float) -> dict[str, Tensor]:
    """Means `[groups, D]` and `whiten [D, D]` of rows `[N, D]`; all groups share one covariance.

    `shrinkage` is the weight of the covariance's own diagonal. Columns that vary only by rounding are ignored.
    """
    x = x.double()
    means = class_means(x, group, groups)
    centred = x - means[group]
    std = centred.square().mean(0).sqrt()
    varies = std > ROUNDING * x.square().mean(0).sqrt()
    gain = torch.where(varies, 1 / std.clamp_min(torch.finfo(std.dtype).tiny), 0.0)
    return {"means": means, "whiten": gain[:, None] * _decorrelate(centred * gain, shrinkage)}


def distance_around(x: Tensor, group: Tensor, means: Tensor, whiten: Tensor) -> Tensor:
    """Squared Mahalanobis distance `[N]` of rows `[N, D]` to the mean of their group."""
    return ((x.to(whiten.dtype) - means[group]) @ whiten).square().sum(1)


def log_distance(sq_distance: Tensor) -> Tensor:
    """The log of a squared distance, with a floor."""
    return sq_distance.clamp_min(FLOOR).log()


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation over rows; the latter is infinite for columns that vary only by rounding, so that
    standardising them gives 0."""
    std = x.std(0, correction=0)
    return x.mean(0), torch.where(std > ROUNDING * x.square().mean(0).sqrt(), std, torch.inf)


def _decorrelate(z: Tensor, shrinkage: float) -> Tensor:
    """`W` with `W Wᵀ` the inverse of the shrunk correlation matrix; by Cholesky if that is certainly invertible."""
    if shrinkage <= 0:
        return whitener(z)
    correlation = (1 - shrinkage) * (z.T @ z) / len(z)
    correlation.diagonal().fill_(1.0)
    root = torch.linalg.cholesky(correlation)
    eye = torch.eye(len(root), dtype=root.dtype)
    return torch.linalg.solve_triangular(root, eye, upper=False).T
