"""What a network consists of, which of its parameters are wanted, and their state, which is left as it was."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class Contents:
    """A network's modules and parameters by name, listed once a call."""

    model: nn.Module
    modules: dict[str, nn.Module]
    parameters: dict[str, nn.Parameter]

    @classmethod
    def of(cls, model: nn.Module) -> Contents:
        return cls(model, dict(model.named_modules()), dict(model.named_parameters()))


def refuse_mixing(net: Contents) -> None:
    """Raise ``ValueError`` for a layer that normalises by the batch, naming it."""
    for name, module in net.modules.items():
        scripted = isinstance(module, torch.jit.ScriptModule) and "BatchNorm" in str(module.original_name)
        norm = scripted or isinstance(module, nn.modules.batchnorm._BatchNorm)
        if norm and (module.training or module.running_mean is None):
            why = "is in training mode" if module.training else "keeps no running statistics"
            raise ValueError(
                f"{name or 'the network'} ({type(module).__name__}) {why}, so it normalises by the batch and no sample"
                " has a gradient of its own; call model.eval() and use running statistics"
            )


def select(net: Contents, names: Iterable[str] | None) -> dict[str, nn.Parameter]:
    """Those of the named parameters that can have a gradient, or all of these, in the order of the network."""
    available = {name: p for name, p in net.parameters.items() if p.is_floating_point() or p.is_complex()}
    hooked = [name for name, p in available.items() if p._backward_hooks]
    if hooked:
        raise RuntimeError(
            f"{hooked[0]} has a hook that may change its gradient, which is the whole batch's and no single sample's;"
            " remove it"
        )
    if names is None:
        return available
    first = _first_names(net.model)
    chosen = [first.get(name, name) for name in ([names] if isinstance(names, str) else names)]
    unknown = [name for name in chosen if name not in available]
    if unknown:
        raise ValueError(f"the network has no parameter {unknown[0]!r}; it has {', '.join(list(available)[:5])}, …")
    return {name: p for name, p in available.items() if name in set(chosen)}


def select_small(net: Contents, wanted: dict[str, nn.Parameter], small: bool | Iterable[str]) -> list[str]:
    """The names of the one-dimensional parameters, among those wanted, whose gradients themselves are asked for."""
    flat = [name for name, p in wanted.items() if p.dim() == 1 and not p.is_complex()]
    if isinstance(small, bool):
        return flat if small else []
    first = _first_names(net.model)
    chosen = {first.get(name, name) for name in ([small] if isinstance(small, str) else small)}
    wrong = [name for name in chosen if name not in flat]
    if wrong:
        raise ValueError(f"{wrong[0]!r} is not a one-dimensional (real) parameter among those asked for")
    return [name for name in flat if name in chosen]


def _first_names(model: nn.Module) -> dict[str, str]:
    """For each name of a parameter, which may be shared, its first name."""
    first: dict[int, str] = {}
    return {name: first.setdefault(id(p), name) for name, p in model.named_parameters(remove_duplicate=False)}


@contextmanager
def requires_grad(net: Contents, watched: Iterable[nn.Parameter]) -> Iterator[None]:
    """Let the ``watched`` parameters, and no others, require grad for a while. None may receive a ``.grad``."""
    before = [(name, p, p.requires_grad, p.grad) for name, p in net.parameters.items()]
    on = {id(p) for p in watched}
    summed: list[str] = []
    try:
        for _, p, was, grad in before:
            if was != (id(p) in on):
                p.requires_grad_(id(p) in on)
            if grad is not None:
                p.grad = None
        yield
    finally:
        for name, p, was, grad in before:
            if p.requires_grad != was:
                p.requires_grad_(was)
            if p.grad is not grad:
                summed += [name] if p.grad is not None else []
                p.grad = grad
    if summed:
        raise RuntimeError(
            f"{summed[0]}: the network sums its gradient over the batch by itself (an autograd function whose backward"
            " pass calls backward, as in reversible blocks); use the plain form of that function"
        )
