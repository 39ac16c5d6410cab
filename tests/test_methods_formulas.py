"""Each method against its formula written out slowly: loops over images and classes, float64, nothing shared."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from decimal import Decimal, localcontext
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.optimize import minimize_scalar

from howsure import Features, Head, Labels, Logits, Reps, UserError
from howsure.plugins import METHODS
from howsure.representations import HasBias, HeadWeights

Array = np.ndarray[Any, Any]
D, C = 6, 4


class Data:
    """A network's head on ReLU features in clusters: `h [N, D]`, `z [N, C]`, `y [N]`, `w [C, D]`, `b [C]`, float64."""

    def __init__(self, seed: int, n: int = 60) -> None:
        rng, centres = np.random.default_rng(seed), np.random.default_rng(7).normal(size=(C, D)) + 1
        self.w = centres + rng.normal(size=(C, D)) * 0.2
        self.b = -np.square(centres).sum(1) / 2
        self.y = np.arange(n) % C
        self.h = np.maximum(centres[self.y] + rng.normal(size=(n, D)) * 0.7, 0)
        self.z = self.h @ self.w.T + self.b

    def head_of(self, other: Data) -> Data:
        """The same images with the head of another set."""
        self.w, self.b = other.w, other.b
        self.z = self.h @ self.w.T + self.b
        return self

    def reps(self) -> Reps:
        def tensor(x: Array) -> torch.Tensor:
            return torch.tensor(x)

        return Reps(
            {
                Logits(): tensor(self.z),
                Features(): tensor(self.h),
                Labels(): tensor(self.y),
                Head(): HeadWeights(tensor(self.w), tensor(self.b)),
            }
        )


def data(seed: int = 0, n_train: int = 60, n_test: int = 13) -> tuple[Data, Data]:
    train = Data(seed, n_train)
    return train, Data(seed + 1000, n_test).head_of(train)


def scores(name: str, train: Data, test: Data, **params: Any) -> Array:
    method = METHODS[name](**params)
    return np.asarray(method.score(test.reps(), **method.fit(train.reps())))


def softmax(z: Array) -> Array:
    e = np.exp(z - z.max())
    return e / e.sum()


def lse(z: Array) -> float:
    return float(z.max() + math.log(sum(math.exp(v - z.max()) for v in z)))


def unit(h: Array) -> Array:
    return h / np.linalg.norm(h) if h.any() else h


# ------------------------------------------------------------------------------------------------ from logits


def renyi(z: Array, alpha: float) -> float:
    return math.log(sum(p**alpha for p in softmax(z))) / (1 - alpha)


def gen(z: Array, gamma: float, m: int) -> float:
    return sum(p**gamma * (1 - p) ** gamma for p in sorted(softmax(z), reverse=True)[:m])


def log_odds(z: Array) -> float:
    return lse(np.sort(z)[:-1]) - max(z)


LOGIT_FORMULAS: list[tuple[str, dict[str, Any], Callable[[Array], float]]] = [
    ("msp", {}, lambda z: 1 - max(softmax(z))),
    ("maxlogit", {}, lambda z: -max(z)),
    ("energy", {}, lambda z: -lse(z)),
    ("energy", {"temperature": 2.5}, lambda z: -2.5 * lse(z / 2.5)),
    ("entropy", {}, lambda z: -sum(p * math.log(p) for p in softmax(z))),
    ("margin", {}, lambda z: 1 - (sorted(softmax(z))[-1] - sorted(softmax(z))[-2])),
    ("doctor", {}, lambda z: 1 - sum(p * p for p in softmax(z))),
    ("renyi", {}, lambda z: renyi(z, 0.5)),
    ("renyi", {"alpha": 2.0}, lambda z: renyi(z, 2.0)),
    ("renyi", {"alpha": 1.0}, lambda z: -sum(p * math.log(p) for p in softmax(z))),
    ("renyi", {"alpha": math.inf}, lambda z: -math.log(max(softmax(z)))),
    ("gen", {}, lambda z: gen(z, 0.1, 100)),
    ("gen", {"gamma": 2.0, "m": 2}, lambda z: gen(z, 2.0, 2)),
    ("mcm", {"tau": 0.7}, lambda z: log_odds(z / 0.7)),
    ("odin", {"temperature": 3.0, "epsilon": 0.0}, lambda z: 1 - max(softmax(z / 3))),
]


