from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from howsure import Features, Labels, Method, Reps, UserError
from howsure.values import Fraction

from ._gaussians import ROUNDING, present_classes, whiten
from ._rows import by_rows


@dataclass(frozen=True)
class GMM(Method):
    """Gaussian mixture with a component and a covariance for each class. Friedman, 1989, classic.

    score = -log sum_k pi_k N(h; mu_k, (1 - shrinkage) S_k + shrinkage S), S_k the class's covariance, S the tied one,
    pi_k the class's share; shape [N], higher means more uncertain.

    Without shrinkage a class needs more images than dimensions (pytorch-ood adds 1e-6 to the diagonal instead).
    Directions in which no training feature varies are left out. There are as many covariances as classes: with 1,000
    classes of 50 images in 512 dimensions, scoring takes a few milliseconds per image.
    """

    shrinkage: Fraction = 0.1

    needs = (Features(), Labels())
    supervision = "id-train"
    grid = {"shrinkage": (0.01, 0.1, 0.5, 1.0)}

    def fit(self, train: Reps) -> dict[str, Tensor]:
        labels = train[Labels()].long()
        means, centred = present_classes(train[Features()], labels)
        columns = whiten(centred)
        scale = columns.norm(dim=0)
        parts = [self._component(centred[labels == k] @ columns, int(k)) for k in labels.unique()]
        roots, base, gain, log_dets = zip(*parts, strict=True)
        shares = labels.unique(return_counts=True)[1].double() / len(labels)
        constant = len(scale) * math.log(2 * math.pi) - 2 * scale.log().sum()
        return {
            "means": means @ columns,
            "columns": columns,
            "roots": torch.cat(roots),
            "sizes": torch.tensor([len(root) for root in roots]),
            "base": torch.tensor(base, dtype=torch.float64),
            "gain": torch.tensor(gain, dtype=torch.float64),
            "log_weights": shares.log() - (torch.stack(log_dets) + constant) / 2,
        }

    def _component(self, rows: Tensor, k: int) -> tuple[Tensor, float, float, Tensor]:
        """`root`, `base`, `gain` and log det of a class in whitened space: d' P d = base |d|^2 + gain |root d|^2.

        With fewer images than dimensions, the matrix inversion lemma gives a system with as many unknowns as images.
        """
        s, (n, dims) = self.shrinkage, rows.shape
        if s > 0 and n < dims:
            ridge = s * n / max(1 - s, 1e-12)
            lower = torch.linalg.cholesky(rows @ rows.T + ridge * torch.eye(n, dtype=rows.dtype))
            log_det = 2 * lower.diagonal().log().sum() - n * math.log(ridge) + dims * math.log(s)
            return torch.linalg.solve_triangular(lower, rows, upper=False), 1 / s, -1 / s, log_det
        eye = torch.eye(dims, dtype=rows.dtype)
        lower, failed = torch.linalg.cholesky_ex((1 - s) * rows.T @ rows / n + s * eye)
        if failed or bool((lower.diagonal().square() < ROUNDING).any()):
            raise UserError(f"gmm: the covariance of class {k} is singular; set shrinkage above 0")
        return torch.linalg.solve_triangular(lower, eye, upper=False), 0.0, 1.0, 2 * lower.diagonal().log().sum()

    def score(self, reps: Reps, **state: Tensor) -> Tensor:
        return by_rows(lambda h: _negative_log_likelihood(h, **state), reps[Features()])


def _negative_log_likelihood(
    h: Tensor,
    means: Tensor,
    columns: Tensor,
    roots: Tensor,
    sizes: Tensor,
    base: Tensor,
    gain: Tensor,
    log_weights: Tensor,
) -> Tensor:
    x = h.double() @ columns
    distances = []
    for mean, root, b, g in zip(means, roots.split(sizes.tolist()), base, gain, strict=True):
        d = x - mean
        distances.append(b * d.square().sum(1) + g * (d @ root.T).square().sum(1))
    return -torch.logsumexp(log_weights - torch.stack(distances, 1) / 2, dim=1)
