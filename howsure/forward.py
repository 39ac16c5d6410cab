"""One pass over batches of images, which computes all representations asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .contained import contained
from .errors import NoGradients, UserError
from .gradients import GradResult, grad_sq_norms
from .layers import module
from .losses import Loss
from .network import Network
from .representation import Batch, Grads, Representation, Reps, Tap
from .split import Loaded

States = Mapping[Representation[Any], dict[str, Tensor]]
Progress = Callable[[int], object]
Each = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]


def run_pass(
    network: Network,
    loaded: Iterable[Loaded],
    representations: Sequence[Representation[Any]],
    states: States | None = None,
    progress: Progress = lambda n: None,
    each: Each = map,
) -> Reps:
    """The representations of all batches, with one shared forward pass of the network over each.

    Args:
        loaded: batches as from `batches`, each `(inputs of the network [n, …], labels [n], ids [n] or None)`.
        representations: what to compute.
        states: the states of the fitted ones among them.
        progress: called after each batch with the number of images in it.
        each: what makes a call for each batch, in order, as `map` does.
    """
    states = states or {}
    rows: dict[Representation[Any], list[dict[str, Tensor]]] = {rep: [] for rep in representations}

    def due() -> list[Representation[Any]]:
        return [rep for rep in representations if rep.per_image or not rows[rep]]

    def read(given: Loaded) -> tuple[int, list[dict[str, Tensor]]]:
        images, labels, ids = given
        batch = _forward(network, images.to(network.device), labels, ids, representations)
        return len(images), [_arrays(rep, batch, states.get(rep, {})) for rep in due()]

    for n, found in each(read, loaded):
        for rep, arrays in zip(due(), found, strict=True):
            rows[rep].append(arrays)
        progress(n)
    return Reps({rep: rep.unpack(_joined(rows.pop(rep))) for rep in list(rows)})


def _arrays(rep: Representation[Any], batch: Batch, state: dict[str, Tensor]) -> dict[str, Tensor]:
    with contained():
        value = rep.pack(rep.compute(batch, **state))
    return {k: v.detach().cpu() for k, v in value.items()}


def _joined(found: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The rows of all batches, whose own go as they are joined: of many layers of many images they fill the memory."""
    return {key: torch.cat([batch.pop(key) for batch in found]) for key in list(found[0])}


def _forward(
    network: Network,
    images: Tensor,
    labels: Tensor,
    ids: Tensor | None,
    representations: Sequence[Representation[Any]],
) -> Batch:
    """The shared forward pass, with one backward pass for each loss that a representation declares."""
    taps = list(dict.fromkeys(tap for rep in representations for tap in rep.taps(network)))
    losses = list(dict.fromkeys(loss for rep in representations for loss in rep.losses()))
    grads: dict[Loss, Grads] = {}
    if not taps and not losses and not any(rep.reads_logits for rep in representations):
        return Batch(network, images, labels, ids, {}, {})
    with _reading(network.model, taps) as readings:
        if losses:
            small = any(rep.small for rep in representations)
            result = _gradients(network, images, losses, small, readings.passes.clear)
            logits = result.logits
            for k, loss in enumerate(losses):
                grads[loss] = Grads(result.norms[k], None if result.small is None else result.small[k])
        else:
            with torch.no_grad():
                logits = network.model(images)
    read = {tap: readings.rows(tap, len(images)) for tap in taps}
    return Batch(network, images, labels, ids, read, grads, logits.detach().float())


def _gradients(
    network: Network, images: Tensor, losses: list[Loss], small: bool, on_restart: Callable[[], None]
) -> GradResult:
    """The gradient engine's result. Raises NoGradients if gradients of single images cannot be computed."""
    try:
        return grad_sq_norms(network.model, images, losses, small=small, on_restart=on_restart)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, NotImplementedError) as error:
        raise NoGradients(f"no gradients of single images from '{network.name}': {error}") from error


@dataclass
class _Readings:
    """What the hooks have read: for each forward pass of the model, a dict by tap."""

    passes: list[dict[Tap, Tensor]] = field(default_factory=list)

    def rows(self, tap: Tap, n: int) -> Tensor:
        parts = [reading[tap] for reading in self.passes if tap in reading]
        rows = torch.cat(parts) if parts else torch.empty(0)
        if len(rows) != n:
            raise UserError(f"layer '{tap.layer}' gives {len(rows)} rows for {n} images; name another layer")
        return rows.float()


@contextmanager
def _reading(model: nn.Module, taps: Sequence[Tap]) -> Iterator[_Readings]:
    readings = _Readings()

    def start(_module: nn.Module, _inputs: Any) -> None:
        readings.passes.append({})

    def reader(tap: Tap) -> Callable[[nn.Module, Any, Any], None]:
        def read(layer: nn.Module, inputs: Any, output: Any) -> None:
            value = inputs[0] if tap.side == "input" else output
            with torch.no_grad():
                readings.passes[-1][tap] = tap.reduce(value.detach(), layer).clone()

        return read

    hooks = [model.register_forward_pre_hook(start)] if taps else []
    try:
        hooks += [module(model, tap.layer).register_forward_hook(reader(tap)) for tap in taps]
        yield readings
    finally:
        for hook in hooks:
            hook.remove()