@pytest.mark.parametrize(("name", "params", "formula"), LOGIT_FORMULAS, ids=[f"{n}{p}" for n, p, _ in LOGIT_FORMULAS])
@given(rows=st.lists(st.lists(st.floats(-12, 12, width=32), min_size=C, max_size=C), min_size=1, max_size=5))
@settings(max_examples=25, deadline=None)
def test_logit_score(name: str, params: dict[str, Any], formula: Callable[[Array], float], rows: list[Any]) -> None:
    z = np.array(rows)
    got = METHODS[name](**params).score(Reps({Logits(): torch.tensor(z)}))
    assert got.shape == (len(z),)
    np.testing.assert_allclose(got, [formula(row) for row in z], rtol=1e-6, atol=1e-8)


CONFIDENT: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in ("msp", "margin", "doctor", "entropy", "gen", "renyi", "mcm")),
    ("mcm", {"tau": 0.01}),
    ("odin", {"temperature": 1.0, "epsilon": 0.0}),
]


@pytest.mark.parametrize(("name", "params"), CONFIDENT, ids=[f"{n}{p}" for n, p in CONFIDENT])
def test_confident_images_do_not_tie(name: str, params: dict[str, Any]) -> None:
    z = torch.tensor([[40.0, 0, 0], [60.0, 0, 0], [80.0, 0, 0]])
    first, second, third = METHODS[name](**params).score(Reps({Logits(): z}))
    assert first > second > third


def exact_softmax(z: Sequence[float]) -> list[Decimal]:
    powers = [Decimal(v).exp() for v in z]
    return [power / sum(powers) for power in powers]


def exact_entropy(p: Sequence[Decimal]) -> Decimal:
    return -sum((v * v.ln() for v in p), Decimal(0))


def sure(gap: float) -> list[float]:
    """Logits of an image whose class leads by about `gap`."""
    return [0.5, gap, -0.25, -1.0]


GAPS = (0.5, 5.0, 20.0, 34.5, 36.0, 37.0, 60.0, 300.0)


@pytest.mark.parametrize("gap", GAPS)
@pytest.mark.parametrize(("name", "params"), [("entropy", {}), ("renyi", {"alpha": 1.0})])
def test_entropy_of_a_network_that_is_very_sure(name: str, params: dict[str, Any], gap: float) -> None:
    with localcontext() as context:
        context.prec = 400
        expected = float(exact_entropy(exact_softmax(sure(gap))))
    score = METHODS[name](**params).score(Reps({Logits(): torch.tensor([sure(gap)])}))
    assert float(score) == pytest.approx(expected, rel=1e-9, abs=0)


@pytest.mark.parametrize("gap", GAPS)
@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_exgrad_of_a_network_that_is_very_sure(norm: str, gap: float) -> None:
    h, z = [3.0, 0.0, 4.0], sure(gap)
    reps = Reps({Features(): torch.tensor([h]), Logits(): torch.tensor([z]), HasBias(): torch.tensor([False])})
    with localcontext() as context:
        context.prec = 400
        p = exact_softmax(z)
        expected = Decimal(0)
        for c in range(4):
            e = [p[i] - (i == c) for i in range(4)]
            expected += p[c] * (7 * sum(map(abs, e)) if norm == "l1" else 5 * sum(v * v for v in e).sqrt())
    assert float(METHODS["exgrad"](norm=norm).score(reps)) == pytest.approx(float(expected), rel=1e-9, abs=0)


