"""Gradients of the last layer in closed form, and gradient norms of parameter sets chosen by name."""

from __future__ import annotations

from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from howsure import Batch, Loss, Representation, Uniform, UserError


def uniform_residual(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Gradient, with respect to the logits, of the cross-entropy to the uniform distribution, `[N, C]`, float64."""
    return ((logits.double() / temperature).softmax(1) - 1 / logits.shape[1]) / temperature


def chosen(model: nn.Module, patterns: tuple[str, ...]) -> list[bool]:
    """Whether each parameter set's name matches one of the glob patterns."""
    names = [name for name, _ in model.named_parameters()]
    found = [any(fnmatchcase(name, pattern) for pattern in patterns) for name in names]
    if not any(found):
        known = ", ".join(names[:4])
        raise UserError(f"no parameter set matches {' or '.join(patterns)}; the network has {known}, …")
    return found


@dataclass(frozen=True)
class ChosenGradNorms(Representation[Tensor]):
    """Squared L2 norms of the gradient, one column per parameter set that matches a glob pattern, `[N, P']`."""

    cost = "backward"
    layers: tuple[str, ...] = ("*",)
    loss: Loss = field(default_factory=Uniform)

    def losses(self) -> tuple[Loss, ...]:
        return (self.loss,)

    def compute(self, batch: Batch, **state: Tensor) -> Tensor:
        return batch.grads[self.loss].sq_norms[:, torch.tensor(chosen(batch.network.model, self.layers))]


@dataclass(frozen=True)
class ChosenGradL1(Representation[Tensor]):
    """L1 norms of the gradient, one column per parameter set that matches a glob pattern, `[N, P']`.

    Takes one backward pass per image: unlike squared L2 norms, L1 norms do not follow from products of activations.
    """

    cost = "passes"
    layers: tuple[str, ...] = ("*",)
    loss: Loss = field(default_factory=Uniform)

    def compute(self, batch: Batch, **state: Tensor) -> Tensor:
        model = batch.network.model
        wanted = chosen(model, self.layers)
        parameters = [p for p, keep in zip(model.parameters(), wanted, strict=True) if keep]
        frozen = [p for p in parameters if not p.requires_grad]
        try:
            for p in frozen:
                p.requires_grad_(True)
            return torch.stack([self._norms(model, image, parameters) for image in batch.images.split(1)])
        finally:
            for p in frozen:
                p.requires_grad_(False)

    def _norms(self, model: nn.Module, image: Tensor, parameters: list[nn.Parameter]) -> Tensor:
        pair = torch.cat([image, image])  # batch norm in torch 2.14 may err on a single image (docs/gradients.md)
        with torch.enable_grad():
            found = torch.autograd.grad(self.loss(model(pair))[0], parameters, allow_unused=True)
        return torch.stack([image.new_zeros(()) if g is None else g.abs().sum() for g in found])


@dataclass(frozen=True)
class ParameterSizes(Representation[Tensor]):
    """Number of entries of each parameter set, `[P]`; independent of the images."""

    cost = "free"
    per_image = False

    def compute(self, batch: Batch, **state: Tensor) -> Tensor:
        return torch.tensor([p.numel() for p in batch.network.model.parameters()], dtype=torch.float64)
