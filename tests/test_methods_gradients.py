"""Scores from gradients and their controls, each against one-by-one autograd or a direct transcription."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal, localcontext

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from timm.models.convnext import ConvNeXt
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import DenseNet

from howsure import (
    ActivationNorms,
    Confound,
    Features,
    GradNorms,
    InputSpec,
    Labels,
    LayerMeans,
    LayerMoments,
    Logits,
    Loss,
    Network,
    Predicted,
    Reps,
    SmallGrads,
    Uniform,
    UserError,
)
from howsure import detector as detectors
from howsure.check import networks, snapshot
from howsure.detector import fit_detector, score_detector
from howsure.forward import run_pass
from howsure.plugins import METHODS
from howsure.representations import ImageIds

DETECTORS = (
    "confound_detector",
    "purview",
    "activation_detector",
    "activation_norm_detector",
    "logit_detector",
    "feature_detector",
)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Networks this small run faster on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pixels(n: int = 6, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (n, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def read(network: Network, images: Tensor, needs, batch: int = 100, fitted: Reps | None = None) -> Reps:  # type: ignore[no-untyped-def]
    labels, ids = torch.arange(len(images)) % network.num_classes, torch.arange(len(images))
    states = {rep: rep.fit(fitted) for rep in needs if rep.needs and fitted is not None}
    parts = zip(network.normalise(images).split(batch), labels.split(batch), ids.split(batch), strict=True)
    return run_pass(network, parts, list(needs), states)


@pytest.fixture(params=[0, 1], ids=["conv", "transformer"])
def network(request: pytest.FixtureRequest) -> Network:
    return networks()[request.param]


@pytest.fixture
def conv() -> Network:
    return networks()[0]


def gradients(network: Network, image: Tensor, loss: Loss) -> dict[str, Tensor]:
    """Gradients of every parameter set for one image, by ordinary autograd."""
    named = dict(network.model.named_parameters())
    value = loss(network.model(network.normalise(image[None]))).sum()
    return dict(zip(named, (g.double() for g in torch.autograd.grad(value, list(named.values()))), strict=True))


def head_of(network: Network) -> tuple[str, str]:
    return f"{network.heads[0]}.weight", f"{network.heads[0]}.bias"


def scores_of(network: Network, name: str, **params: object) -> Tensor:
    method = METHODS[name](**params)
    return method.score(read(network, pixels(), method.needs))


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_gradnorm_at_the_last_layer(network: Network, temperature: float) -> None:
    l1 = scores_of(network, "gradnorm", temperature=temperature)
    l2 = scores_of(network, "gradnorm", temperature=temperature, norm="l2_squared")
    for i, image in enumerate(pixels()):
        g = gradients(network, image, Uniform(temperature))[head_of(network)[0]]
        assert l1[i] == pytest.approx(-float(g.abs().sum()), rel=1e-4)
        assert l2[i] == pytest.approx(-float(g.square().sum()), rel=1e-4)


@pytest.mark.parametrize("layers", [("*",), ("*weight", "nowhere")])
def test_gradnorm_over_any_layers(network: Network, layers: tuple[str, ...]) -> None:
    before = snapshot(network.model)
    l1 = scores_of(network, "gradnorm", layers=layers)
    l2 = scores_of(network, "gradnorm", layers=layers, norm="l2_squared")
    assert snapshot(network.model) == before
    for i, image in enumerate(pixels()):
        found = gradients(network, image, Uniform()).items()
        kept = [g for name, g in found if layers == ("*",) or name.endswith("weight")]
        assert l1[i] == pytest.approx(-sum(float(g.abs().sum()) for g in kept), rel=1e-4)
        assert l2[i] == pytest.approx(-sum(float(g.square().sum()) for g in kept), rel=1e-4)


def test_l1_norms_of_frozen_parameters(conv: Network) -> None:
    free = scores_of(conv, "gradnorm", layers=("*",))
    try:
        conv.model.requires_grad_(False)
        torch.testing.assert_close(scores_of(conv, "gradnorm", layers=("*",)), free)
        assert not any(p.requires_grad for p in conv.model.parameters())
    finally:
        conv.model.requires_grad_(True)


def test_layers_that_do_not_exist(conv: Network) -> None:
    with pytest.raises(UserError, match="no parameter set matches encoder"):
        scores_of(conv, "gradnorm", layers=("encoder*",))


def test_exgrad(network: Network) -> None:
    l1, l2 = scores_of(network, "exgrad"), scores_of(network, "exgrad", norm="l2")
    for i, image in enumerate(pixels()):
        with torch.no_grad():
            p = network.model(network.normalise(image[None])).double().softmax(1)[0]
        expected = np.zeros(2)
        for c in range(4):
            found = gradients(network, image, lambda z, c=c: F.cross_entropy(z, torch.tensor([c])))  # type: ignore[arg-type,misc]
            g = torch.cat([found[name].flatten() for name in head_of(network)])
            expected += float(p[c]) * np.array([float(g.abs().sum()), float(g.norm())])
        assert (float(l1[i]), float(l2[i])) == pytest.approx(tuple(expected), rel=1e-4)


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_exgrad_of_a_head_without_bias(norm: str) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 4, bias=False))
    network = Network("no bias", model.eval(), InputSpec((2, 2), (0.5,) * 3, (0.25,) * 3), 4)
    images = pixels()[:, :2, :2]
    method = METHODS["exgrad"](norm=norm)
    scores = method.score(read(network, images, method.needs))
    for image, score in zip(images, scores, strict=True):
        p = model(network.normalise(image[None])).softmax(1)[0]
        each = [gradients(network, image, lambda z, c=c: F.cross_entropy(z, torch.tensor(c)[None])) for c in range(4)]  # type: ignore[arg-type,misc]
        norms = [torch.linalg.vector_norm(g["1.weight"], int(norm[1])) for g in each]
        assert score == pytest.approx(sum(float(a.detach() * b) for a, b in zip(p, norms, strict=True)), rel=1e-4)


@pytest.mark.parametrize("loss", [Confound(), Confound(hot=0), Confound(hot=2), Confound(output="softmax")])
def test_confound(network: Network, loss: Loss) -> None:
    found = {mode: scores_of(network, "confound", loss=loss, mode=mode) for mode in ("sum", "normalised", "log")}
    for i, image in enumerate(pixels()):
        grads = list(gradients(network, image, loss).values())
        norms = [float(g.square().sum()) for g in grads]
        assert found["sum"][i] == pytest.approx(sum(norms), rel=1e-4)
        sizes = [g.numel() for g in grads]
        assert found["normalised"][i] == pytest.approx(sum(n / s for n, s in zip(norms, sizes, strict=True)), rel=1e-4)
        assert found["log"][i] == pytest.approx(sum(np.log(max(n, 1e-20)) for n in norms), rel=1e-3)


def test_predgrad(network: Network) -> None:
    scores = scores_of(network, "predgrad")
    last = scores_of(network, "predgrad", layers=head_of(network))
    for i, image in enumerate(pixels()):
        found = gradients(network, image, Predicted())
        assert scores[i] == pytest.approx(sum(float(g.square().sum()) for g in found.values()) ** 0.5, rel=1e-4)
        assert last[i] == pytest.approx(sum(float(found[n].square().sum()) for n in head_of(network)) ** 0.5, rel=1e-4)


def test_gradorth(network: Network) -> None:
    method = METHODS["gradorth"](threshold=0.9)
    fit, reps = read(network, pixels(40, 1), method.needs), read(network, pixels(), method.needs)
    scores = method.score(reps, **method.fit(fit))
    _, s, v = torch.linalg.svd(fit[Features()].double())
    rank = int((s.square().cumsum(0) / s.square().sum() < 0.9).sum()) + 1
    for i, image in enumerate(pixels()):
        g = gradients(network, image, Uniform())[head_of(network)[0]]
        assert scores[i] == pytest.approx(-float((g @ v[:rank].T @ v[:rank]).norm()), rel=1e-4)


def normal_log_norms(n: int = 60, seed: int = 0) -> Tensor:
    z = torch.randn(n, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (z @ torch.tril(torch.ones(5, 5, dtype=torch.float64))).exp()


@pytest.mark.parametrize("per_class", [True, False])
def test_gradvector_mahalanobis(per_class: bool) -> None:
    method = METHODS["gradvector_mahalanobis"](per_class=per_class, shrinkage=0.3)
    logits = torch.randn(60, 3)
    train = Reps({GradNorms(Uniform()): normal_log_norms(), Logits(): logits})
    scores = method.score(train, **method.fit(train))
    v, group = normal_log_norms().log().numpy(), logits.argmax(1).numpy() * per_class
    means = np.stack([v[group == c].mean(0) if (group == c).any() else v.mean(0) for c in range(3)])
    covariance = (v - means[group]).T @ (v - means[group]) / 60
    covariance = 0.7 * covariance + 0.3 * np.diag(np.diag(covariance))
    centred = v - means[group]
    np.testing.assert_allclose(scores, np.einsum("ni,ij,nj->n", centred, np.linalg.inv(covariance), centred), rtol=1e-6)


def test_gradvector_knn() -> None:
    method = METHODS["gradvector_knn"](k=3)
    rep = GradNorms(Uniform())
    state = method.fit(Reps({rep: normal_log_norms()}))
    scores = method.score(Reps({rep: normal_log_norms(seed=1)}), **state)
    v, q = normal_log_norms().log().numpy(), normal_log_norms(seed=1).log().numpy()
    distances = np.linalg.norm((q[:, None] - v[None]) / v.std(0), axis=2)
    np.testing.assert_allclose(scores, np.sort(distances, 1)[:, 2], rtol=1e-4)


def test_vanished_and_constant_norms_are_finite() -> None:
    norms = normal_log_norms()
    norms[:, 1], norms[:, 2] = 0.0, 1.0
    test = normal_log_norms(seed=1)
    test[0] = 0.0
    for name in ("gradvector_mahalanobis", "gradvector_knn"):
        method = METHODS[name]()
        rep = GradNorms(Uniform())
        train = Reps({rep: norms, Logits(): torch.randn(60, 3)})
        scores = method.score(Reps({rep: test, Logits(): torch.randn(60, 3)}), **method.fit(train))
        assert scores.isfinite().all()
    one = Reps({GradNorms(Uniform()): norms[:1], Logits(): torch.randn(1, 3)})
    for name in ("gradvector_mahalanobis", "gradvector_knn"):
        method = METHODS[name]()
        assert method.score(one, **method.fit(one)).isfinite().all()


def test_logs_of_norms_that_are_only_rounding_are_alike() -> None:
    norms = torch.tensor([[90.0, 3e-17, 1e-9, 0.0], [90.0, 8e-16, 1e-9, 0.0], [0.0, 0.0, 0.0, 0.0]])
    logs = detectors.log_norms(norms)
    torch.testing.assert_close(logs[:2, 1], logs[:2, 3])
    torch.testing.assert_close(logs[:2, 2], norms[:2, 2].double().log())
    assert (logs[2] == logs[2, 0]).all()
    assert logs.isfinite().all()


def test_channels_whose_gradient_is_only_rounding_count_alike_in_gradprint() -> None:
    method, rng = METHODS["gradprint"](), torch.Generator().manual_seed(0)
    norms, needs = normal_log_norms(), method.needs
    shifts = torch.randn(60, 4, generator=rng)
    shifts[:, 3] *= 1e-9
    state = method.fit(Reps({needs[0]: norms, needs[1]: shifts, Logits(): torch.randn(60, 2, generator=rng)}))
    test, logits = normal_log_norms(seed=1), torch.randn(60, 2, generator=rng)
    other = shifts.clone()
    other[:, 3] = shifts[:, 3].flip(0)
    one, two = (method.score(Reps({needs[0]: test, needs[1]: v, Logits(): logits}), **state) for v in (shifts, other))
    torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-9)


def test_gradprint(network: Network) -> None:
    method = METHODS["gradprint"](columns=10_000)
    needs = (*method.needs, SmallGrads(Predicted()))
    fit, reps = read(network, pixels(50, 1), needs), read(network, pixels(), needs)
    scores = method.score(reps, **method.fit(fit))
    norms = [name for name, m in network.model.named_modules() if isinstance(m, nn.BatchNorm2d | nn.LayerNorm)]

    def vectors(images: Tensor, floor: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        a, b = [], []
        for image in images:
            a.append(
                [np.log(max(float(g.square().sum()), 1e-20)) for g in gradients(network, image, Uniform()).values()]
            )
            found = gradients(network, image, Predicted())
            b.append(np.concatenate([np.abs(found[f"{name}.bias"].numpy()) for name in norms]))
        shifts = np.array(b)
        floors.append(1e-4 * np.sqrt((shifts**2).mean(0)) if floor is None else floor)
        return np.array(a), np.log(shifts + floors[-1])

    floors: list[np.ndarray] = []
    known = vectors(pixels(50, 1), None)
    new = vectors(pixels(), floors[0])
    group = fit[Logits()].argmax(1).numpy()
    total = np.zeros(len(pixels()))
    for v, q, shrinkage in zip(known, new, (0.1, 0.6), strict=True):
        means = np.stack([v[group == c].mean(0) if (group == c).any() else v.mean(0) for c in range(4)])
        covariance = (v - means[group]).T @ (v - means[group]) / len(v)
        inverse = np.linalg.inv((1 - shrinkage) * covariance + shrinkage * np.diag(np.diag(covariance)))
        d = [
            np.einsum("ni,ij,nj->n", z, inverse, z)
            for z in (v - means[group], q - means[reps[Logits()].argmax(1).numpy()])
        ]
        total += (np.log(d[1]) - np.log(d[0]).mean()) / np.log(d[0]).std()
    np.testing.assert_allclose(scores, total, rtol=0.02, atol=0.05)


def test_gradprint_is_not_standardised_by_classes_of_one_image() -> None:
    method, g = METHODS["gradprint"](), torch.Generator().manual_seed(0)
    norms, shifts = torch.randn(63, 6, generator=g).exp(), torch.randn(63, 20, generator=g)
    predicted = torch.cat([torch.arange(60) % 3, torch.tensor([3, 4, 5])])  # a mean of one image is that image
    logits = F.one_hot(predicted, 6).float()
    states = []
    for n in (60, 63):
        values = dict(zip(method.needs, (norms[:n], shifts[:n], logits[:n]), strict=True))
        states.append(method.fit(Reps(values)))
    for name in ("std0", "std1"):
        assert float(states[1][name]) == pytest.approx(float(states[0][name]), rel=0.05)


def test_gradprint_without_normalisation_takes_all_biases() -> None:
    from howsure.methods.gradprint import shift_columns

    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 14 * 14, 4))
    network = Network("plain", model, networks()[0].input, 4)
    assert shift_columns(network, 100).tolist() == list(range(8))
    assert shift_columns(network, 3).tolist() == [0, 4, 7]


def test_actprint(network: Network) -> None:
    from howsure.methods.actprint import ChannelMoments, telling_layers

    method = METHODS["actprint"]()
    inner = read(network, pixels(50, 1), (ChannelMoments(), Logits(), ImageIds()))
    fit, reps = (read(network, p, method.needs, fitted=inner) for p in (pixels(50, 1), pixels()))
    scores = method.score(reps, **method.fit(fit))
    new = read(network, pixels(), (ChannelMoments(),))[ChannelMoments()]
    first = np.arange(50) % 2 == 0
    group, mine = inner[Logits()].argmax(1).numpy(), reps[Logits()].argmax(1).numpy()

    def distance(v: np.ndarray, group: np.ndarray, q: np.ndarray, of: np.ndarray) -> np.ndarray:
        varies = v.std(0) > 1e-6
        v, q = v[:, varies], q[:, varies]
        means = np.stack([v[group == c].mean(0) if (group == c).any() else v.mean(0) for c in range(4)])
        covariance = (v - means[group]).T @ (v - means[group]) / len(v)
        varies = np.diag(covariance) > 1e-12 * (v**2).mean(0)
        covariance = (0.9 * covariance + 0.1 * np.diag(np.diag(covariance)))[np.ix_(varies, varies)]
        z = (q - means[of])[:, varies]
        return np.einsum("ni,ij,nj->n", z, np.linalg.inv(covariance), z)

    profiles: list[list[np.ndarray]] = [[], []]
    for name in telling_layers(network):
        v, q = (x[name].flatten(1).double().numpy() for x in (inner[ChannelMoments()], new))
        for profile, x, of in zip(profiles, (v[~first], q), (group[~first], mine), strict=True):
            profile.append(np.log(np.maximum(distance(v[first], group[first], x, of), 1e-12)))
    known, found = (np.stack(p, 1) for p in profiles)
    zeros = np.zeros(len(known), int)
    energies = [-z.double().logsumexp(1).numpy() for z in (inner[Logits()][~torch.from_numpy(first)], reps[Logits()])]
    terms = [
        np.stack([np.sqrt(distance(known, zeros, p, np.zeros(len(p), int))), p.sum(1), e], 1)
        for p, e in zip((known, found), energies, strict=True)
    ]
    expected = ((terms[1] - terms[0].mean(0)) / terms[0].std(0)).sum(1)
    np.testing.assert_allclose(scores, expected, rtol=0.01, atol=0.02)


def test_actprint_looks_at_linear_layers_of_transformers() -> None:
    from howsure.methods.actprint import telling_layers

    conv, transformer = networks()
    assert telling_layers(conv) == ("1", "5", "9")
    names = telling_layers(transformer)
    assert {name.rpartition(".")[2] for name in names} == {"qkv", "proj", "fc1", "fc2"}


def test_actprint_looks_at_layer_norms_of_maps() -> None:
    from howsure.methods.actprint import telling_layers

    model = ConvNeXt(num_classes=4, depths=(1, 1, 1, 1), dims=(8, 8, 8, 8), patch_size=2)
    names = telling_layers(Network("convnext", model, replace(networks()[0].input, size=(32, 32)), 4))
    assert list(names) == [name for name, layer in model.named_modules() if isinstance(layer, nn.LayerNorm)]


def test_actprint_does_not_take_queries_and_keys_for_maps() -> None:
    from howsure.methods.actprint import telling_layers
    from timm.models.vision_transformer import ParallelScalingBlock, VisionTransformer

    model = VisionTransformer(
        img_size=32, patch_size=8, num_classes=4, embed_dim=16, depth=2, num_heads=2, qk_norm=True,
        block_fn=ParallelScalingBlock,
    )  # fmt: skip
    names = telling_layers(Network("vit22b", model, replace(networks()[0].input, size=(32, 32)), 4))
    assert names
    assert all(isinstance(model.get_submodule(name), nn.Linear) for name in names)


def test_actprint_with_few_images(conv: Network) -> None:
    from howsure.methods.actprint import ChannelMoments

    method = METHODS["actprint"]()
    for n in (1, 2, 5):
        inner = read(conv, pixels(n, 1), (ChannelMoments(), Logits(), ImageIds()))
        fit, reps = (read(conv, p, method.needs, fitted=inner) for p in (pixels(n, 1), pixels()))
        assert method.score(reps, **method.fit(fit)).isfinite().all()


def test_layerprint(network: Network) -> None:
    from howsure.methods.layerprint import ChannelStatistics, first_layers

    method = METHODS["layerprint"](k=3)
    inner = read(network, pixels(50, 1), (ChannelStatistics(), Features(), ImageIds()))
    fit, reps = (read(network, p, method.needs, fitted=inner) for p in (pixels(50, 1), pixels()))
    scores = method.score(reps, **method.fit(fit))
    new = read(network, pixels(), (ChannelStatistics(),))[ChannelStatistics()]
    first = np.arange(50) % 2 == 0
    known, mine = (r[Features()].double().numpy() for r in (fit, reps))
    known, mine = (h / np.linalg.norm(h, axis=1, keepdims=True) for h in (known, mine))

    def distance(v: np.ndarray, q: np.ndarray, shrinkage: float) -> np.ndarray:
        centred = v - v.mean(0)
        covariance = (1 - shrinkage) * np.cov(centred.T, bias=True) + shrinkage * np.diag(centred.var(0))
        z = q - v.mean(0)
        return np.einsum("ni,ij,nj->n", z, np.linalg.inv(covariance), z)

    def left(y: np.ndarray, q: np.ndarray, of: np.ndarray) -> np.ndarray:
        """What is left of rows q of images with features `of`, by a ridge regression on the first half."""
        x = known[first]
        z, z_of = ((h - x.mean(0)) / x.std(0) for h in (x, of))
        weights = np.linalg.solve(z.T @ z + 0.1 * len(z) * np.eye(z.shape[1]), z.T @ (y - y.mean(0)))
        return q - y.mean(0) - z_of @ weights

    profiles: list[list[np.ndarray]] = [[], [], []]
    for name in first_layers(network):
        v, q = (x[name].double().numpy() for x in (inner[ChannelStatistics()], new))
        floor = 1e-3 * np.sqrt((v[first, 1] ** 2).mean())
        v, q = (np.concatenate([x[:, 0], *np.log(x[:, 1:] + floor).transpose(1, 0, 2)], 1) for x in (v, q))
        rest = left(v[first], v[first], known[first])
        for profile, x, of in zip(profiles, (v[first], v[~first], q), (known[first], known[~first], mine), strict=True):
            profile.append(np.log(distance(rest, left(v[first], x, of), 0.01)))
    usual, other, found = (np.stack(p, 1) for p in profiles)
    other, found = left(usual, other, known[~first]), left(usual, found, mine)
    logits = [fit[Logits()].double().numpy()[~first], reps[Logits()].double().numpy()]
    terms = [
        np.stack(
            [
                p.sum(1),
                np.sqrt(distance(other, p, 0.1)),
                -np.log(np.exp(z).sum(1)),
                np.sort(np.linalg.norm(h[:, None] - known[first], axis=2), 1)[:, 2],
            ],
            1,
        )
        for p, z, h in zip((other, found), logits, (known[~first], mine), strict=True)
    ]
    before, after = ((t - terms[0].mean(0)) / terms[0].std(0) for t in terms)
    before, after = (np.stack([t[:, 0] + t[:, 1] / 2, t[:, 2] + t[:, 3]], 1) for t in (before, after))
    layers, output = ((after - before.mean(0)) / before.std(0)).T
    np.testing.assert_allclose(scores, np.maximum(layers, 0) + output, rtol=0.01, atol=0.02)


def test_channel_statistics_of_a_map_and_of_vectors() -> None:
    from howsure.methods.layerprint import channel_statistics

    x = torch.arange(16.0).view(1, 1, 4, 4)
    mean, deviation, along, down = channel_statistics(x, nn.BatchNorm2d(1))[0, :, 0].tolist()
    assert (mean, along, down) == pytest.approx((7.5, 1.0, 4.0))
    assert deviation == pytest.approx(float(x.std(correction=0)))
    vectors = channel_statistics(torch.ones(2, 3), nn.BatchNorm1d(3))
    assert vectors.tolist() == [[[1.0] * 3, *([[0.0] * 3] * 3)]] * 2


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(3, 16), (2, 8, 12, 16)),
        (nn.Linear(3, 12), (2, 8, 12, 12)),
        (nn.LayerNorm(16), (2, 8, 12, 16)),
        (nn.LayerNorm([16, 12, 8]), (2, 16, 12, 8)),
        (nn.Conv2d(3, 16, 1), (2, 16, 16, 8)),
    ],
)
def test_channel_statistics_find_the_channels(layer: nn.Module, shape: tuple[int, ...]) -> None:
    from howsure.methods.layerprint import channel_statistics

    last = shape[-1] == 16 or isinstance(layer, nn.Linear)
    x = torch.arange(float(shape[-1] if last else shape[1]))
    mean, deviation, *_ = channel_statistics((x if last else x[:, None, None]).expand(shape), layer).unbind(1)
    assert torch.equal(mean, x.expand(2, -1))
    assert not deviation.any()


def test_layerprint_looks_at_four_layers_of_the_first_half() -> None:
    from howsure.methods.layerprint import first_layers

    conv, transformer = networks()
    assert first_layers(conv) == ["1", "5"]
    assert len(first_layers(transformer)) <= 4


def test_layerprint_with_few_images(conv: Network) -> None:
    from howsure.methods.layerprint import ChannelStatistics

    method = METHODS["layerprint"]()
    for n in (1, 2, 5):
        inner = read(conv, pixels(n, 1), (ChannelStatistics(), Features(), ImageIds()))
        fit, reps = (read(conv, p, method.needs, fitted=inner) for p in (pixels(n, 1), pixels()))
        assert method.score(reps, **method.fit(fit)).isfinite().all()


def test_gaia(conv: Network) -> None:
    z, a = scores_of(conv, "gaia_z"), scores_of(conv, "gaia_a")
    norms = [conv.model.get_submodule(name) for name in ("1", "5", "9")]
    last = conv.model.get_submodule(str(METHODS_LAST(conv)))

    def caught(image: Tensor) -> tuple[Tensor, list[Tensor], Tensor]:
        maps: dict[nn.Module, Tensor] = {}
        hooks = [m.register_forward_hook(lambda m, _i, out: maps.update({m: out})) for m in (*norms, last)]
        logits = conv.model(conv.normalise(image[None]))
        for hook in hooks:
            hook.remove()
        return logits, [maps[m] for m in norms], maps[last]

    for i, image in enumerate(pixels()):
        logits, maps, _ = caught(image)
        found = torch.autograd.grad(logits.max(), maps)
        shares = torch.cat([(g[0] != 0).double().mean((1, 2)) for g in found])
        assert z[i] == pytest.approx(float(shares.square().mean()), rel=1e-5)
        logits, maps, top = caught(image)
        (output,) = torch.autograd.grad(logits.log_softmax(1).sum(), top, retain_graph=True)
        inner = torch.cat([g[0].mean((1, 2)) for g in torch.autograd.grad(top.sum(), maps)])
        scale = output[0].mean((1, 2)).abs().mean().sqrt()
        assert a[i] == pytest.approx(float((inner / scale).square().mean()), rel=1e-3)


def METHODS_LAST(network: Network) -> str | None:  # noqa: N802
    from howsure.methods._gaia import feature_maps

    return feature_maps(network).last


def test_a_final_norm_whose_output_is_the_last_map_is_no_inner_layer() -> None:
    model = DenseNet(growth_rate=4, block_config=(1, 1), num_init_features=8, num_classes=4).eval()
    network = Network("dense", model, InputSpec((32, 32), (0.5,) * 3, (0.25,) * 3), 4)
    (rep,) = METHODS["gaia_a"]().needs
    images = torch.randint(0, 256, (3, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    inner = read(network, images, [rep])[rep]["inner"]
    last = model.features.norm5.num_features
    assert METHODS_LAST(network) == "features"
    assert inner.shape[1] == sum(m.num_features for m in model.modules() if isinstance(m, nn.BatchNorm2d)) - last


class Ends(nn.Module):
    """A convolution, a layer norm over channels and ReLU, which give their maps with the channels first or last."""

    def __init__(self, channels: tuple[int, int], last: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(*channels, 3, 2, 1)
        self.norm = nn.LayerNorm(channels[1]) if last else ChannelsFirst(channels[1])
        self.last = last

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x.permute(0, 3, 1, 2) if self.last and x.shape[1] != 3 else x)
        return self.norm(x.permute(0, 2, 3, 1) if self.last else x).relu()


class ChannelsFirst(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Pool(nn.Module):
    def __init__(self, last: bool) -> None:
        super().__init__()
        self.over = (1, 2) if last else (2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(self.over)


@pytest.mark.parametrize("name", ["gaia_a", "gaia_z"])
def test_gaia_with_channels_last(name: str) -> None:
    scores = []
    for last in (False, True):
        torch.manual_seed(0)
        ends = [Ends(channels, last) for channels in ((3, 5), (5, 6), (6, 7))]
        model = nn.Sequential(*ends, Pool(last), nn.Linear(7, 4)).eval()
        scores.append(scores_of(Network("layered", model, networks()[0].input, 4), name))
    assert scores[0].std() > 0
    torch.testing.assert_close(scores[1], scores[0], rtol=1e-4, atol=0)


def test_gaia_refuses_what_it_cannot_read() -> None:
    _, transformer = networks()
    for name in ("gaia_z", "gaia_a"):
        assert "feature maps" in str(METHODS[name]().needs[0].skip(transformer))
    smooth = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4)
    )
    network = Network("smooth", smooth, networks()[0].input, 4)
    assert "ReLU" in str(METHODS["gaia_z"]().needs[0].skip(network))


@pytest.mark.parametrize(("between", "refused"), [(nn.Hardtanh(-2.5, 2.5), True), (nn.ReLU(), False)])
def test_gaia_z_asks_for_more_than_a_few_zeros(between: nn.Module, refused: bool) -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(4, momentum=None)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), norm, between, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4))
    network = Network("few", model, networks()[0].input, 4)
    model.train()(network.example(64))
    model.eval()
    assert (METHODS["gaia_z"]().needs[0].skip(network) is not None) == refused


def test_grood(network: Network) -> None:
    method = METHODS["grood"](k=2)
    inner = read(network, pixels(40, 1), (LayerMeans(), Labels(), Logits()))
    fit, reps = (read(network, p, method.needs, fitted=inner) for p in (pixels(40, 1), pixels()))
    state = method.fit(fit)
    scores = method.score(reps, **state)
    prototypes = state["prototypes"]
    labels = torch.arange(40) % 4
    for c in range(4):
        torch.testing.assert_close(prototypes[c], fit[Features()][labels == c].double().mean(0))

    def gradient(h: Tensor, predicted: int) -> Tensor:
        outlier = prototypes[4].clone().requires_grad_()
        distances = (h.double() - torch.cat([prototypes[:4], outlier[None]])).norm(dim=1)
        loss = F.cross_entropy(-distances[None], torch.tensor([predicted]))
        return torch.autograd.grad(loss, outlier)[0]

    guess = fit[Logits()].argmax(1)
    right = [i for i in range(40) if guess[i] == labels[i]] or range(40)
    bank = torch.stack([gradient(fit[Features()][i], int(guess[i])) for i in right])
    for i in range(len(pixels())):
        g = gradient(reps[Features()][i], int(reps[Logits()][i].argmax()))
        assert scores[i] == pytest.approx(float((bank - g).norm(dim=1).sort().values[1]), abs=1e-4)


def test_grood_of_large_features_does_not_tie() -> None:
    from howsure.methods.grood import MixedFeatures

    g = torch.Generator().manual_seed(0)
    centres, y = 25 * torch.randn(4, 64, generator=g), torch.arange(80) % 4
    h, test_h = (centres[y] + 5 * torch.randn(80, 64, generator=g) for _ in range(2))
    assert 150 < h.norm(dim=1).mean() < 250
    method = METHODS["grood"]()
    mixed = 0.8 * h + 0.2 * centres[(y + 1) % 4]
    first, second = (
        Reps({Features(): x, Labels(): y, Logits(): F.one_hot(y, 4).float(), MixedFeatures(0.8): mixed})
        for x in (h, test_h)
    )
    scores = method.score(second, **method.fit(first))
    outlier = mixed.double().mean(0)
    prototypes = torch.stack([*(h[y == c].double().mean(0) for c in range(4)), outlier])

    def gradient(x: Tensor) -> Tensor:
        distances = (x.double() - prototypes).norm(dim=1)
        return (-distances).softmax(0)[4] * (x.double() - outlier) / distances[4]

    bank = torch.stack([gradient(x) for x in h])
    expected = torch.stack([(bank - gradient(x)).norm(dim=1).min() for x in test_h])
    torch.testing.assert_close(scores.double(), expected, rtol=1e-6, atol=0)
    assert len(scores.unique()) == 80


def test_grood_mixes_the_first_map(network: Network) -> None:
    from howsure.methods.grood import MixedFeatures

    inner = read(network, pixels(40, 1), (LayerMeans(), Labels(), Logits()))
    found = read(network, pixels(), [MixedFeatures(0.7)], fitted=inner)[MixedFeatures(0.7)]
    name = next(iter(inner[LayerMeans()]))
    means = inner[LayerMeans()][name]
    for i, image in enumerate(network.normalise(pixels())):
        second = int(network.model(image[None])[0].argsort()[-2])
        mean = means[torch.arange(40) % 4 == second].mean(0)
        caught: list[Tensor] = []

        def mix(_m: nn.Module, _i: object, out: Tensor, mean: Tensor = mean) -> Tensor:
            return 0.7 * out + 0.3 * (mean[:, None, None] if out.dim() == 4 else mean)

        hooks = [
            network.model.get_submodule(name).register_forward_hook(mix),
            network.model.get_submodule(network.heads[0]).register_forward_pre_hook(
                lambda _m, i, to=caught: to.append(i[0])
            ),
        ]
        network.model(image[None])
        for hook in hooks:
            hook.remove()
        torch.testing.assert_close(found[i], caught[0][0].detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", DETECTORS)
@pytest.mark.parametrize("kind", ["mlp", "logistic"])
def test_detectors_tell_noise_from_flat_images(name: str, kind: str, network: Network) -> None:
    method = METHODS[name](kind=kind)
    known, flat = pixels(60, 1), torch.full((60, 16, 16, 3), 128, dtype=torch.uint8) + pixels(60, 2) // 32
    inside, outside = (read(network, x.to(torch.uint8), method.needs) for x in (known, flat))
    first, second = torch.arange(0, 40), torch.arange(40, 60)
    state = method.fit(inside.take(first), outside.take(first))
    assert method.score(inside.take(second), **state).max() < method.score(outside.take(second), **state).min()


def test_purview_puts_labels_side_by_side(conv: Network) -> None:
    method = METHODS["purview"](hot=(0, 2), log=False)
    reps = read(conv, pixels(), method.needs)
    expected = torch.cat([reps[GradNorms(Confound(0))], reps[GradNorms(Confound(2))]], 1)
    assert torch.equal(method.vectors(reps), expected)
    assert METHODS["confound_detector"](log=False).needs == (GradNorms(Confound()),)


def test_controls_look_at_what_they_say(conv: Network) -> None:
    reps = read(conv, pixels(), (LayerMoments(), ActivationNorms(), Logits(), Features()))
    assert METHODS["activation_detector"]().vectors(reps).shape == (6, 2 * (8 + 12 + 16))
    for name, rep in (
        ("activation_norm_detector", ActivationNorms()),
        ("logit_detector", Logits()),
        ("feature_detector", Features()),
    ):
        assert torch.equal(METHODS[name]().vectors(reps), reps[rep])


def clouds(n: int, m: int, width: int = 8, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, width, generator=generator), torch.randn(m, width, generator=generator) + 0.7


def test_logistic_detector_is_scikit_learns() -> None:
    inside, outside = clouds(200, 50)
    state = fit_detector(inside, outside, "logistic")
    x, y = torch.cat([inside, outside]).double().numpy(), np.r_[np.zeros(200), np.ones(50)]
    model = LogisticRegression(class_weight="balanced", max_iter=1000).fit((x - x.mean(0)) / x.std(0), y)
    expected = model.decision_function((outside.double().numpy() - x.mean(0)) / x.std(0))
    np.testing.assert_allclose(score_detector(outside, **state), expected, atol=1e-3)


@pytest.mark.parametrize("kind", ["mlp", "logistic"])
def test_detector_is_deterministic_and_portable(kind: str) -> None:
    inside, outside = clouds(100, 30)
    outside[:, 3] = inside[:, 3] = 5.0
    before = torch.random.get_rng_state()
    first, second = (fit_detector(inside, outside, kind) for _ in range(2))  # type: ignore[arg-type]
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(first[key], second[key]) and first[key].isfinite().all() for key in first)
    odd = outside.clone()
    odd[:, 3] = 1e9
    assert torch.equal(score_detector(odd, **first), score_detector(outside, **first))
    assert score_detector(torch.full((1, 8), 1e20), **first).isfinite().all()


def test_detector_takes_the_threads_there_are_with_one_result(monkeypatch: pytest.MonkeyPatch) -> None:
    points, threads, states, used, afterwards = clouds(400, 300), torch.get_num_threads(), [], set(), []
    loss = detectors._loss

    def noted(*args, **kwargs):
        used.add((threading.get_ident(), torch.get_num_threads()))
        return loss(*args, **kwargs)

    monkeypatch.setattr(detectors, "_loss", noted)
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            used.clear()
            states.append(fit_detector(*points))
            assert torch.get_num_threads() == count
            assert (len(used) > 1) == (count > 1)
            assert {each for _, each in used} == {1}
            later = threading.Thread(target=lambda: afterwards.append(torch.get_num_threads()))
            later.start()
            later.join()
            assert afterwards.pop() == count
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_the_gradient_of_the_detectors_loss() -> None:
    x, sign, weight = torch.randn(9, 4), torch.ones(9) - 2 * (torch.arange(9) < 5), torch.rand(9)
    shapes = ((3, 4), (3,), (1, 3), (1,))
    found, gradient = detectors._loss(
        flat := np.random.default_rng(0).normal(size=19), x, x.mT, sign, weight, 0.3, shapes
    )
    at = torch.from_numpy(flat).float().requires_grad_()
    one, shift, two, base = (part.view(shape) for part, shape in zip(at.split([12, 3, 3, 1]), shapes, strict=True))
    odds = (torch.relu(x @ one.mT + shift) @ two.mT + base)[:, 0]
    loss = F.binary_cross_entropy_with_logits(odds, (sign + 1) / 2, weight, reduction="sum")
    loss = loss + 0.15 * (one.square().sum() + two.square().sum())
    loss.backward()
    assert found == pytest.approx(loss.item(), rel=1e-5)
    np.testing.assert_allclose(gradient, at.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["mlp", "logistic"])
def test_detector_from_hardly_anything(kind: str) -> None:
    inside, outside = clouds(1, 1)
    assert score_detector(outside, **fit_detector(inside, outside, kind)) > score_detector(
        inside, **fit_detector(inside, outside, kind)
    )  # type: ignore[arg-type]
    with pytest.raises(UserError, match="needs inliers and outliers"):
        fit_detector(inside, outside[:0], kind)  # type: ignore[arg-type]


def test_detector_bends_where_a_line_cannot() -> None:
    generator = torch.Generator().manual_seed(0)
    inside, far = torch.randn(400, 6, generator=generator), 2.5 * torch.randn(400, 6, generator=generator)
    state = fit_detector(inside[:300], far[:300])
    inner, outer = score_detector(inside[300:], **state), score_detector(far[300:], **state)
    assert (outer[:, None] > inner[None]).double().mean() > 0.85


@pytest.mark.parametrize("gap", [5, 20, 60])
@pytest.mark.parametrize("loss", [Predicted(), Confound(hot=0, output="softmax")])
def test_the_gradient_of_a_confident_image_does_not_cancel(loss, gap):
    z = (torch.arange(10) == 3).float()[None].mul(gap).requires_grad_()
    (got,) = torch.autograd.grad(loss(z).sum(), z)
    with localcontext() as context:
        context.prec = 60
        powers = [Decimal(int(v)).exp() for v in z[0].tolist()]
        p = [v / sum(powers) for v in powers]
        odds = [v / (1 - v) for v in p]
        if isinstance(loss, Predicted):
            want = [float(v - (c == 3)) for c, v in enumerate(p)]
        else:
            want = [float(o - v * sum(odds)) for v, o in zip(p, odds, strict=True)]
    np.testing.assert_allclose(got[0].numpy(), want, rtol=1e-5)
