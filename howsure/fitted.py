"""From Python: a method fitted for a network, which then scores tensors."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .backbone import InputSpec
from .cells import CellError, refusal, scored
from .errors import UserError
from .extract import seeded
from .forward import States, run_pass
from .gradients.result import no_logits
from .method import Method
from .network import Network, doubts_of_output
from .representation import Representation, Reps
from .split import Loaded, images_at_once
from .suite import make_method

Inputs = Iterable[tuple[Tensor, Tensor]]


@dataclass
class Fitted:
    """A method fitted for one network, as returned by `fit`; call it for scores."""

    method: Method
    network: Network
    states: States = field(default_factory=dict)
    state: Mapping[str, Tensor] = field(default_factory=dict)

    def __call__(self, images: Tensor) -> Tensor:
        """Scores `[n]`, float64 on the CPU, of inputs `[n, channels, H, W]`; higher means more uncertain.

        Raises:
            UserError: the inputs have another type or shape, or a score is not finite.
        """
        if not len(_checked(images)):
            return torch.zeros(0, dtype=torch.float64)
        parts = images.split(images_at_once(self.network))
        needs = tuple(rep for rep in self.method.needs if not rep.fit_only)
        reps = self.read(((some, torch.zeros(len(some), dtype=torch.long)) for some in parts), needs)
        try:
            return torch.from_numpy(scored(self.method, reps, self.state, "the images"))
        except CellError as error:
            raise UserError(f"{type(self.method).__name__}: {error}") from error

    def read(self, inputs: Inputs, needs: tuple[Any, ...] | None = None) -> Reps:
        """The representations `needs`, by default those that the method needs, of batches of inputs and labels."""
        self.network.model.eval()
        needs = self.method.needs if needs is None else needs
        loaded = _loaded(inputs, self.network.dtype)
        return run_pass(self.network, loaded, needs, self.states).only(needs, type(self.method).__name__)


def fit(
    method: str | Method,
    model: nn.Module,
    images: Inputs,
    outliers: Inputs | None = None,
    *,
    std: Sequence[float] | None = None,
    values: Mapping[str, Any] | None = None,
) -> Fitted:
    """Fit a method for a network.

    Args:
        method: its name or an instance.
        model: a classifier, `[n, channels, H, W] -> logits [n, C]`; it stays on its device and is put in eval mode
            whenever it is used.
        images: batches of in-distribution inputs of the network and their labels, such as a list or a `DataLoader`,
            which must give the same images each time, in any order. Give training images; for methods that learn from
            outliers, or whose `fit_split` is "val", images that the network was not trained on. A method without `fit`
            reads only the first batch.
        outliers: the same of outliers, for methods that learn from them; labels are ignored.
        std: standard deviation per channel by which pixel values in [0, 1] were divided, for methods that take a step
            in pixel values; by default the step is taken in the inputs themselves.
        values: hyper-parameters, if the method is given by name.

    Raises:
        UserError: something does not fit together; one line says what is wrong and what to do.

    Warns:
        UserWarning: the network's logits are random, depend on the other images of a batch, or are probabilities.
    """
    scorer = make_method(method, values or {}) if isinstance(method, str) else method
    network = _network(model, _first(images), std)
    _refuse(scorer, network, outliers)
    fitted = Fitted(scorer, network)
    for rep in scorer.needs:
        _fit_representation(fitted, rep, images)
    if scorer.supervision != "none":
        known = _labelled(images, network.num_classes)
        fitted.state = _learnt(scorer, *(fitted.read(given) for given in (known, outliers) if given is not None))
    return fitted


def _fit_representation(fitted: Fitted, rep: Representation[Any], images: Inputs) -> None:
    """Fit a representation that has needs, after those that it needs itself."""
    if not rep.needs or rep in fitted.states:
        return
    for inner in rep.needs:
        _fit_representation(fitted, inner, images)
    known = _labelled(images, fitted.network.num_classes)
    fitted.states = {**fitted.states, rep: _learnt(rep, fitted.read(known, rep.needs).only(rep.needs, repr(rep)))}


def _learnt(learner: Any, *seen: Reps) -> dict[str, Tensor]:
    return seeded(0, lambda: learner.fit(*seen))


def _first(images: Inputs) -> Tensor:
    if isinstance(images, Iterator):
        raise UserError("images can be iterated only once; give a list of batches or a DataLoader")
    for inputs, _ in map(_pair, images):
        return _checked(inputs)
    raise UserError("there are no images to fit on; give at least one batch")


def _labelled(images: Inputs, classes: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches, once their labels are seen to be class indices."""
    for inputs, labels in map(_pair, images):
        whole = isinstance(labels, Tensor) and not labels.is_floating_point() and labels.shape == (len(inputs),)
        if not whole or (len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes):
            raise UserError(
                f"the labels must be class indices [n], integers from 0 to {classes - 1}, as the network has {classes}"
                " logits"
            )
        yield inputs, labels


def _pair(batch: Any) -> tuple[Tensor, Tensor]:
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        got = f"of length {len(batch)}" if isinstance(batch, (tuple, list)) else f"that is a {type(batch).__name__}"
        raise UserError(f"got a batch {got}; give pairs of inputs and labels")
    return batch[0], batch[1]


def _checked(images: Tensor) -> Tensor:
    if not (isinstance(images, Tensor) and images.dim() == 4 and images.is_floating_point()):
        got = f"{images.dtype} {list(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        raise UserError(f"got {got}; give the network's inputs, a floating-point tensor [n, channels, height, width]")
    return images


def _network(model: nn.Module, images: Tensor, std: Sequence[float] | None) -> Network:
    """The model as a `Network`, with a warning if its output is doubtful."""
    some = next((p for p in model.parameters() if p.is_floating_point()), images)
    channels, height, width = images.shape[1:]
    if std is not None and len(std) != channels:
        raise UserError(f"std has {len(std)} numbers for images of {channels} channels; give one per channel")
    spec = InputSpec((height, width), (0.0,) * channels, tuple(std or (1.0,) * channels))
    with torch.no_grad():
        logits = model.eval()(images[:2].to(some.device, some.dtype))
    if not (isinstance(logits, Tensor) and logits.dim() == 2):
        raise UserError(f"{type(model).__name__} must map images to logits [n, classes], not to {no_logits(logits)}")
    network = Network(type(model).__name__, model, spec, logits.shape[1], device=some.device)
    for doubt in doubts_of_output(network):
        warnings.warn(f"{network.name}: {doubt}", stacklevel=3)
    return network


def _refuse(method: Method, network: Network, outliers: Inputs | None) -> None:
    name, shown = type(method).__name__, method.supervision == "outliers"
    if shown and outliers is None:
        raise UserError(f"{name} learns from outliers; give some, or choose a method that needs none")
    if not shown and outliers is not None:
        raise UserError(f"{name} does not learn from outliers; leave them out")
    refused = refusal(method, network)
    if refused:
        raise UserError(f"{name} cannot score this network: {refused}")


def _loaded(inputs: Inputs, dtype: torch.dtype) -> Iterator[Loaded]:
    for images, labels in map(_pair, inputs):
        yield _checked(images).to(dtype), labels, None
