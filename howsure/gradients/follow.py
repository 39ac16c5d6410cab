"""Batch norms whose scale takes its gradient from the convolution before them, without a pass over the maps.

Batch norm in evaluation mode is y = x w / σ + const, so the gradient at x = W * a + c is d' = d w / σ. Where nothing
but the batch norm reads x, all of the gradient at x comes from it, and the convolution's own gradient
``G = sum_p d'_p a_p^T`` holds what the scale's needs:

    sum_p d_p x_p = (σ / w) sum_p d'_p (W a_p + c) = (σ / w) G . W + c sum_p d_p        in each channel

It is taken where the convolution makes G anyway, and no w is zero.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .conv import Conv
from .layout import Layout
from .norm import BatchNorm
from .trace import Site


def follow(sites: Mapping[Any, Site], logits: Tensor, direct: set[int]) -> None:
    """Tie each batch norm that may to the convolution before it.

    ``sites`` by the node of their output in the graph of ``logits``; ``direct`` are weights whose norms a rule gives
    by itself.
    """
    if not any(_waits(site) for site in sites.values()):
        return
    readers = _readers(logits)
    for node, conv in sites.items():
        norm = sites.get(readers[node][0]) if len(readers[node]) == 1 else None
        if norm is not None and _fit(conv, norm, direct):
            conv.follower = norm
            norm.release()


def _waits(site: Site) -> bool:
    return isinstance(site.rule, BatchNorm) and "weight" in site.weights


def _fit(conv: Site, norm: Site, direct: set[int]) -> bool:
    first, second = conv.rule, norm.rule
    if not isinstance(first, Conv) or not isinstance(second, BatchNorm) or not _waits(norm):
        return False
    in_rows = conv.layout == norm.layout == (Layout(),)
    gives = in_rows and id(conv.weights.get("weight")) in direct and first.makes_gradient
    first.followed = second.follows = gives and second.may_follow()
    return second.follows


def _readers(logits: Tensor) -> dict[Any, list[Any]]:
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