@pytest.mark.parametrize("gap", GAPS)
@pytest.mark.parametrize("spread", [1e-3, 1.0, 40.0])
@pytest.mark.parametrize("measure", ["entropy", "mutual_information"])
def test_samples_of_a_network_that_is_very_sure(measure: str, spread: float, gap: float) -> None:
    z = torch.tensor([sure(gap)] * 5, dtype=torch.float64)
    z += spread * torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    method = METHODS["tta"](measure=measure)
    with localcontext() as context:
        context.prec = 400
        p = [exact_softmax(row) for row in z.tolist()]
        expected = exact_entropy([sum(column) / 5 for column in zip(*p, strict=True)])
        if measure == "mutual_information":
            expected -= sum(map(exact_entropy, p)) / 5
    assert float(method.score(Reps({method.needs[0]: z[None]}))) == pytest.approx(float(expected), rel=1e-6, abs=0)


def test_temperature_minimises_the_loss() -> None:
    train, test = data(3, n_train=200)
    train.y = np.where(np.arange(200) % 3 == 0, train.y, train.z.argmax(1))

    def loss(t: float) -> float:
        return -sum(math.log(softmax(z / t)[y]) for z, y in zip(train.z, train.y, strict=True))

    best = minimize_scalar(loss, bounds=(0.1, 50), method="bounded", options={"xatol": 1e-8}).x
    state = METHODS["temperature_scaling"]().fit(train.reps())
    assert float(state["temperature"]) == pytest.approx(best, rel=1e-4)
    expected = [1 - max(softmax(z / best)) for z in test.z]
    np.testing.assert_allclose(scores("temperature_scaling", train, test), expected, rtol=1e-3)


def test_klm() -> None:
    train, test = data(4)
    means = []
    for k in sorted(set(train.z.argmax(1))):
        means.append(np.mean([softmax(z) for z in train.z if z.argmax() == k], axis=0))
    expected = [
        min(sum(p * math.log(p / q) for p, q in zip(softmax(z), m, strict=True)) for m in means) for z in test.z
    ]
    np.testing.assert_allclose(scores("klm", train, test), expected, rtol=1e-9)


def exactly(z: Sequence[float]) -> list[Decimal]:
    """The softmax, in the precision of the decimal context."""
    e = [Decimal(v).exp() for v in z]
    return [x / sum(e) for x in e]


def test_klm_of_a_network_that_is_very_sure() -> None:
    gaps = [40.0, 50.0, 60.0, 70.0]
    train = torch.tensor([[g if c == k else float(c == (k + 1) % 3) for c in range(3)] for g in gaps for k in range(3)])
    test = torch.tensor([[g, 0.0, 1.0] for g in range(30, 100, 7)])
    with localcontext() as context:
        context.prec = 60
        own = [exactly(z) for z in train.tolist() if z[0] == max(z)]
        mean = [sum(p) / len(own) for p in zip(*own, strict=True)]
        kl = [sum(p * (p / q).ln() for p, q in zip(exactly(z), mean, strict=True)) for z in test.tolist()]
    method = METHODS["klm"]()
    got = method.score(Reps({Logits(): test}), **method.fit(Reps({Logits(): train})))
    np.testing.assert_allclose(got, [float(k) for k in kl], rtol=1e-9)


@pytest.mark.parametrize("alpha", [2, 10])
def test_openmax(alpha: int) -> None:
    train, test = data(5, n_train=400)
    train.y = np.where(np.arange(400) % 5 == 0, train.y, train.z.argmax(1))
    tail, top = 20, min(alpha, C)
    means, fits = [], []
    for k in range(C):
        rows = [z for z, y in zip(train.z, train.y, strict=True) if y == k and z.argmax() == k]
        means.append(np.mean(rows, axis=0))
        distances = np.sort([np.linalg.norm(z - means[k]) for z in rows])[-tail:]
        moved = distances + 10_000 - distances.min()
        shape, _, scale = stats.weibull_min.fit(moved, floc=0)
        fits.append((distances.min(), shape, scale))
    expected = []
    for z in test.z:
        w = np.ones(C)
        for rank, k in enumerate(np.argsort(-z)[:top]):
            smallest, shape, scale = fits[k]
            x = np.linalg.norm(z - means[k]) + 10_000 - smallest
            w[k] = 1 - (top - rank) / top * stats.weibull_min.cdf(x, shape, 0, scale)
        unknown = sum(z * (1 - w))
        expected.append(unknown - lse(z * w))
    np.testing.assert_allclose(scores("openmax", train, test, alpha=alpha, tail=tail), expected, rtol=2e-2, atol=2e-2)


