"""Detectors trained on inliers and outliers: the paper's two fully connected layers, and logistic regression.

Both standardise their inputs and return the log-odds of "outlier": unlike the probability, these do not saturate, so
that scores far from the boundary keep their order. The fitted state is a flat dict of tensors.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from math import prod
from typing import Literal

import numpy as np
import torch
from scipy.optimize import minimize
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits
from torch import Tensor
from torch.nn import functional as F

from .errors import UserError
from .products import convolutions_win, rows_times

Kind = Literal["mlp", "logistic"]
EPSILON = 1e-20
ROUNDING = 1e-14
"""A squared norm as a fraction of the image's largest below which it is what sums that cancel leave in single
precision."""


def log_norms(sq_norms: Tensor) -> Tensor:
    """Logs of squared norms `[N, P]`, float64, with a floor for those that vanish but for rounding.

    The gradient of a key's bias in attention, say, is zero, and its computed norm is noise.
    """
    norms = sq_norms.double()
    return norms.clamp_min((ROUNDING * norms.amax(1, keepdim=True)).clamp_min(EPSILON)).log()


def fit_detector(
    inliers: Tensor,
    outliers: Tensor,
    kind: Kind = "mlp",
    hidden: int = 32,
    weight_decay: float = 0.01,
    members: int = 4,
    steps: int = 60,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Train on inliers `[N, D]` and outliers `[M, D]`; both classes have equal weight, whatever their sizes.

    `hidden`, `weight_decay`, `members`, `steps` and `seed` are of the two-layer detector, `kind` "mlp".

    Returns:
        `mean [D]`, `gain [D]` (one over the standard deviation, 0 for columns that do not vary) and the layers:
        `weight0 [H, D]`, `bias0 [H]`, `weight1 [1, H]`, `bias1 [1]`, with H = `members * hidden`; for `kind` "logistic"
        `weight0 [1, D]`, `bias0 [1]`.

    Raises:
        UserError: there are no inliers or no outliers.
    """
    if not len(inliers) or not len(outliers):
        raise UserError(f"a detector needs inliers and outliers; it was given {len(inliers)} and {len(outliers)}")
    x = torch.cat([inliers, outliers]).double()
    y = torch.cat([torch.zeros(len(inliers)), torch.ones(len(outliers))])
    mean, gain = standardiser(x)
    x = ((x - mean) * gain).float()
    layers = _logistic(x, y) if kind == "logistic" else _mlp(x, y, hidden, weight_decay, members, steps, seed)
    return {"mean": mean, "gain": gain, **layers}


def score_detector(x: Tensor, mean: Tensor, gain: Tensor, **layers: Tensor) -> Tensor:
    """Log-odds of "outlier", `[N]`, float64, for rows `[N, D]`."""
    weights, biases = ([layers[f"{name}{i}"].double() for i in range(len(layers) // 2)] for name in ("weight", "bias"))
    weights[0] = weights[0] * gain
    biases[0] = biases[0] - weights[0] @ mean
    x = F.linear(x.double(), weights[0], biases[0])
    for weight, bias in zip(weights[1:], biases[1:], strict=True):
        x = F.linear(F.relu(x), weight, bias)
    return x[:, 0]


def standardiser(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of each column, and one over its standard deviation, which is 0 if the column varies only by rounding."""
    x = x.double()
    mean, std = x.mean(0), x.std(0, correction=0)
    varies = std > 1e-6 * x.square().mean(0).sqrt()
    return mean, torch.where(varies, 1 / std.clamp_min(torch.finfo(std.dtype).tiny), 0.0)


def _logistic(x: Tensor, y: Tensor) -> dict[str, Tensor]:
    model = LogisticRegression(class_weight="balanced", max_iter=1000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(x.double().numpy(), y.numpy())
    return {"weight0": torch.from_numpy(model.coef_), "bias0": torch.from_numpy(model.intercept_)}


def _mlp(
    x: Tensor, y: Tensor, hidden: int, weight_decay: float, members: int, steps: int, seed: int
) -> dict[str, Tensor]:
    """Mean of several networks with one hidden layer, merged into one such network that is `members * hidden` wide.

    Each starts from its own random weights and minimises the balanced cross-entropy plus `weight_decay / 2` times the
    squared norm of its weights, with at most `steps` steps of L-BFGS on all rows; for a few thousand rows this is
    faster than random mini-batches. Each takes one thread.
    """
    generator = np.random.default_rng(seed)
    sign = 2 * y - 1
    weight = torch.where(sign > 0, 0.5 / (sign > 0).sum(), 0.5 / (sign < 0).sum())
    shapes = ((hidden, x.shape[1]), (hidden,), (1, hidden), (1,))
    columns = x.mT.contiguous() if convolutions_win() else x.mT
    loss = partial(_loss, x=x, columns=columns, sign=sign, weight=weight, decay=weight_decay, shapes=shapes)
    starts = [
        np.concatenate([(generator.normal(0, s[-1] ** -0.5, s) * (len(s) == 2)).ravel() for s in shapes])
        for _ in range(members)
    ]
    options = {"maxiter": steps, "maxfun": 2 * steps}
    train = partial(minimize, loss, method="L-BFGS-B", jac=True, options=options)
    threads = torch.get_num_threads()
    try:
        with (
            ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool,
            threadpool_limits(1),
        ):
            found = [_parts(torch.from_numpy(best.x), shapes) for best in pool.map(train, starts)]
    finally:
        torch.set_num_threads(threads)  # what threads started from now on will have
    weight0, bias0, weight1, bias1 = (torch.stack(part) for part in zip(*found, strict=True))
    layers = (weight0.flatten(0, 1), bias0.flatten(), weight1.flatten()[None] / members, bias1.mean(0))
    return dict(zip(("weight0", "bias0", "weight1", "bias1"), layers, strict=True))


def _parts(flat: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    """A flat vector as tensors of the given shapes."""
    return [part.view(shape) for part, shape in zip(flat.split([*map(prod, shapes)]), shapes, strict=True)]


def _loss(
    flat: np.ndarray,
    x: Tensor,
    columns: Tensor,
    sign: Tensor,
    weight: Tensor,
    decay: float,
    shapes: Sequence[tuple[int, ...]],
) -> tuple[float, np.ndarray]:
    """The regularised, weighted cross-entropy of a network with one hidden layer, and its gradient."""
    weight0, bias0, weight1, bias1 = _parts(torch.from_numpy(flat).float(), shapes)
    h = rows_times(x, weight0, bias0).relu_()
    margin = sign * (h @ weight1[0] + bias1)
    loss = (weight * F.softplus(-margin)).sum() + decay / 2 * (weight0.square().sum() + weight1.square().sum())
    slope = -weight * sign * torch.sigmoid(-margin)
    inner = torch.outer(slope, weight1[0]) * (h > 0)
    into0 = rows_times(columns, inner.mT).mT + decay * weight0
    gradients = (into0, inner.sum(0), slope @ h + decay * weight1, slope.sum())
    return loss.item(), torch.cat([g.flatten() for g in gradients]).double().numpy()
