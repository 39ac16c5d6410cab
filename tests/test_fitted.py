"""Scores of tensors in memory are those of the suite's own way."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from howsure import Batch, Logits, Method, UserError
from howsure.check import fit as fit_in_suite
from howsure.check import networks, split
from howsure.extract import Extractor
from howsure.fitted import fit
from howsure.images import image_id
from howsure.plugins import METHODS
from howsure.representation import Representation, Reps
from howsure.split import batches

STD = (0.25, 0.25, 0.25)


def inputs(name: str, size: int = 16) -> list[tuple[Tensor, Tensor]]:
    """Batches of made-up images as the tiny networks take them."""
    return [(images, labels) for images, labels, _ in batches(split(name), networks()[0], size)]


TEST = torch.cat([images for images, _ in inputs("test")])


@pytest.fixture
def _known_by_pixels(monkeypatch):
    """The suite's ids, which say what half of the training images an image is in, are those of pixels."""

    def pixels(image: np.ndarray) -> int:
        return image_id(np.rint(255 * (0.25 * image.transpose(1, 2, 0) + 0.5)).astype(np.uint8))

    monkeypatch.setattr("howsure.representation.image_id", pixels)


@pytest.mark.usefixtures("_known_by_pixels")
@pytest.mark.parametrize("name", [name for name in METHODS if name != "ensemble"])
def test_scores_are_those_of_a_suite(name):
    method, network = METHODS[name](**METHODS[name].test_params), networks()[0]
    seen = ("known", "outliers") if method.supervision == "outliers" else ("train",)
    scorer = fit(method, network.model, *map(inputs, seen), std=STD)
    extractor = Extractor(network, None, split(seen[0]))
    state, reps = fit_in_suite(method, extractor), extractor(split("test"), method.needs)
    want = method.score(reps, **state).double()
    torch.testing.assert_close(scorer(TEST), want, rtol=1e-4, atol=1e-4 * float(want.std()))


def test_images_are_hashed_to_fit_and_not_to_score(monkeypatch):
    """A hash takes longer than a small network's pass, or a large one's on a GPU."""
    hashed: list[int] = []
    monkeypatch.setattr("howsure.representation.image_id", lambda image: hashed.append(1) or image_id(image))
    scorer = fit(METHODS["layerprint"](k=3), networks()[0].model, inputs("train"))
    seen = len(hashed)
    assert seen
    scorer(TEST)
    assert len(hashed) == seen


@pytest.mark.parametrize("name", [name for name in METHODS if name != "ensemble"])
def test_a_network_in_half_precision_is_scored(name):
    method, model = METHODS[name](**METHODS[name].test_params), copy.deepcopy(networks()[0].model).bfloat16()
    seen = ("known", "outliers") if method.supervision == "outliers" else ("train",)
    images = [[(x.bfloat16(), y) for x, y in inputs(split)] for split in seen]
    assert len(fit(method, model, *images, std=STD)(TEST.bfloat16())) == len(TEST)


@pytest.mark.parametrize(
    ("name", "values", "rtol", "off"),
    [
        ("layerprint", {}, 0, 1e-6),
        ("knn", {}, 0, 1e-6),
        ("confound_detector", {"kind": "logistic"}, 0, 1e-6),
        ("confound_detector", {"weight_decay": 0.1}, 1e-3, 1e-2),
    ],
)
def test_the_order_of_images_does_not_matter(name, values, rtol, off):
    """A loader that shuffles gives another order each time it is gone through. In double precision and with more weight
    decay, since a detector's two layers magnify what gradients in single differ by from batch to batch."""
    method = METHODS[name](**METHODS[name].test_params | values)
    model = copy.deepcopy(networks()[0].model).double()
    known, outliers = ([(x.double(), y) for x, y in inputs(split)] for split in ("known", "outliers"))
    x, y = map(torch.cat, zip(*known, strict=True))
    loader = DataLoader(TensorDataset(x, y), 7, shuffle=True, generator=torch.Generator().manual_seed(0))
    more = [outliers] if method.supervision == "outliers" else []
    want, got = (fit(method, model, images, *more)(TEST.double()) for images in (known, loader))
    torch.testing.assert_close(got, want, rtol=rtol, atol=off * float(want.std()))


