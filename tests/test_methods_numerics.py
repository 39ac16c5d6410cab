"""Hard inputs, method by method: the score is finite and sensible, or the error is the user's and says what to do."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from howsure import Features, Head, Labels, LayerMeans, Logits, Method, Reps, Tap, UserError
from howsure.plugins import METHODS
from howsure.readings import channel_means
from howsure.representations import HasBias, HeadWeights

ARRAYS = {Logits(), Features(), Labels(), Head(), HasBias()}


def from_arrays() -> Iterator[str]:
    """Methods that read nothing but logits, features, labels and the head, and are shown no outlier."""
    for name, cls in METHODS.items():
        method = cls(**cls.test_params)
        if set(method.needs) <= ARRAYS and method.supervision != "outliers":
            yield name


NAMES = list(from_arrays())
FITTED = [name for name in NAMES if METHODS[name].supervision == "id-train"]
ON_FEATURES = [name for name in NAMES if Features() in METHODS[name](**METHODS[name].test_params).needs]


def images(n: int = 80, d: int = 8, c: int = 5, seed: int = 0) -> tuple[Tensor, Tensor, HeadWeights]:
    """Non-negative features `[n, d]` in clusters, their classes, and a head that tells the classes apart."""
    g = torch.Generator().manual_seed(seed)
    centres = torch.randn(c, d, generator=torch.Generator().manual_seed(99)) + 1
    y = torch.arange(n) % c
    h = (centres[y] + 0.5 * torch.randn(n, d, generator=g)).relu()
    return h, y, HeadWeights(centres, -centres.square().sum(1) / 2)


def reps(h: Tensor, y: Tensor, head: HeadWeights, logits: Tensor | None = None) -> Reps:
    z = h.float() @ head.weight.T + head.bias if logits is None else logits
    return Reps({Logits(): z, Features(): h, Labels(): y, Head(): head, HasBias(): torch.tensor([True])})


def method(name: str) -> Method:
    return METHODS[name](**METHODS[name].test_params)


def scored(name: str, train: Reps, test: Reps) -> Tensor:
    m = method(name)
    state = m.fit(train.only(m.needs, name))
    assert all(isinstance(v, Tensor) and bool(v.isfinite().all()) for v in state.values())
    scores = m.score(test.only(m.needs, name), **state)
    assert scores.shape == (len(test[Labels()]),)
    assert scores.isfinite().all()
    return scores.double()


def finite_or_a_users_error(name: str, train: Reps, test: Reps) -> None:
    try:
        scored(name, train, test)
    except UserError as error:
        assert "\n" not in str(error)  # noqa: PT017


def test_the_list_is_not_empty() -> None:
    assert {"msp", "mahalanobis", "vim", "react", "openmax", "cfood"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_fewer_images_than_dimensions(name: str) -> None:
    scored(name, reps(*images(n=6, d=40)), reps(*images(n=9, d=40, seed=1)))


@pytest.mark.parametrize("name", NAMES)
def test_constant_and_dead_features(name: str) -> None:
    (h, y, head), (test_h, test_y, _) = images(), images(n=9, seed=1)
    h, test_h = h.clone(), test_h.clone()
    h[:, 0], h[:, 1], test_h[:, 0] = 0, 3, 0
    scored(name, reps(h, y, head), reps(test_h, test_y, head))


@pytest.mark.parametrize("name", NAMES)
def test_all_features_constant(name: str) -> None:
    (h, y, head), (test_h, test_y, _) = images(), images(n=9, seed=1)
    finite_or_a_users_error(name, reps(torch.ones_like(h), y, head), reps(test_h, test_y, head))


@pytest.mark.parametrize("name", NAMES)
def test_features_all_zero(name: str) -> None:
    h, y, head = images()
    scored(name, reps(h, y, head), reps(torch.zeros(3, h.shape[1]), torch.zeros(3).long(), head))


@pytest.mark.parametrize("name", NAMES)
def test_a_thousand_classes(name: str) -> None:
    scored(name, reps(*images(n=1500, d=16, c=1000)), reps(*images(n=20, d=16, c=1000, seed=1)))


@pytest.mark.parametrize("name", NAMES)
def test_two_classes_and_one(name: str) -> None:
    for c in (2, 1):
        scored(name, reps(*images(c=c)), reps(*images(n=9, c=c, seed=1)))


@pytest.mark.parametrize("name", ON_FEATURES)
def test_half_precision_features(name: str) -> None:
    (h, y, head), (test_h, test_y, _) = images(), images(n=30, seed=1)
    h, test_h = h.half(), test_h.half()
    half = scored(name, reps(h, y, head), reps(test_h, test_y, head))
    full = scored(name, reps(h.float(), y, head), reps(test_h.float(), test_y, head))
    torch.testing.assert_close(half, full, rtol=1e-5, atol=1e-5)


def layer_distances(train: Reps, test: Reps) -> Tensor:
    """What `mahalanobis_layers` is fitted on, with the features as its one layer."""
    from howsure.methods.mahalanobis_layers import LayerDistances

    rep, h = LayerDistances(0.0), test[Features()]
    state = rep.fit(Reps({LayerMeans(): {"norm": train[Features()]}, Labels(): train[Labels()]}))
    network, readings = SimpleNamespace(stages=("norm",)), {Tap("norm", channel_means): h}
    return rep.compute(SimpleNamespace(network=network, images=h, readings=readings), **state)[:, 0]  # type: ignore[arg-type]


@pytest.mark.parametrize("name", [*ON_FEATURES, "mahalanobis_layers"])
def test_rounding_of_dependent_features_is_not_magnified(name: str) -> None:
    (h, y, head), (test_h, test_y, _) = images(n=400, d=16), images(n=100, d=16, seed=1)
    h, test_h = (torch.nn.functional.layer_norm(x, (16,)) for x in (h, test_h))
    train = reps(h, y, head)
    noise = 1e-6 * torch.randn(test_h.shape, generator=torch.Generator().manual_seed(2))
    tests = (reps(x, test_y, head) for x in (test_h, test_h + noise))
    layers = name == "mahalanobis_layers"
    first, second = (layer_distances(train, test) if layers else scored(name, train, test) for test in tests)
    assert (first - second).abs().amax() <= 0.01 * first.std()


@pytest.mark.parametrize("name", ON_FEATURES)
def test_negative_features(name: str) -> None:
    (h, y, head), (test_h, test_y, _) = images(), images(n=9, seed=1)
    for shift in (1.5, 100):
        scored(name, reps(h - shift, y, head), reps(test_h - shift, test_y, head))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [1e30, 1e4, 1e-4, 1e-30, 0.0])
def test_huge_and_tiny_logits(name: str, size: float) -> None:
    (h, y, head), (test_h, test_y, _) = images(), images(n=9, seed=1)
    g = torch.Generator().manual_seed(5)
    z, test_z = (torch.randn(len(x), 5, generator=g) * size for x in (h, test_h))
    scored(name, reps(h, y, head, z), reps(test_h, test_y, head, test_z))


@pytest.mark.parametrize("name", ON_FEATURES)
@pytest.mark.parametrize("size", [1e8, 1e-8])
def test_huge_and_tiny_features(name: str, size: float) -> None:
    (h, y, head), (test_h, test_y, _) = images(), images(n=9, seed=1)
    scored(name, reps(h * size, y, head), reps(test_h * size, test_y, head))


@pytest.mark.parametrize("name", NAMES)
def test_a_single_image(name: str) -> None:
    train, one = reps(*images()), reps(*images(n=1, seed=1))
    scored(name, train, one)
    finite_or_a_users_error(name, one, train)


@pytest.mark.parametrize("name", NAMES)
def test_an_image_scores_the_same_alone_and_in_any_order(name: str) -> None:
    train, test = reps(*images()), reps(*images(n=30, seed=1))
    together = scored(name, train, test)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(scored(name, train, test.take(order)), together[order], rtol=1e-6, atol=1e-6)
    alone = torch.cat([scored(name, train, test.take(torch.tensor([i]))) for i in range(30)])
    torch.testing.assert_close(alone, together, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_copies_of_an_image_tie(name: str) -> None:
    (h, y, head), (test_h, test_y, _) = images(), images(n=9, seed=1)
    twice = reps(test_h.repeat(2, 1), test_y.repeat(2), head)
    scores = scored(name, reps(h, y, head), twice)
    torch.testing.assert_close(scores[:9], scores[9:], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_equal_logits_tie(name: str) -> None:
    h, y, head = images()
    equal = reps(h, y, head, torch.ones(len(h), 5))
    scores = scored(name, equal, equal)
    if method(name).needs == (Logits(),):
        assert scores.unique().numel() == 1


@pytest.mark.parametrize("name", ["mahalanobis", "rmd", "gmm", "mahalanobis_layers"])
def test_one_image_a_class_has_no_covariance(name: str) -> None:
    train, test = reps(*images(n=5)), reps(*images(n=30, seed=1))
    with pytest.raises(UserError, match="two different images of a class"):
        layer_distances(train, test) if name == "mahalanobis_layers" else scored(name, train, test)


@pytest.mark.parametrize("name", FITTED)
def test_classes_without_training_images(name: str) -> None:
    train, test = reps(*images()), reps(*images(n=30, seed=1))
    scored(name, train.take((train[Labels()] != 2) & (train[Labels()] != 4)), test)


@pytest.mark.parametrize("name", NAMES)
def test_classes_never_predicted(name: str) -> None:
    (h, y, head), (test_h, test_y, _) = images(), images(n=30, seed=1)
    z = h @ head.weight.T + head.bias
    z[:, 3] = -50
    scored(name, reps(h, y, head, z), reps(test_h, test_y, head))


@pytest.mark.parametrize("name", FITTED)
def test_nothing_classified_correctly(name: str) -> None:
    (h, _, head), (test_h, test_y, _) = images(), images(n=30, seed=1)
    z = h @ head.weight.T + head.bias
    scored(name, reps(h, (z.argmax(1) + 1) % 5, head, z), reps(test_h, test_y, head))


@pytest.mark.parametrize("name", ["knn", "nnguide", "combood"])
def test_more_neighbours_than_images(name: str) -> None:
    train, test = reps(*images(n=7)), reps(*images(n=9, seed=1))
    params: dict[str, Any] = {**METHODS[name].test_params, "k": 1000}
    m, most = METHODS[name](**params), METHODS[name](**{**params, "k": 7})
    torch.testing.assert_close(m.score(test, **m.fit(train)), most.score(test, **most.fit(train)))


@pytest.mark.parametrize("name", ["mahalanobis", "rmd", "gmm", "ssd", "pnml", "knn"])
def test_a_constant_feature_changes_nothing_for_images_that_share_it(name: str) -> None:
    (h, y, head), (test_h, test_y, _) = images(), images(n=30, seed=1)
    plain = scored(name, reps(h, y, head), reps(test_h, test_y, head))

    def zero(x: Tensor) -> Tensor:
        return torch.cat([x, torch.zeros(len(x), 1)], 1)

    wide = HeadWeights(zero(head.weight), head.bias)
    got = scored(name, reps(zero(h), y, wide), reps(zero(test_h), test_y, wide))
    torch.testing.assert_close(got, plain, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", ["mahalanobis", "gmm", "residual", "ssd", "knn", "cfood", "combood"])
def test_far_away_is_stranger(name: str) -> None:
    (h, y, head), (test_h, test_y, _) = images(n=400), images(n=50, seed=1)
    far = torch.rand(50, 8, generator=torch.Generator().manual_seed(3)).square() * 20
    known = scored(name, reps(h, y, head), reps(test_h, test_y, head))
    unknown = scored(name, reps(h, y, head), reps(far, test_y, head))
    assert float((unknown[:, None] > known).double().mean()) > 0.7