def test_weibull_tail_is_the_likeliest() -> None:
    rng = np.random.default_rng(0)
    z = np.concatenate([rng.normal(size=(200, 3)) + 3 * np.eye(3)[k] for k in range(3)])
    y = z.argmax(1)
    reps = Reps({Logits(): torch.tensor(z), Labels(): torch.tensor(y)})
    state = METHODS["openmax"](tail=25).fit(reps)
    for k in range(3):
        distances = np.sort(np.linalg.norm(z[y == k] - z[y == k].mean(0), axis=1))[-25:]
        x = 1 + (distances - distances.min()) / 10_000
        shape, log_scale, smallest = state["weibull"][k].tolist()
        assert smallest == pytest.approx(distances.min())

        def loss(c: float, s: float, x: Array = x) -> float:
            return -float(np.sum(np.log(c) - s + (c - 1) * (np.log(x) - s) - np.exp(c * (np.log(x) - s))))

        best = loss(shape, log_scale)
        for c in (0.97, 1.03):
            assert loss(shape * c, log_scale) > best
        for shift in (-1e-5, 1e-5):
            assert loss(shape, log_scale + shift) > best


# ---------------------------------------------------------------------------------------------- from features


def gaussian(train: Data) -> tuple[list[Array], Array]:
    means = [np.mean([h for h, y in zip(train.h, train.y, strict=True) if y == k], axis=0) for k in range(C)]
    s = sum(np.outer(h - means[y], h - means[y]) for h, y in zip(train.h, train.y, strict=True)) / len(train.h)
    return means, s


def shrunk(s: Array, shrinkage: float) -> Array:
    return (1 - shrinkage) * s + shrinkage * np.diag(np.diag(s))


def distance(x: Array, mean: Array, s: Array) -> float:
    return float((x - mean) @ np.linalg.inv(s) @ (x - mean))


@pytest.mark.parametrize("shrinkage", [0.0, 0.3])
def test_mahalanobis_and_rmd(shrinkage: float) -> None:
    train, test = data(6)
    means, s = gaussian(train)
    nearest = [min(distance(h, m, shrunk(s, shrinkage)) for m in means) for h in test.h]
    np.testing.assert_allclose(scores("mahalanobis", train, test, shrinkage=shrinkage), nearest, rtol=1e-8)
    mean, everything = train.h.mean(0), shrunk(np.cov(train.h.T, bias=True), shrinkage)
    background = [distance(h, mean, everything) for h in test.h]
    expected = np.array(nearest) - background
    np.testing.assert_allclose(scores("rmd", train, test, shrinkage=shrinkage), expected, rtol=1e-7, atol=1e-8)


def test_rmd_where_classes_collapse() -> None:
    """Little varies within classes, nothing correlates: what does not depend on the class cancels in the formula."""
    train, test = data(26, n_train=400)
    rng, width = np.random.default_rng(26), 24
    spread, between = np.logspace(0, -4, width), np.zeros((C, width))
    between[:, :C] = 8 * rng.normal(size=(C, C))
    noise = rng.normal(size=(400, width))
    noise -= np.stack([noise[train.y == k].mean(0) for k in range(C)])[train.y]
    noise = np.linalg.qr(noise)[0] * math.sqrt(400)
    turn = np.linalg.qr(rng.normal(size=(width, width)))[0]
    train.h = (between[train.y] + spread * noise) @ turn
    test.h = (between[test.y] + 1.2 * spread * rng.normal(size=(len(test.y), width))) @ turn
    means, s = gaussian(train)
    mean, everything = train.h.mean(0), np.cov(train.h.T, bias=True)
    expected = [min(distance(h, m, s) for m in means) - distance(h, mean, everything) for h in test.h]
    np.testing.assert_allclose(scores("rmd", train, test), expected, rtol=1e-3)


