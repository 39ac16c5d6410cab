from __future__ import annotations

from dataclasses import dataclass

import torch
from pydantic import PositiveInt
from torch import Tensor

from howsure import Labels, Logits, Method, Reps

from ._rows import by_rows
from ._weibull import cdf, fit_tails


@dataclass(frozen=True)
class OpenMax(Method):
    """OpenMax. Bendale & Boult, 2016, arXiv:1511.06233.

    For each class a Weibull distribution is fitted to the `tail` largest distances of correctly classified logits to
    their mean. The `alpha` largest logits are then reweighted by w = 1 - (alpha - i + 1) / alpha * F(distance), i their
    rank, and the unknown class gets z_0 = sum_c z_c (1 - w_c);
    score = z_0 - logsumexp_c(z_c w_c), the log-odds of the unknown class; shape [N], higher means more uncertain.

    The distance is Euclidean, between whole vectors of logits, as in OpenOOD, which reweights the 3 largest. The
    authors' code by default uses a two-hundredth of that plus the cosine distance; by its comments so does the paper,
    which was not consulted on this.

    The log-odds rank images like the probability, but do not tie at one. Algorithm 2 has the Weibull's survival
    function where the authors' code has F, its distribution function, as here. pytorch-ood also fits to wrongly
    classified images. A class without a correctly classified image has F = 1.
    """

    tail: PositiveInt = 20
    alpha: PositiveInt = 10

    needs = (Logits(), Labels())
    supervision = "id-train"
    grid = {"tail": (10, 20, 40), "alpha": (3, 5, 10, 20)}

    def fit(self, train: Reps) -> dict[str, Tensor]:
        z = train[Logits()].double()
        num_classes = z.shape[1]
        labels = train[Labels()].long()
        correct = z.argmax(1) == labels
        groups = [z[correct & (labels == k)] for k in range(num_classes)]
        means = torch.stack([g.mean(0) if len(g) else torch.zeros(num_classes, dtype=z.dtype) for g in groups])
        tails = [(g - m).norm(dim=1).sort().values[-self.tail :] for g, m in zip(groups, means, strict=True)]
        return {"means": means, "weibull": fit_tails(tails)}

    def score(self, reps: Reps, means: Tensor, weibull: Tensor) -> Tensor:
        alpha = min(self.alpha, len(means))
        rank_weight = torch.arange(alpha, 0, -1, dtype=torch.float64) / alpha

        def log_odds(z: Tensor) -> Tensor:
            z = z.double()
            values, top = z.topk(alpha, dim=1)
            distance = (z[:, None] - means[top]).norm(dim=2)
            moved = values * rank_weight * cdf(distance, weibull[top])
            return moved.sum(1) - torch.logsumexp(z.scatter_add(1, top, -moved), dim=1)

        return by_rows(log_odds, reps[Logits()], size=256)
