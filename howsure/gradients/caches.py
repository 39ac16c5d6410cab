"""Keeps a network's own attributes out of a pass, and the pass out of them.

Some attention layers (LeViT, EfficientFormer, TinyViT in timm) keep a bias gathered from a parameter in a dictionary
when they are in evaluation mode. What was gathered in one pass is not made of the parameter in the next one's graph.
Others (the old ``weight_norm``, pruning) set their weight anew in every pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn


@contextmanager
def caches_aside(model: nn.Module) -> Iterator[None]:
    """Empty every dictionary attribute with "cache" in its name meanwhile, and put its content back; put back tensor
    attributes that were replaced by some that hang on a graph."""
    caches, kept = [], []
    for module in model.modules():
        own = vars(module)
        caches += [value for name, value in own.items() if "cache" in name and isinstance(value, dict)]
        kept.append((own, {name: value for name, value in own.items() if isinstance(value, Tensor)}))
    before = [dict(cache) for cache in caches]
    try:
        for cache in caches:
            cache.clear()
        yield
    finally:
        for cache, content in zip(caches, before, strict=True):
            cache.clear()
            cache.update(content)
        for own, held in kept:
            for name, value in own.items():
                if isinstance(value, Tensor) and value.requires_grad and held.get(name) is not value:
                    own[name] = held.get(name, value.detach())