@pytest.mark.parametrize("shrinkage", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("n", [80, 12])
def test_gmm(shrinkage: float, n: int) -> None:
    train, test = data(7, n_train=n)
    if n == 12 and shrinkage == 0:
        with pytest.raises(UserError, match="shrinkage"):
            scores("gmm", train, test, shrinkage=0.0)
        return
    means, tied = gaussian(train)
    expected = []
    for h in test.h:
        likelihood = 0.0
        for k in range(C):
            rows = train.h[train.y == k]
            s = (1 - shrinkage) * np.cov(rows.T, bias=True) + shrinkage * tied
            likelihood += len(rows) / n * stats.multivariate_normal(means[k], s).pdf(h)
        expected.append(-math.log(likelihood))
    np.testing.assert_allclose(scores("gmm", train, test, shrinkage=shrinkage), expected, rtol=1e-7)


def test_ssd() -> None:
    train, test = data(8)
    v = np.array([unit(h) for h in train.h])
    expected = [distance(unit(h), v.mean(0), np.cov(v.T, bias=True)) for h in test.h]
    np.testing.assert_allclose(scores("ssd", train, test), expected, rtol=1e-7)


@pytest.mark.parametrize("dim", [2, 5, None, 99])
def test_residual_and_vim(dim: int | None) -> None:
    train, test = data(9)
    main = dim if dim is not None and dim < D else D // 2
    origin = -np.linalg.pinv(train.w) @ train.b
    values, vectors = np.linalg.eigh((train.h - origin).T @ (train.h - origin) / len(train.h))
    rest = [vectors[:, i] for i in np.argsort(-values)[main:]]

    def residual(h: Array) -> float:
        return math.sqrt(sum(((h - origin) @ v) ** 2 for v in rest))

    expected = np.array([residual(h) for h in test.h])
    np.testing.assert_allclose(scores("residual", train, test, dim=dim), expected, rtol=1e-8)
    alpha = np.mean([z.max() for z in train.z]) / np.mean([residual(h) for h in train.h])
    expected = alpha * expected - [lse(z) for z in test.z]
    np.testing.assert_allclose(scores("vim", train, test, dim=dim), expected, rtol=1e-8)


@given(k=st.integers(1, 90), seed=st.integers(0, 5))
@settings(max_examples=15, deadline=None)
def test_knn(k: int, seed: int) -> None:
    train, test = data(seed)
    expected = [sorted(np.linalg.norm(unit(h) - unit(t)) for t in train.h)[min(k, 60) - 1] for h in test.h]
    np.testing.assert_allclose(scores("knn", train, test, k=k), expected, atol=1e-6)


@pytest.mark.parametrize("k", [1, 5, 20])
def test_knn_in_a_narrow_cone(k: int) -> None:
    train, test = data(10)
    train.h, test.h = (300 + x.h for x in (train, test))
    expected = [sorted(np.linalg.norm(unit(h) - unit(t)) for t in train.h)[k - 1] for h in test.h]
    np.testing.assert_allclose(scores("knn", train, test, k=k), expected, rtol=1e-3)


def test_knn_where_training_features_vanish() -> None:
    train, test = data(10)
    train.h[:, 3:], train.h[::3], test.h[:, :3] = 0, 0, 0.1
    expected = [min(np.linalg.norm(unit(h) - unit(t)) for t in train.h) for h in test.h]
    np.testing.assert_allclose(scores("knn", train, test, k=1), expected, rtol=1e-5)


def test_she() -> None:
    train, test = data(10)
    patterns = {k: train.h[(train.y == k) & (train.z.argmax(1) == k)] for k in range(C)}
    right = train.h[train.y == train.z.argmax(1)].mean(0)
    expected = []
    for h, z in zip(test.h, test.z, strict=True):
        rows = patterns[int(z.argmax())]
        expected.append(-float(h @ (rows.mean(0) if len(rows) else right)))
    np.testing.assert_allclose(scores("she", train, test), expected, rtol=1e-9)


@pytest.mark.parametrize(("k", "bank"), [(3, 1.0), (1, 0.5), (100, 0.2)])
def test_nnguide(k: int, bank: float) -> None:
    train, test = data(11)
    rows = np.round(np.linspace(0, 59, round(60 * bank))).astype(int)
    expected = []
    for h, z in zip(test.h, test.z, strict=True):
        similar = sorted((lse(train.z[i]) * float(unit(train.h[i]) @ unit(h)) for i in rows), reverse=True)[:k]
        expected.append(-lse(z) * np.mean(similar))
    np.testing.assert_allclose(scores("nnguide", train, test, k=k, bank=bank), expected, rtol=1e-5)


@pytest.mark.parametrize("by_distance", [True, False])
def test_fdbd(by_distance: bool) -> None:
    train, test = data(12)
    expected = []
    for h, z in zip(test.h, test.z, strict=True):
        y = int(z.argmax())
        to_boundaries = [(z[y] - z[c]) / np.linalg.norm(train.w[y] - train.w[c]) for c in range(C) if c != y]
        length = np.linalg.norm(h - train.h.mean(0)) if by_distance else np.linalg.norm(h)
        expected.append(-np.mean(to_boundaries) / length)
    np.testing.assert_allclose(scores("fdbd", train, test, distance_as_normalizer=by_distance), expected, rtol=1e-9)


def test_nci() -> None:
    train, test = data(13)
    mu, expected = train.h.mean(0), []
    for h, z in zip(test.h, test.z, strict=True):
        proximity = (h - mu) @ train.w[z.argmax()] / np.linalg.norm(h - mu)
        expected.append(-proximity - 0.01 * np.abs(h).sum())
    np.testing.assert_allclose(scores("nci", train, test, alpha=0.01), expected, rtol=1e-9)


def pnml(train: Data, h: Array) -> float:
    x = np.array([unit(t) for t in train.h])
    v, inverse = unit(h), np.linalg.pinv(x.T @ x, rcond=1e-12)
    beyond = v - np.linalg.pinv(x, rcond=1e-6) @ x @ v
    q = v @ inverse @ v
    g = max(beyond @ beyond, q / (1 + q))
    p = softmax(train.w @ v + train.b)
    return math.log(sum(q / (q + q**g * (1 - q)) for q in p)) / math.log(C)


def test_pnml() -> None:
    train, test = data(14)
    np.testing.assert_allclose(scores("pnml", train, test), [pnml(train, h) for h in test.h], rtol=1e-5)


def test_pnml_beyond_the_span_of_training_features() -> None:
    train, test = data(15)
    train.h[:, 2] = 0
    test.h[:, 2] = np.arange(len(test.h)) % 2
    got = scores("pnml", train, test)
    np.testing.assert_allclose(got, [pnml(train, h) for h in test.h], rtol=1e-5)


def test_pnml_of_fewer_training_images_than_features() -> None:
    train, test = data(15, n_train=3)
    got = scores("pnml", train, test)
    np.testing.assert_allclose(got, [pnml(train, h) for h in test.h], rtol=1e-5)


def test_pnml_of_a_network_that_is_very_sure() -> None:
    train, test = data(14)
    train.w *= 100
    train.b *= 100
    inverse, expected = np.linalg.inv(sum(np.outer(unit(t), unit(t)) for t in train.h)), []
    with localcontext() as context:
        context.prec = 400
        for v in map(unit, test.h):
            q = v @ inverse @ v
            p = exactly(train.w @ v + train.b)
            g = Decimal(q / (1 + q))
            expected.append(float(sum(x / (x + (1 - x) * x**g) for x in p).ln()) / math.log(C))
    assert min(expected) < 1e-20
    np.testing.assert_allclose(scores("pnml", train, test), expected, rtol=1e-3)


@pytest.mark.parametrize("power", [1, 4])
def test_relation(power: float) -> None:
    train, test = data(16)
    expected = []
    for h, z in zip(test.h, test.z, strict=True):
        relations = [
            max(0.0, float(unit(h) @ unit(t))) * float(softmax(z) @ softmax(s))
            for t, s in zip(train.h, train.z, strict=True)
        ]
        expected.append(-sum(k**power for k in relations if k > 0.03))
    np.testing.assert_allclose(scores("relation", train, test, power=power), expected, rtol=1e-5)


@pytest.mark.parametrize(("bank", "rho"), [(1.0, 0.1), (0.5, 0.04), (0.5, 1.0)])
@pytest.mark.parametrize("collapsed", [False, True])
def test_cfood(bank: float, rho: float, collapsed: bool) -> None:
    train, test = data(17)
    if collapsed:
        train.h, test.h = (1_000 + x.h for x in (train, test))
    rows = np.round(np.linspace(0, 59, round(60 * bank))).astype(int)
    refs = [unit(train.h[i]) for i in rows]
    n, expected = len(refs), []
    others = [sorted(np.linalg.norm(y - t) for j, t in enumerate(refs) if j != i) for i, y in enumerate(refs)]
    for h in test.h:
        for k in range(1, n + 1):
            near = 0
            for y, distances in zip(refs, others, strict=True):
                kth = distances[k - 1] if k < n else math.inf
                near += bool(np.linalg.norm(y - unit(h)) <= kth)
            if near >= rho * n:
                break
        expected.append(k / n)
    np.testing.assert_allclose(scores("cfood", train, test, bank=bank, rho=rho), expected, atol=1e-9)


def test_combood() -> None:
    train, test = data(18)
    v = np.array([unit(h) for h in train.h])
    mean, std = v.mean(0), v.std(0)
    covariance = np.cov(((v - mean) / std).T, bias=True) + 0.5 * np.eye(D)
    expected = []
    for h in map(unit, test.h):
        near = sorted(np.linalg.norm(h - t) for t in v)[6]
        expected.append(math.sqrt(D) * math.log(near**2) + distance((h - mean) / std, np.zeros(D), covariance))
    np.testing.assert_allclose(scores("combood", train, test, k=7, ridge=0.5), expected, rtol=1e-4)


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_nac(alpha: float) -> None:
    train, test = data(25, n_train=200)

    def parts(h: Array, z: Array) -> list[int]:
        gradient = train.w.T @ (softmax(z) - 1 / C)
        return [min(int(50 / (1 + math.exp(-alpha * a * g))), 49) for a, g in zip(h, gradient, strict=True)]

    known = [parts(h, z) for h, z in zip(train.h, train.z, strict=True)]
    expected = []
    for h, z in zip(test.h, test.z, strict=True):
        seen = [sum(other[j] == part for other in known) for j, part in enumerate(parts(h, z))]
        expected.append(-np.mean([min(n, 5) / 5 for n in seen]))
    got = scores("nac", train, test, alpha=alpha, m=50, r=5)
    assert got.std() > 0.01
    np.testing.assert_allclose(got, expected, rtol=1e-5)


# ------------------------------------------------------------------------------------------ changed activations


def energies(train: Data, features: list[Array], weight: Array | None = None) -> list[float]:
    w = train.w if weight is None else weight
    return [-lse(w @ h + train.b) for h in features]


def test_react() -> None:
    train, test = data(19)
    c = np.percentile(train.h, 85)
    clipped = [np.array([min(v, c) for v in h]) for h in test.h]
    np.testing.assert_allclose(scores("react", train, test, percentile=85), energies(train, clipped), rtol=1e-9)


@pytest.mark.parametrize("percentile", [40.0, 90.0])
def test_dice(percentile: float) -> None:
    train, test = data(20)
    contribution = train.w * train.h.mean(0)
    limit = np.percentile(contribution, percentile)
    kept = np.array(
        [[w if v > limit else 0 for w, v in zip(*r, strict=True)] for r in zip(train.w, contribution, strict=True)]
    )
    expected = energies(train, list(test.h), kept)
    np.testing.assert_allclose(scores("dice", train, test, percentile=percentile), expected, rtol=1e-9)


def shaped(h: Array, k: int, variant: str) -> Array:
    top = sorted(range(D), key=lambda i: -h[i])[:k]
    kept, alive = sum(h[i] for i in top), [i for i in top if h[i] != 0]
    out = np.zeros(D)
    for i in alive:
        out[i] = {"p": h[i], "b": h.sum() / len(alive), "s": h[i] * math.exp(h.sum() / kept)}[variant]
    return out


@pytest.mark.parametrize("variant", ["p", "b", "s"])
@pytest.mark.parametrize(("percentile", "k"), [(65, 2), (50, 3), (0, 6), (100, 1)])
def test_ash(variant: str, percentile: float, k: int) -> None:
    train, test = data(21)
    expected = energies(train, [shaped(h, k, variant) for h in test.h])
    np.testing.assert_allclose(scores(f"ash_{variant}", train, test, percentile=percentile), expected, rtol=1e-9)


@pytest.mark.parametrize(("percentile", "k"), [(65, 2), (50, 3)])
def test_scale_and_lts(percentile: float, k: int) -> None:
    train, test = data(22)
    ratios = [h.sum() / sum(sorted(h)[-k:]) for h in test.h]
    scaled = [h * math.exp(r) for h, r in zip(test.h, ratios, strict=True)]
    np.testing.assert_allclose(scores("scale", train, test, percentile=percentile), energies(train, scaled), rtol=1e-9)
    expected = [-lse(z * r**2) for z, r in zip(test.z, ratios, strict=True)]
    np.testing.assert_allclose(scores("lts", train, test, percentile=percentile), expected, rtol=1e-9)


@pytest.mark.parametrize("gamma", [0.0, 0.3])
def test_vra(gamma: float) -> None:
    train, test = data(23)
    limits = [(np.percentile(column, 30), np.percentile(column, 80)) for column in train.h.T]

    def rectified(v: float, low: float, high: float) -> float:
        return 0.0 if v < low else high if v > high else v + gamma

    expected = energies(train, [np.array([rectified(v, *p) for v, p in zip(h, limits, strict=True)]) for h in test.h])
    got = scores("vra", train, test, percentile_low=30, percentile_high=80, gamma=gamma)
    np.testing.assert_allclose(got, expected, rtol=1e-9)


def test_vra_is_not_react_where_half_of_the_features_are_zero() -> None:
    train, test = data(26)
    for some in (train, test):
        some.h = np.maximum(some.h - np.median(train.h, axis=0), 0)
    vra = METHODS["vra"]
    assert min(vra.grid["percentile_low"]) >= 50
    limits = np.percentile(train.h, vra.percentile_high, axis=0)
    clipped = energies(train, [np.minimum(h, limits) for h in test.h])
    assert np.abs(scores("vra", train, test) - clipped).max() > 0.01


WRONG: list[tuple[str, dict[str, Any]]] = [
    ("react", {"percentile": 101}),
    ("ash_s", {"percentile": -1}),
    ("vra", {"percentile_low": 90, "percentile_high": 10}),
    ("knn", {"k": 0}),
    ("nnguide", {"bank": 0.0}),
    ("cfood", {"rho": 0.0}),
    ("renyi", {"alpha": 0.0}),
    ("residual", {"dim": -1}),
]


@pytest.mark.parametrize(("name", "params"), WRONG, ids=[n for n, _ in WRONG])
def test_impossible_parameters_are_a_users_error(name: str, params: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        scores(name, *data(24), **params)
