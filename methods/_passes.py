"""For representations with passes of their own: input gradients, layers read or changed, several outputs per image."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from howsure import Batch, Network
from howsure.errors import NoGradients
from howsure.layers import module

from ._softmax import entropy

Change = Callable[[Tensor], Tensor]


@contextmanager
def changed(model: nn.Module, changes: Mapping[str, Change]) -> Iterator[None]:
    """Inside, each named layer's function is applied to the layer's output."""
    hooks = []

    def hook(change: Change) -> Callable[[nn.Module, Any, Tensor], Tensor]:
        return lambda _module, _inputs, output: change(output)

    try:
        for name, change in changes.items():
            hooks.append(module(model, name).register_forward_hook(hook(change)))
        yield
    finally:
        for handle in hooks:
            handle.remove()


@contextmanager
def recorded(model: nn.Module, names: tuple[str, ...]) -> Iterator[dict[str, Tensor]]:
    """Inside, the outputs of the named layers are kept in the dict, as part of the graph.

    The following layers see a copy, so that an in-place activation does not change what is kept.
    """
    outputs: dict[str, Tensor] = {}

    def keep(name: str) -> Change:
        def change(output: Tensor) -> Tensor:
            outputs[name] = output
            return output.clone()

        return change

    with changed(model, {name: keep(name) for name in names}):
        yield outputs


def features(network: Network, images: Tensor) -> Tensor:
    """Penultimate features `[n, D]` from a pass over images `[n, …]`."""
    found: list[Tensor] = []
    handles = [
        module(network.model, name).register_forward_pre_hook(lambda _layer, inputs: found.append(inputs[0].flatten(1)))
        for name in network.heads
    ]
    try:
        with torch.no_grad():
            network.model(images)
    finally:
        for handle in handles:
            handle.remove()
    return torch.cat(found, 1)


class _Reached(Exception):
    """Carries a layer's output out of a pass that need not continue."""


def output_at(model: nn.Module, images: Tensor, name: str) -> Tensor:
    """The output of the layer `name`; nothing that runs after it is computed."""

    def stop(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
        raise _Reached(output)

    handle = module(model, name).register_forward_hook(stop)
    try:
        model(images)
    except _Reached as reached:
        return cast(Tensor, reached.args[0])
    finally:
        handle.remove()
    raise RuntimeError(f"the pass never reached the layer {name}")


def tracked(images: Tensor) -> Tensor:
    """A copy of images that requires gradients."""
    return images.detach().clone().requires_grad_()


def input_gradient(model: nn.Module, images: Tensor, objective: Callable[[Tensor], Tensor]) -> Tensor:
    """Gradient `[n, …]` of `objective(logits) -> [n]` with respect to each image."""
    with torch.enable_grad():
        x = tracked(images)
        return gradient_at(x, objective(model(x)))


def gradient_at(x: Tensor, values: Tensor, keep: bool = False) -> Tensor:
    """Gradient of the sum of `values` at the images `x`; `keep` the graph for others.

    Raises:
        NoGradients: they do not depend on the images by way of derivatives.
    """
    found = (
        torch.autograd.grad(values.sum(), x, retain_graph=keep, allow_unused=True)[0] if values.requires_grad else None
    )
    if found is None:
        raise NoGradients("the network has no gradient at its input, since it rounds its pixels or looks them up")
    return found


def shared_input_gradient(batch: Batch, objective: Callable[[Tensor], Tensor]) -> Tensor:
    """The same, with one forward pass for all objectives of a batch."""

    def forward() -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            x = tracked(batch.images)
            return x, batch.network.model(x)

    x, logits = batch.share("input to logits", forward)
    with torch.enable_grad():
        return gradient_at(x, objective(logits), keep=True)


def predictive_entropy(logits: Tensor) -> Tensor:
    """Entropy of the mean softmax over samples, `[N, S, C] -> [N]`, in nats."""
    return entropy(logits.double().softmax(2).mean(1))


def mutual_information(logits: Tensor) -> Tensor:
    """Entropy of the mean softmax minus the mean of the entropies, `[N, S, C] -> [N]`, in nats.

    Computed as the mean divergence of the samples from their mean m, since the entropies of confident samples would
    cancel: the sum over classes of m ((1 + d) log(1 + d) - d), with d the relative deviation from m; for the top class,
    d follows from the others.
    """
    p = logits.double().softmax(2)
    mean = p.mean(1, keepdim=True)
    top = mean.argmax(2, keepdim=True)
    others, mean_others = (q.scatter(2, top.expand(-1, q.shape[1], -1), 0.0).sum(2, keepdim=True) for q in (p, mean))
    change = (p - mean) / mean.clamp_min(torch.finfo(mean.dtype).tiny)
    change = change.scatter(2, top.expand_as(others), (mean_others - others) / mean.gather(2, top))
    return (mean * (torch.special.xlog1py(1 + change, change) - change)).sum(2).mean(1)
