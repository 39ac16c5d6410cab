"""The slow, obvious way: one image at a time, by ordinary autograd. Tests and ``verify`` compare with it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .caches import Emptied, caches_aside
from .engine import grad_sq_norms
from .plan import lock_of
from .result import no_logits
from .seed import Loss


def one_by_one(model: nn.Module, x: Tensor, losses: Sequence[Loss] | Loss) -> Tensor:
    """``[K, N, P]`` squared gradient norms, as ``grad_sq_norms`` returns, from K N forward and backward passes.

    Each image goes in twice, and the loss of the first copy is taken: torch 2.14's batch norm in eval mode gives a
    wrong gradient for a single image where the map's gradient arrives from a flattened one (as in timm's LeViT).
    """
    losses = [losses] if callable(losses) else losses
    parameters = [p for _, p in model.named_parameters() if p.is_floating_point() or p.is_complex()]
    with torch.inference_mode(False), lock_of(model):
        before = [p.requires_grad for p in parameters]
        try:
            for p in parameters:
                p.requires_grad_(True)
            rows = [[_norms(model, image, loss, parameters) for image in x] for loss in losses]
        finally:
            for p, was in zip(parameters, before, strict=True):
                p.requires_grad_(was)
        return torch.stack([torch.stack(row) for row in rows])


def verify(model: nn.Module, x: Tensor, losses: Sequence[Loss] | Loss, rtol: float | None = None) -> float:
    """Compare the engine with ``one_by_one`` on these inputs: the largest relative error of a squared norm.

    Norms below a machine epsilon of the image's largest count as rounding noise. Raises ``RuntimeError`` naming the
    worst parameter where the error is above ``rtol`` (1e-9 in double, 1e-4 in single precision by default).
    """
    limit = rtol if rtol is not None else 1e-9 if x.dtype == torch.float64 else 1e-4
    result, want = grad_sq_norms(model, x, losses), one_by_one(model, x, losses)
    floor = torch.finfo(want.dtype).eps * want.amax(-1, keepdim=True)
    errors = ((result.norms - want).abs() / (want + floor).clamp_min(torch.finfo(want.dtype).tiny)).amax((0, 1))
    worst = int(errors.argmax())
    if not errors[worst] <= limit:
        raise RuntimeError(f"{result.names[worst]}: relative error {float(errors[worst]):.1e}, more than {limit:.0e}")
    return float(errors[worst])


def _norms(model: nn.Module, image: Tensor, loss: Loss, parameters: list[nn.Parameter]) -> Tensor:
    try:
        with torch.enable_grad(), caches_aside(list(model.modules())):
            logits = model(torch.stack([image, image]).detach())
            if not isinstance(logits, Tensor):
                raise ValueError(f"the network must map 2 inputs to logits [2, C], not to {no_logits(logits)}")
            value = loss(logits)[0]
            grads = torch.autograd.grad(value, parameters, allow_unused=True)
    except Emptied:
        return _norms(model, image, loss, parameters)
    return torch.stack([value.new_zeros(()) if g is None else g.abs().square().sum() for g in grads]).detach()
