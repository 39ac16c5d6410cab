"""The contracts that every registered method must keep, third parties' plugins included.

Each contract is a small named function that raises AssertionError with one line. They run on synthetic images and two
tiny networks: a convolutional one with batch norm and dropout, and a transformer. A method must score at least one.
"""

from __future__ import annotations

import copy
import doctest
import inspect
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, is_dataclass, replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .backbone import InputSpec
from .cells import refusal
from .errors import FAULTS, UserError, described, one_line
from .extract import Extractor, seeded
from .forward import run_pass
from .images import ArrayImages
from .method import Method, misdeclared
from .network import Network
from .representation import Reps
from .split import Split, batches

CLASSES = 4


@dataclass
class Trial:
    """A method fitted for a network on synthetic images, with the representations of further images to score."""

    method: Method
    network: Network
    extractor: Extractor
    split: Split
    reps: Reps
    state: dict[str, Tensor]

    def rescore(
        self, network: Network | None = None, batch_size: int = 16, order: np.ndarray | None = None, labels: int = 0
    ) -> Tensor:
        """Scores `[N]` of the images from a new pass, with this batch size and order; labels are moved by `labels`."""
        images = self.split.images
        assert isinstance(images, ArrayImages)
        order = np.arange(len(images.y)) if order is None else order
        split = Split("other", ArrayImages(images.x[order], (images.y[order] + labels) % CLASSES))
        states = {rep: self.extractor.state(rep) for rep in self.method.needs if rep.needs}
        reps = run_pass(
            network or self.network, batches(split, network or self.network, batch_size), self.method.needs, states
        )
        return self.method.score(reps, **self.state)


def keeps_its_declaration(method: Method) -> None:
    """The method is a frozen dataclass with a docstring, valid supervision, and needs that are representations."""
    cls = type(method)
    assert is_dataclass(cls), "is not a frozen dataclass"
    assert cls.__dataclass_params__.frozen, "is not a frozen dataclass"
    assert not (cls.__doc__ or f"{cls.__name__}(").startswith(f"{cls.__name__}("), "has no docstring"
    fault = misdeclared(method)
    assert fault is None, fault


def scores_every_image_once(trial: Trial) -> None:
    """Scores are `[N]`, floating-point and finite; so are the representations."""
    problem = trial.reps.not_finite()
    assert problem is None, problem
    scores: object = trial.method.score(trial.reps, **trial.state)
    assert isinstance(scores, Tensor), f"score returned a {type(scores).__name__}, not a tensor"
    assert tuple(scores.shape) == (len(trial.split),), (
        f"scores have shape {list(scores.shape)}, not [{len(trial.split)}]"
    )
    assert scores.is_floating_point(), f"scores are {scores.dtype}"
    assert bool(scores.isfinite().all()), f"{int((~scores.isfinite()).sum())} scores are NaN or infinite"


def is_deterministic(trial: Trial) -> None:
    """The same seed gives the same state and scores."""
    again = fit(trial.method, trial.extractor)
    assert again.keys() == trial.state.keys(), "fit returns different entries the second time"
    for key, value in again.items():
        assert torch.equal(value, trial.state[key]), f"fit returns a different '{key}' the second time"
    _same(trial.rescore(), trial.rescore(), "a second time", exact=True)


def ignores_labels(trial: Trial) -> None:
    """Scores do not depend on the labels of the images scored, which are unknown in practice."""
    _same(trial.rescore(), trial.rescore(labels=1), "with other labels")


def ignores_batch_size(trial: Trial) -> None:
    """Scores do not depend on how images are batched."""
    _same(trial.rescore(batch_size=16), trial.rescore(batch_size=7), "in batches of another size")


def ignores_order(trial: Trial) -> None:
    """Scores do not depend on the order of images."""
    order = np.random.default_rng(1).permutation(len(trial.split))
    _same(trial.rescore()[order], trial.rescore(order=order), "in another order")


def scores_a_copy_alike(trial: Trial) -> None:
    """A copy of the network gives the same scores."""
    other = replace(trial.network, model=copy.deepcopy(trial.network.model))
    _same(trial.rescore(), trial.rescore(other), "on a copy of the network")


