"""Tensors in the nested arguments of a call."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor


def tensors(tree: Any) -> Iterator[Tensor]:
    """The tensors in nested tuples, lists and dictionaries."""
    for item in tree.values() if isinstance(tree, dict) else tree:
        if isinstance(item, Tensor):
            yield item
        elif isinstance(item, (tuple, list, dict)):
            yield from tensors(item)


def memory_of(t: Tensor) -> int:
    """What tells the memory of a tensor, which its views share."""
    return t.untyped_storage()._cdata if t.layout == torch.strided else id(t)


def map_tensors(f: Callable[[Tensor], Any], tree: Any) -> Any:
    """The same nest with ``f`` of each tensor."""
    if isinstance(tree, Tensor):
        return f(tree)
    if isinstance(tree, dict):
        return {k: map_tensors(f, v) for k, v in tree.items()}
    if type(tree) in (tuple, list):
        return type(tree)(map_tensors(f, v) for v in tree)
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(map_tensors(f, v) for v in tree))
    return tree
