"""Walks over autograd's graph, and per-sample gradients through it."""

from __future__ import annotations

import warnings
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor


def graph_of(end: Any) -> tuple[list[Tensor], set[Any]]:
    """The leaf tensors that require grad, and the nodes, in the graph of a tensor or below a node."""
    if isinstance(end, Tensor) and end.grad_fn is None:
        return [end] if end.requires_grad else [], set()
    leaves: list[Tensor] = []
    stack, seen = [end.grad_fn if isinstance(end, Tensor) else end], set[Any]()
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            leaves.append(node.variable)
        stack.extend(f for f, _ in node.next_functions)
    return leaves, seen


def leaves_of(t: Tensor) -> list[Tensor]:
    return graph_of(t)[0]


def readers_of(logits: Tensor) -> dict[Any, list[Any]]:
    """By node of the graph, the nodes that read its output, once for each time."""
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


def pull_back(outputs: list[Tensor], inputs: list[Tensor], rows: list[Tensor]) -> list[Tensor | None]:
    """For each row of output gradients ``[n, …]``, the gradients of ``inputs``: a list of ``[n, *shape]`` or None."""

    def once(seeds: list[Tensor], batched: bool) -> tuple[Tensor | None, ...]:
        return torch.autograd.grad(
            outputs, inputs, seeds, retain_graph=True, is_grads_batched=batched, allow_unused=True
        )

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            return list(once(rows, True))
    except (RuntimeError, Warning, NotImplementedError):
        each = [once([r[i] for r in rows], False) for i in range(rows[0].shape[0])]
        return [
            None if all(g is None for g in gs) else torch.stack([g for g in gs if g is not None])
            for gs in zip(*each, strict=True)
        ]