def leaves_no_trace(trial: Trial) -> None:
    """Weights, gradients, hooks, modes and `requires_grad` are as before."""
    before = snapshot(trial.network.model)
    trial.rescore()
    for what, value in snapshot(trial.network.model).items():
        assert value == before[what], f"changes the network's {what}"


def has_portable_state(trial: Trial) -> None:
    """State is a flat dict of tensors that survives a round trip through safetensors."""
    for key, value in trial.state.items():
        assert isinstance(value, Tensor), f"state '{key}' is a {type(value).__name__}, not a tensor"
    if not trial.state:
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "state.safetensors"
        save_file({k: v.contiguous() for k, v in trial.state.items()}, path)
        loaded = load_file(path)
    _same(
        trial.method.score(trial.reps, **trial.state),
        trial.method.score(trial.reps, **loaded),
        "with stored state",
        exact=True,
    )


def changes_no_input(trial: Trial) -> None:
    """`fit` and `score` do not modify representations or state."""
    method, reps = trial.method, trial.extractor(trial.split, trial.method.needs)
    seen = to_fit_on(method, trial.extractor)
    for what, given, state, work in (
        ("fit", seen, {}, lambda: seeded(0, lambda: method.fit(*seen)) if seen else {}),
        ("score", [reps], trial.state, lambda: method.score(reps, **trial.state)),
    ):
        arrays = [(repr(rep), v) for some in given for rep in some for v in rep.pack(some[rep]).values()]
        before = [(key, value, value.clone()) for key, value in (*arrays, *state.items())]
        work()
        for key, value, was in before:
            assert torch.equal(value, was), f"{what} modifies {key}"


def scores_images_apart(trial: Trial) -> None:
    """The score of an image does not depend on which others are scored with it."""
    whole = trial.method.score(trial.reps, **trial.state)
    some = trial.method.score(trial.reps.take(torch.arange(5)), **trial.state)
    _same(whole[:5], some, "without the other images")


def passes_its_doctests(trial: Trial) -> None:
    """Examples in the docstrings run."""
    module = inspect.getmodule(type(trial.method))
    assert module is not None
    assert doctest.testmod(module).failed == 0, "a doctest fails"


CONTRACTS: tuple[Callable[[Trial], None], ...] = (
    scores_every_image_once,
    has_portable_state,
    is_deterministic,
    ignores_labels,
    ignores_batch_size,
    ignores_order,
    scores_a_copy_alike,
    leaves_no_trace,
    changes_no_input,
    scores_images_apart,
    passes_its_doctests,
)


def check_method(name: str, cls: type[Method]) -> Iterator[tuple[str, str | None]]:
    """Run every contract on every tiny network that the method can score; yields (contract, problem or None)."""
    try:
        method = cls(**cls.test_params)
    except FAULTS as error:
        yield "can be created", _explain(error)
        return
    problem = _outcome(keeps_its_declaration, method)
    yield keeps_its_declaration.__name__, problem
    if problem:
        return
    try:
        reasons = {network.name: refusal(method, network) for network in networks()}
    except FAULTS as error:
        yield "scores some network", _explain(error)
        return
    if all(reasons.values()):
        yield "scores some network", f"refuses all: {reasons}"
        return
    for network in networks():
        if reasons[network.name]:
            continue
        try:
            trial = make_trial(method, network)
        except FAULTS as error:
            yield f"fits on the {network.name}", _explain(error)
            continue
        for contract in CONTRACTS:
            problem = _outcome(contract, trial)
            yield f"{contract.__name__} ({network.name})", problem
            if problem and contract in (scores_every_image_once, has_portable_state):
                break  # the other contracts would fail for the same reason


def make_trial(method: Method, network: Network) -> Trial:
    """A method fitted on synthetic training images for a tiny network."""
    extractor = Extractor(network, None, split("train"))
    state = fit(method, extractor)
    return Trial(method, network, extractor, split("test"), extractor(split("test"), method.needs), state)


def fit(method: Method, extractor: Extractor) -> dict[str, Tensor]:
    """The state of a method fitted as its supervision says."""
    seen = to_fit_on(method, extractor)
    return seeded(0, lambda: method.fit(*seen)) if seen else {}


