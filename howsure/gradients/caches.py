"""Keeps a network's own caches out of a pass.

Some attention layers (LeViT, EfficientFormer, TinyViT in timm) keep a bias gathered from a parameter in a dictionary
when they are in evaluation mode. What was gathered in one pass is not made of the parameter in the next one's graph.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def caches_aside(model: nn.Module) -> Iterator[None]:
    """Empty every dictionary attribute with "cache" in its name meanwhile, and put its content back."""
    found = [
        value
        for module in model.modules()
        for name, value in vars(module).items()
        if "cache" in name and isinstance(value, dict)
    ]
    before = [dict(cache) for cache in found]
    try:
        for cache in found:
            cache.clear()
        yield
    finally:
        for cache, content in zip(found, before, strict=True):
            cache.clear()
            cache.update(content)
