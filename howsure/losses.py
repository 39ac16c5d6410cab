"""Losses to differentiate. Each maps logits `[N, C]` to one loss per image, `[N]`, in nats.

A loss is a frozen dataclass, so that it can be part of a representation's key.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import NonNegativeInt, PositiveFloat
from torch import Tensor
from torch.nn import functional as F

from .errors import UserError
from .values import check_values


@dataclass(frozen=True)
class Loss:
    """A function of the logits alone, without true labels; in double precision, since residuals like p - 1 cancel."""

    def __post_init__(self) -> None:
        check_values(self)

    def skip(self, classes: int) -> str | None:
        """Why there is no such loss for this number of classes, or None if there is."""
        return None

    def __call__(self, logits: Tensor) -> Tensor:
        raise NotImplementedError


@dataclass(frozen=True)
class Confound(Loss):
    """Binary cross-entropy to an n-hot confounding label. Lee & AlRegib, 2020, arXiv:2008.08030, section 3.

    The label has ones for the first `hot` classes, from 0 to C; None means all of them, the paper's default. `output`
    says whether probabilities are the sigmoid or the softmax of the logits. The loss is summed over classes, so that
    with the sigmoid its gradient with respect to the logits is `sigmoid(z) - y`.
    """

    hot: NonNegativeInt | None = None
    output: Literal["sigmoid", "softmax"] = "sigmoid"

    def skip(self, classes: int) -> str | None:
        if self.hot is None or self.hot <= classes:
            return None
        return f"a confounding label with {self.hot} ones needs as many classes; there are {classes}"

    def __call__(self, logits: Tensor) -> Tensor:
        logits = logits.double()
        if fault := self.skip(logits.shape[1]):
            raise UserError(fault)
        target = torch.zeros_like(logits)
        target[:, : self.hot] = 1
        if self.output == "sigmoid":
            return F.binary_cross_entropy_with_logits(logits, target, reduction="none").sum(1)
        log_p, (top, others) = F.log_softmax(logits, 1), _top_and_others(logits)
        not_top = torch.log1p(-log_p.exp().masked_fill(top, 0))
        log_not_p = torch.where(top, (others - logits.logsumexp(1))[:, None], not_top)
        return -(target * log_p + (1 - target) * log_not_p).sum(1)


@dataclass(frozen=True)
class Uniform(Loss):
    """Cross-entropy to the uniform distribution at a temperature. Huang et al., 2021, arXiv:2110.00218, equation 3."""

    temperature: PositiveFloat = 1.0

    def __call__(self, logits: Tensor) -> Tensor:
        return -F.log_softmax(logits.double() / self.temperature, 1).mean(1)


@dataclass(frozen=True)
class Predicted(Loss):
    """Cross-entropy to the predicted class. Oberdiek et al., 2018, arXiv:1805.08440."""

    def __call__(self, logits: Tensor) -> Tensor:
        logits = logits.double()
        top, others = _top_and_others(logits)
        return F.softplus(others - logits.masked_fill(~top, 0).sum(1))


def _top_and_others(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Where the largest logit is, bool `[N, C]`, and the logsumexp of the others, `[N]`.

    The latter gives one minus the largest probability without cancellation.
    """
    top = logits.argmax(1, keepdim=True) == torch.arange(logits.shape[1], device=logits.device)
    return top, logits.masked_fill(top, -torch.inf).logsumexp(1)


LOSSES: dict[str, type[Loss]] = {"confound": Confound, "uniform": Uniform, "predicted": Predicted}
