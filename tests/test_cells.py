"""What a cell may see: the images it fits, tunes and scores on."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch

from howsure import ArrayImages, Batch, Features, Head, Logits, Method, Network, cells
from howsure.bench import Bench
from howsure.cells import CellError, Scorer, candidates, certain, scored
from howsure.check import make_trial
from howsure.errors import UserError
from howsure.extract import Extractor
from howsure.plugins import METHODS
from howsure.protocol import FIT, TEST, VAL, Shift, held_back, pseudo_unknowns
from howsure.representation import Representation, Reps
from howsure.representations import ImageIds, Labels
from howsure.split import Split
from howsure.store import Store
from howsure.suite import make_method
from howsure.synthetic import Synthetic

SEEN: dict[str, set[int]] = {}


@dataclass(frozen=True)
class Shown(Representation[torch.Tensor]):
    """Which images these are, for a score to note as well."""

    def compute(self, batch: Batch, **state: torch.Tensor) -> torch.Tensor:
        return batch.ids


@dataclass(frozen=True)
class Witness(Method):
    """Notes the images that it is fitted and scored on."""

    weight: float = 1.0

    supervision = "outliers"
    grid = {"weight": (1.0, 2.0)}
    needs = (Logits(), Shown())

    def fit(self, train: Reps, outliers: Reps) -> dict[str, torch.Tensor]:
        for name, reps in (("fit inside", train), ("fit outside", outliers)):
            SEEN.setdefault(name, set()).update(reps[Shown()].tolist())
        return {}

    def score(self, reps: Reps) -> torch.Tensor:
        SEEN.setdefault("scored", set()).update(reps[Shown()].tolist())
        return self.weight * reps[Logits()].amax(1)


def made_up(n: int, seed: int) -> ArrayImages:
    rng = np.random.default_rng(seed)
    return ArrayImages(rng.integers(0, 256, (n, 16, 16, 3), dtype=np.uint8), np.arange(n) % 4)


@pytest.fixture
def bench(conv_net: Network, tmp_path) -> Bench:
    known = made_up(200, 0)
    splits = {
        "train": Split("train", known),
        "synthetic": Split("synthetic", Synthetic(known)),
        "test": Split("test", made_up(60, 1)),
        "other": Split("other", made_up(60, 2)),
    }
    shifts = [Shift("other", "other", "far", "ood")]
    return Bench(conv_net, Extractor(conv_net, Store(tmp_path), splits["train"]), splits, shifts, 0)


@pytest.mark.parametrize("protocol", ["pseudo-unknown", "synthetic"])
def test_too_few_training_images_to_make_unknowns_of(bench, protocol):
    few = made_up(3, 0)
    bench.splits.update(train=Split("train", few), synthetic=Split("synthetic", Synthetic(few)))
    with pytest.raises(CellError, match=f"'train' is too small for protocol {protocol}"):
        next(Scorer(bench, "witness", Witness()).run(protocol))


@pytest.mark.parametrize("protocol", ["pseudo-unknown", "synthetic"])
def test_outliers_made_of_training_images_keep_fitting_tuning_and_scoring_apart(bench, protocol):
    SEEN.clear()
    next(Scorer(bench, "witness", Witness()).run(protocol))
    ids = {name: bench.extractor(bench.splits[name], (ImageIds(),))[ImageIds()] for name in ("train", "synthetic")}
    own = ids["train"].tolist() + ids["synthetic"].tolist()
    fitted = SEEN["fit inside"] | SEEN["fit outside"]
    tuned = SEEN["scored"] & set(own)
    assert fitted <= set(own)
    assert tuned
    assert fitted.isdisjoint(tuned)
    parts = {part: set(ids["train"][bench.part("train", part)].tolist()) for part in (FIT, VAL, TEST)}
    assert SEEN["fit inside"] <= parts[FIT]
    assert SEEN["scored"].isdisjoint(parts[TEST] | parts[FIT])
    assert SEEN["fit inside"].isdisjoint(SEEN["fit outside"])


@pytest.mark.parametrize("protocol", ["same-shift", "pseudo-unknown", "synthetic"])
def test_a_detector_is_fitted_on_no_more_images_than_it_may_be(bench, protocol, monkeypatch):
    monkeypatch.setattr(cells, "_MOST_TO_FIT_ON", 12)
    SEEN.clear()
    next(Scorer(bench, "witness", Witness().settled(("weight",))).run(protocol))
    assert [len(SEEN[f"fit {kind}"]) for kind in ("inside", "outside")] == [12, 12]


@dataclass(frozen=True)
class FitWitness(Method):
    """Notes, for each value of its grid, the training images that it is fitted on, and those that it scores."""

    weight: float = 1.0

    supervision = "id-train"
    grid = {"weight": (1.0, 2.0)}
    needs = (Logits(), Shown(), Labels())

    def fit(self, train: Reps) -> dict[str, torch.Tensor]:
        FITS.append((self.weight, set(train[Shown()].tolist()), set(train[Labels()].tolist())))
        return {}

    def score(self, reps: Reps) -> torch.Tensor:
        SEEN.setdefault("scored", set()).update(reps[Shown()].tolist())
        return self.weight * reps[Logits()].amax(1)


FITS: list[tuple[float, set[int], set[int]]] = []


@pytest.mark.parametrize("protocol", ["same-shift", "pseudo-unknown", "synthetic"])
def test_what_is_fitted_on_training_images_is_not_tuned_on_them(bench, protocol):
    SEEN.clear()
    FITS.clear()
    list(Scorer(bench, "witness", FitWitness()).run(protocol))
    train = set(bench.ids["train"][ImageIds()].tolist())
    tuned = SEEN["scored"] & train
    assert {weight for weight, *_ in FITS} == {1.0, 2.0}
    assert [seen for *_, seen, _ in FITS][-1] == train
    if protocol == "same-shift":
        assert all(seen == train for _, seen, _ in FITS)
        return
    assert tuned
    while_tuned = [(seen, classes) for _, seen, classes in FITS if seen != train]
    assert len(while_tuned) == 2
    left = 1 if protocol == "pseudo-unknown" else 0
    assert all(seen.isdisjoint(tuned) and len(classes) == 4 - left for seen, classes in while_tuned)


@dataclass(frozen=True)
class Learned(Representation[torch.Tensor]):
    """Notes the images that it is fitted on, and their classes; zeros `[N]`."""

    needs = (ImageIds(), Labels())

    def fit(self, train: Reps) -> dict[str, torch.Tensor]:
        fitted_images.append(set(train[ImageIds()].tolist()))
        fitted_classes.append(set(train[Labels()].tolist()))
        return {}

    def compute(self, batch: Batch, **state: torch.Tensor) -> torch.Tensor:
        return batch.images.new_zeros(len(batch.images))


@dataclass(frozen=True)
class Learner(Method):
    weight: float = 1.0

    grid = {"weight": (1.0, 2.0)}
    needs = (Learned(), Logits())

    def fit(self, train: Reps, outliers: Reps | None = None) -> dict[str, torch.Tensor]:
        return {}

    def score(self, reps: Reps) -> torch.Tensor:
        return self.weight * reps[Logits()].amax(1)


@dataclass(frozen=True)
class OutlierLearner(Learner):
    supervision = "outliers"


@dataclass(frozen=True)
class TrainingLearner(Learner):
    supervision = "id-train"


fitted_images: list[set[int]] = []
fitted_classes: list[set[int]] = []


def test_a_representation_is_fitted_without_the_classes_that_a_detector_is_shown_as_unknown(bench):
    fitted_classes.clear()
    list(Scorer(bench, "learner", OutlierLearner()).run("pseudo-unknown"))
    held = set(held_back(bench.ids["train"][Labels()], bench.seed).tolist())
    assert fitted_classes == [set(range(4)) - held]


def test_a_representation_is_fitted_on_all_classes_once_a_method_that_sees_no_outlier_is_tuned(bench):
    fitted_classes.clear()
    list(Scorer(bench, "learner", TrainingLearner()).run("pseudo-unknown"))
    held = set(held_back(bench.ids["train"][Labels()], bench.seed).tolist())
    assert fitted_classes == [set(range(4)) - held, set(range(4))]


def test_a_representation_is_not_fitted_on_the_images_that_altered_ones_to_tune_on_are_made_of(bench):
    fitted_images.clear()
    list(Scorer(bench, "learner", TrainingLearner()).run("synthetic"))
    train = bench.ids["train"][ImageIds()]
    tuned_on = set(train[bench.part("train", VAL)].tolist())
    assert fitted_images == [set(train.tolist()) - tuned_on, set(train.tolist())]


@dataclass(frozen=True)
class ValWitness(FitWitness):
    fit_split = "val"


def test_a_method_fitted_on_a_validation_split_sees_all_of_it_but_the_classes_held_back(bench):
    bench.splits["val"] = Split("val", made_up(80, 4))
    FITS.clear()
    list(Scorer(bench, "witness", ValWitness()).run("pseudo-unknown"))
    ids, labels = (bench.ids["val"][rep] for rep in (ImageIds(), Labels()))
    apart = torch.isin(labels, held_back(bench.ids["train"][Labels()], bench.seed))
    assert apart.any()
    fitted = [seen for _, seen, _ in FITS]
    assert fitted == [set(ids[~apart].tolist())] * 2 + [set(ids.tolist())]


def test_what_was_fitted_on_some_images_is_not_taken_for_what_was_fitted_on_all(bench):
    some, split = torch.arange(20), bench.splits["train"]
    rep = METHODS["mahalanobis_layers"](epsilon=0.0).needs[0]
    fresh(bench)(split, (rep,))
    apart = fresh(bench).fitted_on(some)(split, (rep,))[rep]
    alone = Extractor(bench.network, None, split).fitted_on(some)(split, (rep,))[rep]
    assert torch.equal(apart, alone)
    assert not torch.allclose(apart, fresh(bench)(split, (rep,))[rep])


def test_a_hyper_parameter_that_is_set_is_not_tuned(bench):
    knn = make_method("seven", {"use": "knn", "k": 7})
    assert candidates(knn) == [knn]
    assert len(candidates(make_method("odin", {"epsilon": 0.002}))) == len(METHODS["odin"].grid["temperature"])
    assert len(candidates(make_method("knn", {}))) == len(METHODS["knn"].grid["k"])


def test_a_grid_is_tuned_on_a_few_images_of_all_severities_then_fitted_on_the_whole_fit_part(bench, monkeypatch):
    monkeypatch.setattr("howsure.bench._MOST_TO_TUNE_ON", {FIT: 12, VAL: 6})
    bench.splits["other@2"] = Split("other@2", made_up(60, 3))
    bench.shifts[:] = [Shift(name, "other", "noise", "corruption", i) for i, name in enumerate(("other", "other@2"), 1)]
    SEEN.clear()
    next(Scorer(bench, "witness", Witness()).run("same-shift"))
    ids = {name: reps[ImageIds()] for name, reps in bench.ids.items()}
    parts = {(name, p): own[bench.part(name, p)].tolist() for name, own in ids.items() for p in (FIT, VAL)}
    few = {(name, p): ids[name][bench.indices(name, p, tuning=True)].tolist() for name, p in parts}
    assert [len(few[name, VAL]) for name in ("test", "other", "other@2")] == [6, 3, 3]
    assert all(set(some) <= set(parts[key]) for key, some in few.items() if key[0] != "synthetic")
    tuned = set(few["test", VAL] + few["other", VAL] + few["other@2", VAL])
    everything = {*ids["test"].tolist(), *ids["other"].tolist()}
    assert SEEN["scored"] == everything | tuned
    assert SEEN["fit inside"] == set(parts["test", FIT])
    assert SEEN["fit outside"] <= set(parts["other", FIT] + few["other@2", FIT])
    assert len(SEEN["fit outside"] & set(parts["other", FIT])) >= min(len(parts["other", FIT]), len(parts["test", FIT]))


def test_all_severities_of_a_corruption_share_what_is_chosen(bench, monkeypatch):
    bench.splits["other@2"] = Split("other@2", made_up(60, 3))
    bench.shifts[:] = [Shift(name, "other", "noise", "corruption", i) for i, name in enumerate(("other", "other@2"), 1)]
    fits: list[float] = []
    monkeypatch.setattr(Witness, "fit", lambda self, train, outliers: fits.append(self.weight) or {})
    list(Scorer(bench, "witness", Witness()).run("same-shift"))
    assert fits[:2] == [1.0, 2.0]
    assert len(fits) == len(candidates(Witness())) + len(bench.shifts)


def test_a_detector_is_timed_on_outliers_of_a_shift_that_can_be_split(bench):
    bench.splits = {"small": Split("small", made_up(1, 5)), **bench.splits}
    bench.shifts.insert(0, Shift("small", "small", "far", "ood"))
    SEEN.clear()
    Scorer(bench, "witness", Witness()).fit_once()
    assert SEEN["fit outside"] <= set(bench.ids["other"][ImageIds()].tolist())


def test_images_to_tune_on_are_of_all_classes_though_the_set_is_in_their_order(bench, monkeypatch):
    monkeypatch.setattr("howsure.bench._MOST_TO_TUNE_ON", {FIT: 30, VAL: 20})
    labels = np.sort(np.arange(300) % 10)
    x = np.random.default_rng(0).integers(0, 255, (300, 4, 4, 3), dtype=np.uint8)
    bench.splits["test"] = Split("test", ArrayImages(x, labels))
    seen = torch.from_numpy(labels)[bench.indices("test", FIT, tuning=True)]
    assert len(seen) == 30
    assert len(seen.unique()) > 6


def test_scoring_looks_at_no_image_again_for_what_a_representation_was_fitted_on(bench):
    method = METHODS["actprint"]()
    for split in bench.splits.values():
        bench.extractor(split, (*method.needs, ImageIds(), Labels()))
    calls = []
    bench.network.model.register_forward_hook(lambda *_: calls.append(1))
    ((_, inside, outside, _),) = Scorer(bench, "actprint", method).run("none")
    assert len(inside) == len(outside) == 60
    assert not calls


PASSED: Counter[tuple[float, int, bytes]] = Counter()


@dataclass(frozen=True)
class Passing(Representation[torch.Tensor]):
    """Counts the images that it makes a pass over, by weight, id and pixels."""

    cost = "passes"
    weight: float = 1.0

    def compute(self, batch, **state):
        pixels = (image.numpy().tobytes() for image in batch.images)
        PASSED.update((self.weight, *image) for image in zip(batch.ids.tolist(), pixels, strict=True))
        return batch.logits.double().roll(1, 1) ** self.weight


@dataclass(frozen=True)
class Costly(Method):
    """A score whose representation makes passes of its own."""

    weight: float = 1.0

    grid = {"weight": (1.0, 2.0)}

    @property
    def needs(self):
        return (Passing(self.weight),)

    def score(self, reps: Reps) -> torch.Tensor:
        return reps[self.needs[0]].amax(1)


@dataclass(frozen=True)
class CostlyDetector(Costly):
    """The same, fitted on outliers."""

    supervision = "outliers"

    def fit(self, train: Reps, outliers: Reps) -> dict[str, torch.Tensor]:
        inside, outside = (reps[self.needs[0]].mean(0) for reps in (train, outliers))
        return {"direction": outside - inside}

    def score(self, reps: Reps, direction: torch.Tensor) -> torch.Tensor:
        return reps[self.needs[0]] @ direction


def passed(weight: float) -> set[int]:
    return {i for w, i, _ in PASSED if w == weight}


def test_passes_for_a_tuned_value_are_made_over_the_parts_in_use_alone(bench):
    PASSED.clear()
    ((_, inside, outside, chosen),) = Scorer(bench, "costly", Costly()).run("same-shift")
    ids = {name: bench.ids[name][ImageIds()] for name in ("test", "other")}
    parts = {p: {i for name, own in ids.items() for i in own[bench.part(name, p)].tolist()} for p in (VAL, TEST)}
    assert (len(inside), len(outside)) == tuple(len(bench.part(name, TEST)) for name in ("test", "other"))
    assert passed(chosen["weight"]) == parts[VAL] | parts[TEST]
    assert passed(3 - chosen["weight"]) == parts[VAL]
    whole = bench.reps("test", [Passing(chosen["weight"])], "check")
    np.testing.assert_allclose(inside, Costly(**chosen).score(whole)[bench.part("test", TEST)], rtol=1e-6)


@pytest.mark.parametrize("order", [("none", "synthetic", "same-shift"), ("same-shift", "pseudo-unknown", "none")])
def test_no_image_is_looked_at_twice_by_whatever_protocol_and_seed(bench, order):
    PASSED.clear()
    bench.splits["noisy"] = replace(bench.splits["test"], name="noisy", corruption=("gaussian_noise", 5))
    bench.shifts.append(Shift("noisy", "gaussian_noise", "noise", "corruption", 5))
    found = {}
    for seed in (0, 1):
        again = Bench(bench.network, fresh(bench), bench.splits, bench.shifts, seed)
        for protocol in (*order, "leave-one-out"):
            for method in (Costly(), CostlyDetector())[: 1 if protocol == "none" else 2]:
                found[seed, protocol, method] = list(Scorer(again, "costly", method).run(protocol))
    assert set(PASSED.values()) == {1}
    plain = Bench(bench.network, Extractor(bench.network, None, bench.splits["train"]), bench.splits, bench.shifts, 0)
    for (seed, protocol, method), rows in found.items():
        plain.seed = seed
        for (_, *scores, values), (_, *expected, same) in zip(
            rows, Scorer(plain, "costly", method).run(protocol), strict=True
        ):
            assert values == same
            for one, other in zip(scores, expected, strict=True):
                np.testing.assert_allclose(one, other, rtol=1e-5)


def test_only_what_every_value_of_a_grid_needs_and_no_passes_is_read_ahead():
    found = {name: certain(METHODS[name]()) for name in ("odin", "mahalanobis_layers", "knn", "adascale_a")}
    assert found == {"odin": [], "mahalanobis_layers": [], "knn": [Features()], "adascale_a": [Features(), Head()]}


def fresh(bench: Bench) -> Extractor:
    return Extractor(bench.network, bench.extractor.store, bench.splits["train"])


@pytest.mark.parametrize("protocol", ["pseudo-unknown", "synthetic"])
def test_a_tuned_detector_learns_from_training_images_what_whole_splits_give(bench, protocol):
    ((_, inside, _, chosen),) = Scorer(bench, "costly", CostlyDetector()).run(protocol)
    method = CostlyDetector(**chosen)
    reps = {
        name: fresh(bench)(bench.splits[name], (*method.needs, Labels())) for name in ("train", "synthetic", "test")
    }
    fit = bench.part("train", FIT)
    kept, held = pseudo_unknowns(reps["train"][Labels()], fit, bench.seed, 8000)
    if protocol == "synthetic":
        pair = reps["train"].take(fit[fit % 2 == 0]), reps["synthetic"].take(fit[fit % 2 == 1])
    else:
        pair = reps["train"].take(kept), reps["train"].take(held)
    expected = method.score(reps["test"], **method.fit(*pair))[bench.part("test", TEST)]
    np.testing.assert_allclose(inside, expected, rtol=1e-6)


@dataclass(frozen=True)
class _Peeks(Method):
    """Reads the answers, or which image it is."""

    read: Any = None

    @property
    def needs(self):
        return (Logits(), self.read)

    def score(self, reps):
        return -reps[Logits()].gather(1, reps[self.read][:, None] % 4)[:, 0]


@pytest.mark.parametrize("rep", [Labels(), ImageIds()])
def test_a_score_may_not_read_what_is_for_fit_alone(rep, conv_net):
    trial = make_trial(_Peeks(rep), conv_net)
    with pytest.raises(UserError, match=rf"score reads {type(rep).__name__}\(\), which is for `fit` alone"):
        scored(trial.method, trial.reps, trial.state, "'some'")


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("name", ["msp", "lts", "nac", "she"])
def test_what_is_not_a_finite_number_is_named_and_not_scored(name, value, conv_net):
    """A method may take it for any other number: the largest of logits, or a share of a sum."""
    trial = make_trial(METHODS[name](), conv_net)
    rep = next(rep for rep in trial.reps if rep in (Features(), Logits()))
    trial.reps[rep][3, 0] = value
    with pytest.raises(CellError, match=f"'some': {type(rep).__name__} is NaN or infinite for 1 of 24 images"):
        scored(trial.method, trial.reps, trial.state, "'some'")
