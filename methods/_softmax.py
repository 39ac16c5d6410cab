"""Softmax quantities that stay precise when the network is confident.

All follow from the gaps `z_c - max z` of the other classes: `1 - max p` is computed as their share of the sum, not as a
difference of nearly equal numbers, so that confident images do not tie.
"""

from __future__ import annotations

import torch
from torch import Tensor


def gaps(logits: Tensor) -> Tensor:
    """`z - max z`, `[N, C]`, float64, with minus infinity in place of the largest logit (one of them, if several)."""
    z = logits.double()
    top, index = z.max(1, keepdim=True)
    return (z - top).scatter(1, index, -torch.inf)


def doubt(logits: Tensor, temperature: float | Tensor = 1.0) -> Tensor:
    """`1 - max softmax(z / T)`, `[N]`, float64."""
    others = (gaps(logits) / temperature).exp().sum(1)
    return others / (1 + others)


def log_odds(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """`log((1 - p) / p)`, p = max softmax(z / T), `[N]`, float64; with one class, the lowest finite number."""
    return (gaps(logits) / temperature).logsumexp(1).clamp_min(torch.finfo(torch.float64).min)


def log_odds_parts(logits: Tensor) -> tuple[Tensor, Tensor]:
    """`log p` and `log(1 - p)`, each `[N, C]`, float64."""
    z = logits.double()
    gap = gaps(logits)
    others = gap.exp().sum(1, keepdim=True)
    log_p = z - z.amax(1, keepdim=True) - others.log1p()
    return log_p, torch.where(gap.isinf(), others.log() - others.log1p(), torch.log1p(-log_p.exp()))


def entropy(p: Tensor) -> Tensor:
    """`-Σ p log p` over the last dimension, in nats, for float64 probabilities.

    The term of the largest one is computed from the sum of the others, which is more precise.
    """
    others = p.scatter(-1, p.argmax(-1, keepdim=True), 0.0)
    rest = others.sum(-1)
    return torch.special.entr(others).sum(-1) - torch.special.xlog1py(1 - rest, -rest)
