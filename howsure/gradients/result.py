"""What the engine returns, and what a network returned instead of logits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor


class GradResult(NamedTuple):
    """The result of ``grad_sq_norms`` for K losses, N samples, P parameters and C classes."""

    norms: Tensor
    """``[K, N, P]``: squared L2 norms, in squared units of loss per unit of parameter."""
    names: tuple[str, ...]
    """The P parameter names, in the order of ``model.named_parameters()``."""
    logits: Tensor
    """``[N, C]``: the network's output."""
    small: Tensor | None
    """``[K, N, Q]``: per-sample gradients of one-dimensional parameters side by side, or None."""
    small_names: tuple[str, ...]
    """Their names, in order."""
    small_sizes: tuple[int, ...]
    """How many of the Q columns belong to each."""


def no_logits(out: Any) -> str:
    """What a network returned instead of logits, and what to do if they are inside."""
    if isinstance(out, Tensor):
        return str(list(out.shape))
    parts = list(out.items() if isinstance(out, Mapping) else enumerate(out) if isinstance(out, (tuple, list)) else ())
    flat = [key for key, part in parts if isinstance(part, Tensor) and part.dim() == 2]
    if not flat:
        return type(out).__name__
    key = "logits" if "logits" in flat else flat[0]
    return f"{type(out).__name__}; wrap it in a module whose forward returns network(x)[{key!r}]"