def to_fit_on(method: Method, extractor: Extractor) -> list[Reps]:
    """The arguments of a method's `fit`, by its supervision: none, training images, or known images and outliers."""
    names = {"none": (), "id-train": ("train",), "outliers": ("known", "outliers")}[method.supervision]
    return [extractor(split(name), method.needs).only(method.needs, "fit") for name in names]


@cache
def split(name: str) -> Split:
    """Synthetic images: four classes of noisy gratings; outliers are plain noise."""
    sizes = {"train": 64, "known": 40, "outliers": 40, "test": 24}
    rng = np.random.default_rng(list(sizes).index(name))
    y = np.arange(sizes[name]) % CLASSES
    grid = np.arange(16) / 16
    waves = np.stack(
        [
            np.sin(2 * np.pi * (1 + k // 2) * (grid[:, None] if k % 2 else grid[None, :])) * np.ones((16, 16))
            for k in range(CLASSES)
        ]
    )
    clean = 0 if name == "outliers" else waves[y][..., None]
    x = 128 + 60 * clean + rng.normal(0, 40, (sizes[name], 16, 16, 3))
    return Split(name, ArrayImages(np.clip(x, 0, 255).astype(np.uint8), y))


@cache
def networks() -> tuple[Network, ...]:
    """The tiny networks, with random weights; in the convolutional one, batch-norm statistics are random too."""
    spec = InputSpec((16, 16), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        torch.manual_seed(0)
        convs = [_conv_net() for _ in range(3)]
        conv = Network("convolutional network", convs[0], spec, CLASSES, members=convs[1:])
        return conv, Network("transformer", _transformer(), spec, CLASSES)


class _ConvNet(nn.Sequential):
    """Three stages of convolution, batch norm and ReLU, dropout before the last layer, and a `temperature_variance`."""

    def temperature_variance(self, images: Tensor) -> Tensor:
        return self[:-3](images).flatten(1).square().mean(1)


def _conv_net() -> nn.Module:
    widths = (3, 8, 12, 16)
    layers: list[nn.Module] = []
    for inside, outside in pairwise(widths):
        norm = nn.BatchNorm2d(outside)
        nn.init.uniform_(norm.running_mean, -0.1, 0.1)  # type: ignore[arg-type]
        nn.init.uniform_(norm.running_var, 0.5, 1.5)  # type: ignore[arg-type]
        layers += [nn.Conv2d(inside, outside, 3, padding=1), norm, nn.ReLU(), nn.MaxPool2d(2)]
    layers[-1] = nn.AdaptiveAvgPool2d(1)
    return _ConvNet(*layers, nn.Flatten(), nn.Dropout(0.2), nn.Linear(widths[-1], CLASSES))


def _transformer() -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(img_size=16, patch_size=4, embed_dim=24, depth=3, num_heads=3, num_classes=CLASSES)


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Everything about a model that scoring might change by mistake."""
    weights = {name: value.detach().clone() for name, value in model.state_dict().items()}
    return {
        "weights": {name: value.sum().item() for name, value in weights.items()},
        "gradients": [name for name, p in model.named_parameters() if p.grad is not None],
        "requires_grad": [p.requires_grad for p in model.parameters()],
        "modes": [m.training for m in model.modules()],
        "hooks": [
            (len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks), len(m._backward_pre_hooks))
            for m in model.modules()
        ],
        "forward": ["forward" in vars(m) for m in model.modules()],
    }


def _same(a: Tensor, b: Tensor, when: str, exact: bool = False) -> None:
    assert isinstance(a, Tensor), f"score returned a {type(a).__name__}, not a tensor"
    if exact:
        assert torch.equal(a, b), f"scores differ {when}"
        return
    scale = float(a.double().std(correction=0)) + 1e-6 * float(a.double().abs().max())
    gap = float((a.double() - b.double()).abs().max())
    assert gap <= 1e-3 * scale, f"scores differ by {gap:.2g} {when} (their spread is {scale:.2g})"


def _outcome(contract: Callable[[Any], None], given: Trial | Method) -> str | None:
    try:
        contract(given)
    except FAULTS as error:
        return _explain(error)
    return None


def _explain(error: BaseException) -> str:
    return one_line(error) if isinstance(error, AssertionError | UserError) else described(error)


if sys.flags.optimize:
    raise ImportError("howsure.check relies on assert statements; run Python without -O")
