"""Walks over autograd's graph."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from torch import Tensor


def graph_of(end: Any) -> tuple[list[Tensor], set[Any]]:
    """The leaf tensors that require grad and the nodes in the graph of a tensor, or that ends in a node."""
    found: list[Tensor] = []
    if isinstance(end, Tensor) and end.grad_fn is None:
        return [end] if end.requires_grad else [], set()
    stack, seen = [end.grad_fn if isinstance(end, Tensor) else end], set[Any]()
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.append(node.variable)
        stack.extend(f for f, _ in node.next_functions)
    return found, seen


def leaves(t: Tensor) -> list[Tensor]:
    return graph_of(t)[0]


def readers_of(logits: Tensor) -> dict[Any, list[Any]]:
    """The nodes of the graph that read each node's output, once for each time."""
    readers: dict[Any, list[Any]] = defaultdict(list)
    stack, seen = [logits.grad_fn], set()
    while stack:
        node = stack.pop()
        if node is not None and node not in seen:
            seen.add(node)
            for source, _ in node.next_functions:
                readers[source].append(node)
                stack.append(source)
    return readers