def test_a_method_that_is_not_fitted_looks_at_one_batch():
    seen = []

    class Once(list):
        def __iter__(self):
            for batch in super().__iter__():
                seen.append(batch)
                yield batch

    scorer = fit("energy", networks()[0].model, Once(inputs("train")), values={"temperature": 2.0})
    assert len(seen) == 1
    with torch.no_grad():
        want = -2 * torch.logsumexp(networks()[0].model(TEST).double() / 2, 1)
    torch.testing.assert_close(scorer(TEST), want)
    assert scorer(TEST[:0]).shape == (0,)


def test_inputs_in_double_precision_are_taken_by_a_network_in_single():
    model, train = networks()[0].model, inputs("train")
    double = [(x.double(), y) for x, y in train]
    torch.testing.assert_close(fit("knn", model, double)(TEST.double()), fit("knn", model, train)(TEST))


@dataclass(frozen=True)
class Inner(Representation[Tensor]):
    """Logits less their mean over the training images, `[N, C]`."""

    needs = (Logits(),)

    def fit(self, train: Reps) -> dict[str, Tensor]:
        return {"mean": train[Logits()].mean(0)}

    def compute(self, batch: Batch, mean: Tensor) -> Tensor:
        return batch.logits - mean


@dataclass(frozen=True)
class Outer(Representation[Tensor]):
    """The same less the largest of them, `[N, C]`."""

    needs = (Inner(),)

    def fit(self, train: Reps) -> dict[str, Tensor]:
        return {"most": train[Inner()].amax(0)}

    def compute(self, batch: Batch, most: Tensor) -> Tensor:
        return batch.logits - most


@dataclass(frozen=True)
class Nested(Method):
    needs = (Outer(),)

    def score(self, reps: Reps) -> Tensor:
        return reps[Outer()].amax(1)


def test_representations_may_need_others_that_are_fitted_themselves():
    network, train = networks()[0], inputs("train")
    want = Extractor(network, None, split("train"))(split("test"), Nested.needs)
    torch.testing.assert_close(fit(Nested(), network.model, train, std=STD)(TEST), Nested().score(want).double())


def test_mistakes_are_told():
    model, train = networks()[0].model, inputs("train")
    for arguments, text in (
        (("confound_detector", model, train), "learns from outliers"),
        (("energy", model, train, train), "does not learn from outliers"),
        (("energi", model, train), "did you mean energy"),
        (("energy", model, iter(train)), "only once"),
        (("energy", model, []), "at least one batch"),
        (("energy", model, [(*train[0], train[0][1])]), "got a batch of length 3; give pairs of inputs and labels"),
        (("energy", model, [train[0][0]]), "got a batch that is a Tensor; give pairs of inputs and labels"),
        (("energy", model, [(train[0][0].byte(), train[0][1])]), "floating"),
        (("energy", nn.Conv2d(3, 2, 1), train), "logits"),
        (("ensemble", model, train), "cannot score this network"),
    ):
        with pytest.raises(UserError, match=text):
            fit(*arguments)
    with pytest.raises(UserError, match="floating"):
        fit("energy", model, train)(TEST[0])
    with pytest.raises(UserError, match="one per channel"):
        fit("odin", model, train, std=[0.5])
    with pytest.raises(UserError, match="NaN"):
        fit("energy", model, train)(TEST / 0)
    with pytest.warns(UserWarning, match="probabilities"):
        fit("msp", nn.Sequential(model, nn.Softmax(1)), train)


@pytest.mark.parametrize(
    "labels", [torch.full((16,), 4), torch.full((16,), -1), torch.zeros(16), torch.zeros(16, 1, dtype=torch.long)]
)
@pytest.mark.parametrize("name", ["knn", "grood"])
def test_labels_that_are_no_class_indices(name, labels):
    given = [(images, labels[: len(images)]) for images, _ in inputs("train")]
    with pytest.raises(UserError, match=r"class indices .n., integers from 0 to 3, as the network has 4 logits"):
        fit(name, networks()[0].model, given)
