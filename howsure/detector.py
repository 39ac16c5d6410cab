"""Detectors trained on inliers and outliers: the paper's two fully connected layers, and logistic regression.

Both take standardised vectors and give the log-odds of "outlier", never the saturated probability, so that ranks are
kept far from the boundary. What is fitted is a flat dict of tensors.
"""

from __future__ import annotations

import warnings
from typing import Literal

import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from torch.nn import functional as F

from .errors import UserError

Kind = Literal["mlp", "logistic"]
EPSILON = 1e-20


def log_norms(sq_norms: Tensor) -> Tensor:
    """Logs of squared norms, with a floor for those that vanish."""
    return sq_norms.double().clamp_min(EPSILON).log()


def fit_detector(
    inliers: Tensor,
    outliers: Tensor,
    kind: Kind = "mlp",
    hidden: int = 32,
    weight_decay: float = 0.1,
    members: int = 4,
    steps: int = 400,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Train on inliers `[N, D]` and outliers `[M, D]`; both classes weigh the same, however many there are.

    Returns `mean [D]` and `gain [D]` (one over the standard deviation, 0 for columns that never vary) and the layers
    `weight0 [H, D]`, `bias0 [H]`, `weight1 [1, H]`, `bias1 [1]`; of logistic regression `weight0 [1, D]`, `bias0 [1]`.
    """
    if not len(inliers) or not len(outliers):
        raise UserError(f"a detector needs inliers and outliers; it got {len(inliers)} and {len(outliers)}")
    x = torch.cat([inliers, outliers]).double()
    y = torch.cat([torch.zeros(len(inliers)), torch.ones(len(outliers))])
    mean, gain = standardiser(x)
    x = ((x - mean) * gain).float()
    layers = _logistic(x, y) if kind == "logistic" else _mlp(x, y, hidden, weight_decay, members, steps, seed)
    return {"mean": mean, "gain": gain, **layers}


def score_detector(x: Tensor, mean: Tensor, gain: Tensor, **layers: Tensor) -> Tensor:
    """Log-odds of "outlier" `[N]`, float64, of rows `[N, D]`."""
    x = (x.double() - mean) * gain
    for i in range(len(layers) // 2):
        x = F.linear(F.relu(x) if i else x, layers[f"weight{i}"].double(), layers[f"bias{i}"].double())
    return x[:, 0]


def standardiser(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and one over the standard deviation of each column, 0 for those that vary by rounding only."""
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
    """Mean of several networks of one hidden layer, which is one such network, `members * hidden` wide.

    AdamW on the balanced cross-entropy of random mini-batches, one for each member, at a rate that falls to zero.
    """
    generator = torch.Generator().manual_seed(seed)
    width, size = x.shape[1], min(256, len(x))
    weight0 = torch.randn(members, width, hidden, generator=generator) * max(width, 1) ** -0.5
    parameters = [weight0, torch.zeros(members, 1, hidden)]
    parameters += [torch.randn(members, hidden, 1, generator=generator) * hidden**-0.5, torch.zeros(members, 1, 1)]
    weights = torch.where(y == 1, len(y) / (2 * y.sum()), len(y) / (2 * (1 - y).sum()))
    with torch.enable_grad():
        parameters = [p.requires_grad_() for p in parameters]
        optimiser = torch.optim.AdamW(parameters, lr=0.01, weight_decay=weight_decay)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 0.01, steps)
        for _ in range(steps):
            index = torch.randint(len(x), (members, size), generator=generator)
            w0, b0, w1, b1 = parameters
            logits = torch.baddbmm(b1, F.relu(torch.baddbmm(b0, x[index], w0)), w1)[..., 0]
            loss = F.binary_cross_entropy_with_logits(logits, y[index], weights[index])
            optimiser.zero_grad()
            (loss * members).backward()
            optimiser.step()
            schedule.step()
    w0, b0, w1, b1 = (p.detach() for p in parameters)
    return {
        "weight0": w0.transpose(1, 2).reshape(-1, width),
        "bias0": b0.reshape(-1),
        "weight1": w1.reshape(1, -1) / members,
        "bias1": b1.mean(0)[0],
    }
