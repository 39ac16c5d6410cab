"""The gradient of a loss at the logits, where every backward pass starts."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .graph import leaves_of
from .layout import Layout, codes, explains

Loss = Callable[[Tensor], Tensor]


def seed_of(loss: Loss, logits: Tensor, mixing: list[Tensor]) -> Tensor:
    """The loss's gradient at the logits; ``mixing`` notes whether it depends on other samples."""
    with torch.enable_grad():
        z = logits.detach().requires_grad_()
        values = loss(z.clone())
        if values.shape != z.shape[:1]:
            raise ValueError(f"a loss must give one value per sample, [{len(z)}], not {list(values.shape)}")
        if not values.requires_grad:
            return torch.zeros_like(z)
        if any(leaf is not z for leaf in leaves_of(values)):
            raise ValueError("a loss must depend on the logits alone; detach what else it uses")
        factors = codes(len(z), values)
        (seed,) = torch.autograd.grad(values, [z], torch.ones_like(values), retain_graph=True, allow_unused=True)
        if seed is None:
            return torch.zeros_like(z)
        (coded,) = torch.autograd.grad(values, [z], factors)
    if len(z) > 1:
        mixing.append(seed.isfinite().all() & ~explains(Layout(), seed, coded, factors))
    return seed.detach()
