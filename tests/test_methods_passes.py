"""Methods with passes of their own, each against a slow and direct transcription, one image at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from howsure import (
    Confound,
    Features,
    Head,
    InputSpec,
    LayerMeans,
    Logits,
    Network,
    Predicted,
    Representation,
    Reps,
    Uniform,
    UserError,
)
from howsure.cells import refusal
from howsure.check import networks, snapshot
from howsure.forward import run_pass
from howsure.layers import stages
from howsure.plugins import METHODS

SIZE = 6


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Networks this small run faster on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pixels(n: int = SIZE, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (n, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def read(network: Network, images: Tensor, needs, batch: int = 100, fitted: Reps | None = None) -> Reps:  # type: ignore[no-untyped-def]
    """What a method needs, computed on some images; representations that are fitted see `fitted`."""
    labels, ids = torch.arange(len(images)) % network.num_classes, torch.arange(len(images)) * 7 + 1
    states = {rep: rep.fit(fitted) for rep in needs if rep.needs and fitted is not None}
    parts = zip(network.normalise(images).split(batch), labels.split(batch), ids.split(batch), strict=True)
    return run_pass(network, parts, list(needs), states)


def fitted_reps(network: Network, needs, images: Tensor) -> tuple[Reps, Reps]:  # type: ignore[no-untyped-def]
    """Representations of training images: those that fitted ones need, and the method's own."""
    inner = list(dict.fromkeys(n for rep in needs for n in rep.needs))
    first = read(network, images, inner) if inner else Reps({})
    return first, read(network, images, needs, fitted=first)


@pytest.fixture(params=[0, 1], ids=["conv", "transformer"])
def network(request: pytest.FixtureRequest) -> Network:
    return networks()[request.param]


@pytest.fixture
def conv() -> Network:
    return networks()[0]


@pytest.mark.parametrize("name", ["odin", "adascale_a", "tta", "rankfeat", "mc_dropout", "ensemble"])
def test_leaves_the_model_alone_and_ignores_the_batch(name: str, conv: Network) -> None:
    method = METHODS[name](**METHODS[name].test_params)
    needs = [rep for rep in method.needs if rep.cost == "passes"]
    before = snapshot(conv.model)
    whole, single = read(conv, pixels(), needs), read(conv, pixels(), needs, batch=1)
    assert snapshot(conv.model) == before
    for rep in needs:
        torch.testing.assert_close(whole[rep], single[rep], rtol=1e-4, atol=1e-5)
        assert torch.equal(whole[rep], read(conv, pixels(), needs)[rep])


@pytest.mark.parametrize(
    "name", ["adascale_a", "gaia_a", "gaia_z", "mahalanobis_layers", "mc_dropout", "nac", "odin", "rankfeat"]
)
def test_no_shared_pass_where_nobody_reads_it(name: str, conv: Network) -> None:
    values = METHODS[name].test_params | ({"layers": ("13",)} if name == "nac" else {})
    needs = [rep for rep in METHODS[name](**values).needs if not rep.reads_logits]
    assert needs
    inner = [n for rep in needs for n in rep.needs]
    fitted = read(conv, pixels(40), inner) if inner else None
    read(conv, pixels(), needs, fitted=fitted)  # what is looked up once in a network is known then
    together = read(conv, pixels(), [Logits(), *needs], fitted=fitted)
    calls: list[int] = []
    with conv.model.register_forward_pre_hook(lambda _m, _i: calls.append(1)):
        read(conv, pixels(), [Logits(), *needs], fitted=fitted)
        with_pass = len(calls)
        calls.clear()
        alone = read(conv, pixels(), needs, fitted=fitted)
    assert len(calls) == with_pass - 1
    for rep in needs:
        for key, value in rep.pack(alone[rep]).items():
            torch.testing.assert_close(value, rep.pack(together[rep])[key])


def test_logits_that_a_representation_said_it_would_not_read(conv: Network) -> None:
    class Untrue(Logits):
        reads_logits = False

    assert len(read(conv, pixels(), [Untrue(), Features()])[Untrue()]) == SIZE
    with pytest.raises(UserError, match=r"reads `batch\.logits`; remove that line"):
        read(conv, pixels(), [Untrue()])


def test_state_is_restored_when_a_pass_fails(conv: Network) -> None:
    from howsure.methods._passes import changed, recorded

    before = snapshot(conv.model)
    for context in (changed(conv.model, {"0": lambda out: out / 0 + "x"}), recorded(conv.model, ("0", "nowhere"))):
        with pytest.raises(Exception, match=r"."), context:
            conv.model(conv.example())
    assert snapshot(conv.model) == before


def test_recorded_output_survives_an_activation_in_place() -> None:
    from howsure.methods._passes import recorded

    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(inplace=True), nn.Linear(3, 1))
    x = torch.randn(5, 3, requires_grad=True)
    with recorded(model, ("0",)) as outputs:
        y = model(x)
    torch.testing.assert_close(outputs["0"], model[0](x))
    (gradient,) = torch.autograd.grad(y.sum(), outputs["0"])
    torch.testing.assert_close(gradient, (outputs["0"] > 0) * model[2].weight)


@pytest.mark.parametrize("temperature", [1.0, 1000.0])
def test_odin(network: Network, temperature: float) -> None:
    method = METHODS["odin"](temperature=temperature, epsilon=0.01)
    scores = method.score(read(network, pixels(), method.needs))
    for i, image in enumerate(network.normalise(pixels())):
        x = image[None].clone().requires_grad_()
        z = network.model(x)
        loss = F.cross_entropy(z / temperature, z.argmax(1))
        (gradient,) = torch.autograd.grad(loss, x)
        moved = network.model(x.detach() - 0.01 / network.std * gradient.sign()).detach().double()
        expected = 1 - (moved / temperature).softmax(1).max()
        assert abs(scores[i] - expected) < 1e-6


@pytest.mark.parametrize("gap", [1.0, 20.0, 60.0, 2000.0])
def test_the_step_of_odin_where_the_network_is_sure(gap: float) -> None:
    layer = nn.Linear(12, 2, bias=False)
    network = Network("sure", nn.Sequential(nn.Flatten(), layer), InputSpec((2, 2), (0.5,) * 3, (0.25,) * 3), 2)
    image = pixels(1)[:, :2, :2]
    x = network.normalise(image)
    with torch.no_grad():
        slope = layer.weight[0] - layer.weight[1]
        layer.weight *= gap / (x.flatten() @ slope)
        towards_the_first = layer.weight[0] - layer.weight[1]
        expected = network.model(x + 0.01 / 0.25 * towards_the_first.sign().view(3, 2, 2))
    found = read(network, image, METHODS["odin"](temperature=1.0, epsilon=0.01).needs)
    torch.testing.assert_close(next(iter(found.values())), expected)


def test_odin_without_a_step_needs_no_pass() -> None:
    assert METHODS["odin"](epsilon=0.0).needs == (Logits(),)


def test_mc_dropout_is_the_network_with_units_dropped(conv: Network) -> None:
    method = METHODS["mc_dropout"](samples=3, seed=5)
    (rep,) = method.needs
    found = read(conv, pixels(), method.needs)[rep]
    last = conv.model[-1]
    features = read(conv, pixels(), [Features()])[Features()]
    for s in range(3):
        kept = torch.rand((1, 16), generator=torch.Generator().manual_seed(5 * 1_000_003 + s)) >= 0.2
        torch.testing.assert_close(found[:, s], last(features * kept / 0.8).detach())
    p = found.double().softmax(2)
    entropy = -(p.mean(1) * p.mean(1).log()).sum(1)
    torch.testing.assert_close(method.score(Reps({rep: found})), entropy)
    information = entropy + (p * p.log()).sum(2).mean(1)
    torch.testing.assert_close(replace(method, measure="mutual_information").score(Reps({rep: found})), information)


def test_mc_dropout_drops_whole_channels() -> None:
    from howsure.methods.mc_dropout import StochasticLogits

    model = nn.Sequential(
        nn.Conv2d(3, 40, 1), nn.Dropout2d(0.5), nn.Conv2d(40, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    network = replace(networks()[0], model=model, members=[])
    seen: list[Tensor] = []
    handle = model[2].register_forward_pre_hook(lambda _m, inputs: seen.append(inputs[0]))
    read(network, pixels(), [StochasticLogits(1)])
    handle.remove()
    dropped = (seen[-1] == 0).all(0).all(1).all(1)
    assert 5 < int(dropped.sum()) < 35
    assert not (seen[-1][:, ~dropped] == 0).all(0).any()


def test_refusals() -> None:
    conv, transformer = networks()
    assert "dropout" in str(METHODS["mc_dropout"]().needs[0].skip(transformer))
    assert METHODS["ensemble"]().needs[0].skip(conv) is None
    assert "members" in str(METHODS["ensemble"]().needs[0].skip(transformer))
    assert "temperature_variance" in str(METHODS["rts"]().needs[0].skip(transformer))
    flat = replace(conv, model=nn.Sequential(nn.Flatten(), nn.Linear(768, 8), nn.ReLU(), nn.Linear(8, 4)), members=[])
    assert "feature map" in str(METHODS["rankfeat"]().needs[0].skip(flat))
    assert "feature map" in str(METHODS["gram"]().needs[0].skip(flat))
    for name in ("grood", "mahalanobis_layers"):
        assert "feature map" in str(refusal(METHODS[name](), flat)), "what it needs cannot be had"
    alone = replace(conv, model=nn.Sequential(nn.Flatten(), nn.Linear(768, 4)), members=[])
    for name in ("layerprint", "actprint", "activation_detector", "activation_norm_detector"):
        assert "one row per image" in str(refusal(METHODS[name](), alone))
        assert refusal(METHODS[name](), flat) is None


class Palette(nn.Module):
    """Pixels become the nearest of four colours, so that the logits have no gradient there."""

    def __init__(self) -> None:
        super().__init__()
        self.colours, self.conv, self.last = nn.Embedding(4, 8), nn.Conv2d(8, 8, 3), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        colour = (x.mean(1, keepdim=True) > torch.tensor([-1.0, 0.0, 1.0]).view(3, 1, 1)).sum(1)
        return self.last(self.conv(self.colours(colour).movedim(3, 1)).relu().mean((2, 3)))


@pytest.mark.parametrize("name", ["odin", "adascale_a", "adascale_l"])
def test_networks_without_a_gradient_at_the_input_are_refused_in_words(name: str, conv: Network) -> None:
    with pytest.raises(UserError, match="no gradient at its input"):
        read(replace(conv, model=Palette().eval(), members=[]), pixels(), METHODS[name]().needs)


def test_ensemble(conv: Network) -> None:
    method = METHODS["ensemble"]()
    scores = method.score(read(conv, pixels(), method.needs))
    for i, image in enumerate(conv.normalise(pixels())):
        with torch.no_grad():
            p = sum(m(image[None]).double().softmax(1) for m in (conv.model, *conv.members)) / (1 + len(conv.members))
        assert abs(scores[i] + (p * p.log()).sum()) < 1e-6


def test_rts_reads_the_models_own_variance(conv: Network) -> None:
    class WithVariance(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = conv.model

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x)

        def temperature_variance(self, x: Tensor) -> Tensor:
            return x.flatten(1)[:, :16].square()

    network = replace(conv, model=WithVariance(), members=[])
    method = METHODS["rts"]()
    expected = network.normalise(pixels()).flatten(1)[:, :16].square().mean(1)
    torch.testing.assert_close(method.score(read(network, pixels(), method.needs)), expected)


def test_tta(network: Network) -> None:
    method = METHODS["tta"]()
    scores = method.score(read(network, pixels(), method.needs))
    for i, image in enumerate(network.normalise(pixels())):
        padded = np.pad(image.numpy(), ((0, 0), (2, 2), (2, 2)), mode="edge")
        corners = [padded[:, a : a + 16, b : b + 16] for a, b in ((0, 0), (0, 4), (4, 0), (4, 4))]
        views = torch.stack([image, image.flip(2), *map(torch.from_numpy, corners)])
        with torch.no_grad():
            p = network.model(views).double().softmax(1)
        mean = p.mean(0)
        assert abs(scores[i] - (-(mean * mean.log()).sum() + (p * p.log()).sum(1).mean())) < 1e-6


@pytest.mark.parametrize(("epsilon", "shrinkage"), [(0.0, 0.0), (0.01, 0.0), (0.01, 0.3)])
def test_mahalanobis_over_layers(network: Network, epsilon: float, shrinkage: float) -> None:
    (rep,), train = METHODS["mahalanobis_layers"](epsilon=epsilon, shrinkage=shrinkage).needs, pixels(60, 1)
    inner = read(network, train, rep.needs)
    found = read(network, pixels(), [rep], fitted=inner)[rep]
    labels = torch.arange(60) % 4
    for column, name in enumerate(stages(network.model, network.example())):
        f = inner[LayerMeans()][name].double()
        means = torch.stack([f[labels == c].mean(0) for c in range(4)])
        covariance = (f - means[labels]).T @ (f - means[labels]) / 60
        covariance = (1 - shrinkage) * covariance + shrinkage * covariance.diagonal().diag()
        precision = torch.linalg.pinv(covariance, hermitian=True)
        layer = network.model.get_submodule(name)

        def distance(
            x: Tensor, layer: nn.Module = layer, means: Tensor = means, precision: Tensor = precision
        ) -> Tensor:
            caught: list[Tensor] = []
            hook = layer.register_forward_hook(lambda _m, _i, out: caught.append(out))
            network.model(x)
            hook.remove()
            out = caught[0][0].double()
            d = (out.flatten(1).mean(1) if out.dim() == 3 else out.mean(0)) - means
            return (d @ precision * d).sum(1).min()

        for i, image in enumerate(network.normalise(pixels())):
            x = image[None].clone().requires_grad_()
            moved = x.detach()
            if epsilon:
                moved = moved - epsilon / network.std * torch.autograd.grad(distance(x), x)[0].sign()
            with torch.no_grad():
                assert found[i, column] == pytest.approx(float(distance(moved)), rel=1e-3)


def test_mahalanobis_layers_learns_to_weigh_them(conv: Network) -> None:
    method = METHODS["mahalanobis_layers"](epsilon=0.0)
    noise = (pixels(60, 2) // 4 + 96).to(torch.uint8)
    inner, known = fitted_reps(conv, method.needs, noise)
    outliers = read(conv, pixels(60, 3), method.needs, fitted=inner)
    state = method.fit(known, outliers)
    assert all(isinstance(value, Tensor) for value in state.values())
    assert method.score(outliers, **state).mean() > method.score(known, **state).mean()


@pytest.mark.parametrize("epsilon", [0.0, 0.01])
def test_mahalanobis_layers_leaves_a_dead_stage_out(conv: Network, epsilon: float) -> None:
    from howsure.methods.mahalanobis_layers import LayerDistances

    rep, inner = LayerDistances(epsilon), read(conv, pixels(60, 1), LayerDistances.needs)
    layers = inner[LayerMeans()]
    first = next(iter(layers))
    dead = Reps({**inner, LayerMeans(): {**layers, first: torch.zeros_like(layers[first])}})
    distances, all_live = (read(conv, pixels(), [rep], fitted=seen)[rep] for seen in (dead, inner))
    assert torch.equal(distances, all_live[:, 1:])


def test_adascale(network: Network) -> None:
    train = pixels(40, 1)
    states = {}
    for name in ("adascale_a", "adascale_l"):
        method = METHODS[name](percentile=(60.0, 95.0), k1=20.0, k2=60.0)
        fit, reps = read(network, train, method.needs), read(network, pixels(), method.needs)
        states[name] = method.score(reps, **method.fit(fit))
    w, b = reps[Head()].weight.double(), reps[Head()].bias.double()

    def reaction(x: Tensor) -> tuple[Tensor, float]:
        x = x[None].clone().requires_grad_()
        (gradient,) = torch.autograd.grad(network.model(x).max(), x)
        step = torch.zeros(gradient.numel())
        least = gradient.flatten().abs().argsort(stable=True)[: int(0.05 * gradient.numel())]
        step[least] = 0.5 * gradient.flatten()[least].sign()
        caught: list[Tensor] = []
        hook = network.model.get_submodule(network.heads[0]).register_forward_pre_hook(
            lambda _m, i: caught.append(i[0])
        )
        with torch.no_grad():
            network.model(x)
            network.model(x + step.view_as(x))
        hook.remove()
        h, moved = caught[0][0].double(), caught[1][0].double()
        order = h.argsort(descending=True)
        k1, k2 = int(len(h) * 0.2), int(len(h) * 0.6)
        return h, float(10 * (h - moved).abs()[order[:k1]].sum() + moved.relu()[order[:k2]].sum())

    known = np.array([reaction(x)[1] for x in network.normalise(train)])
    for i, image in enumerate(network.normalise(pixels())):
        h, shift = reaction(image)
        percentile = 60 + (1 - (known <= shift).mean()) * 35
        kept = len(h) - round(len(h) * percentile / 100)
        factor = h.relu().sum() / h.relu().sort(descending=True).values[:kept].sum()
        assert states["adascale_a"][i] == pytest.approx(-float((w @ (h * factor.exp()) + b).logsumexp(0)), rel=1e-3)
        assert states["adascale_l"][i] == pytest.approx(-float((factor**2 * (w @ h + b)).logsumexp(0)), rel=1e-3)


@pytest.mark.parametrize(("percentile", "says"), [((95.0, 60.0), "lower one first"), ((75.0, 150.0), "percentages")])
@pytest.mark.parametrize("name", ["adascale_a", "adascale_l"])
def test_percentiles_of_adascale_that_are_none(name: str, percentile: tuple[float, float], says: str) -> None:
    with pytest.raises(UserError, match=says) as error:
        METHODS[name](percentile=percentile).fit(Reps({}))
    assert "\n" not in str(error.value)


def test_rankfeat(network: Network) -> None:
    method = METHODS["rankfeat"]()
    scores = method.score(read(network, pixels(), method.needs))
    names = stages(network.model, network.example())[-2:]

    def cut(_m: nn.Module, _i: object, out: Tensor) -> Tensor:
        u, s, v = torch.linalg.svd(out[0].flatten(1).double())
        return (out[0].flatten(1) - s[0] * torch.outer(u[:, 0], v[0])).reshape(out.shape).float()

    for i, image in enumerate(network.normalise(pixels())):
        logits = []
        for name in names:
            hook = network.model.get_submodule(name).register_forward_hook(cut)
            with torch.no_grad():
                logits.append(network.model(image[None]))
            hook.remove()
        assert scores[i] == pytest.approx(-float(((logits[0] + logits[1]) / 2).logsumexp(1)), abs=1e-4)


def test_rank_is_cut_in_every_layout() -> None:
    from howsure.methods.rankfeat import without_first_rank

    maps = torch.randn(2, 6, 4, 4)
    expected = without_first_rank(maps)
    assert torch.linalg.matrix_rank(expected.flatten(2), rtol=1e-4).tolist() == [5, 5]
    torch.testing.assert_close(without_first_rank(maps.permute(0, 2, 3, 1)), expected.permute(0, 2, 3, 1))
    torch.testing.assert_close(without_first_rank(maps.flatten(2)), expected.flatten(2))
    assert without_first_rank(torch.zeros(2, 6, 4, 4)).abs().max() == 0


def test_gram(network: Network) -> None:
    method = METHODS["gram"](power=3)
    train = pixels(60, 1)
    fit, reps = read(network, train, method.needs), read(network, pixels(), method.needs)
    scores = method.score(reps, **method.fit(fit))
    names = stages(network.model, network.example())

    def features(x: Tensor) -> tuple[int, list[np.ndarray]]:
        caught: dict[str, Tensor] = {}
        hooks = [
            network.model.get_submodule(name).register_forward_hook(
                lambda _m, _i, out, name=name: caught.update({name: out[0]})
            )  # type: ignore[misc]
            for name in names
        ]
        with torch.no_grad():
            predicted = int(network.model(x[None]).argmax())
        for hook in hooks:
            hook.remove()
        rows = []
        for name in names:
            out = caught[name].double()
            f = out.flatten(1) if out.dim() == 3 else out.T
            grams = [(f**p) @ (f**p).T for p in (1, 2, 3)]
            sums = [g.sum(1) for g in grams]
            rows.append(
                torch.cat([s.sign() * s.abs() ** (1 / p) for p, s in zip((1, 2, 3), sums, strict=True)]).numpy()
            )
        return predicted, rows

    known = [features(x) for x in network.normalise(train)]
    place = [sum(p == q for q, _ in known[:i]) for i, (p, _) in enumerate(known)]
    ranges = {}
    for c in range(4):
        chosen = [rows for i, (p, rows) in enumerate(known) if place[i] % 10 != 9 and p == c]
        chosen = chosen or [rows for i, (_, rows) in enumerate(known) if place[i] % 10 != 9]
        ranges[c] = [(np.min(layer, 0), np.max(layer, 0)) for layer in zip(*chosen, strict=True)]

    def deviations(predicted: int, rows: list[np.ndarray]) -> np.ndarray:
        total = []
        for row, (low, high) in zip(rows, ranges[predicted], strict=True):
            below = np.maximum(low - row, 0) / (np.abs(low) + 1e-6)
            total.append((below + np.maximum(row - high, 0) / (np.abs(high) + 1e-6)).sum())
        return np.array(total)

    held = [deviations(*found) for i, found in enumerate(known) if place[i] % 10 == 9]
    expected = np.maximum(np.mean(held, 0), 1e-7)
    for i, image in enumerate(network.normalise(pixels())):
        assert scores[i] == pytest.approx((deviations(*features(image)) / expected).sum(), rel=2e-2)


@pytest.mark.parametrize(("images", "held"), [(200, [*range(90, 100), *range(190, 200)]), (90, [])])
def test_gram_holds_out_images_of_every_class(images: int, held: list[int]) -> None:
    from howsure.methods.gram import GramRows

    classes, x = torch.arange(images) % 10, torch.arange(images) + 1.0
    reps = Reps({GramRows(): {"layer": x[:, None, None].expand(images, 10, 1)}, Logits(): F.one_hot(classes).float()})
    state = METHODS["gram"](power=1).fit(reps)
    own = [[x[i] for i in range(c, images, 10) if i not in held] for c in range(10)]
    assert state["low000"].flatten().tolist() == [min(values) for values in own]
    assert state["high000"].flatten().tolist() == [max(values) for values in own]
    beyond = [max(x[i] - max(own[i % 10]), 0) / max(own[i % 10]) for i in held]
    assert float(state["expected"]) == pytest.approx(np.mean(beyond) if held else 1e-7, rel=1e-5)


def test_gram_of_huge_and_tiny_maps_is_finite() -> None:
    from howsure.methods.gram import gram_rows

    for scale in (0.0, 1e-20, 1e15):
        assert gram_rows(scale * torch.randn(3, 5, 4, 4), nn.Identity()).isfinite().all()


@pytest.mark.parametrize(("layers", "alpha"), [(None, 4000.0), (("5", "8"), 500.0)])
def test_nac(conv: Network, layers: tuple[str, ...] | None, alpha: float) -> None:
    method = METHODS["nac"](r=20, m=9, alpha=alpha, layers=layers)
    train = pixels(40, 1)
    fit, reps = read(conv, train, method.needs), read(conv, pixels(), method.needs)
    scores = method.score(reps, **method.fit(fit))
    assert scores.std() > 0.01

    def states(x: Tensor) -> list[np.ndarray]:
        found = []
        for name in layers or ("13",):
            caught: list[Tensor] = []
            layer = conv.model.get_submodule(name)
            hook = layer.register_forward_hook(lambda _m, _i, out, caught=caught: caught.append(out) or out.clone())  # type: ignore[misc]
            p = conv.model(x[None]).log_softmax(1)
            hook.remove()
            (g,) = torch.autograd.grad(-p.mean(), caught[0])
            z = caught[0].detach()[0].reshape(g.shape[1], -1).sum(1) * g[0].reshape(g.shape[1], -1).sum(1)
            found.append((9 * torch.sigmoid(alpha * z.double())).floor().clamp_max(8).numpy())
        return found

    known = [states(x) for x in conv.normalise(train)]
    for i, image in enumerate(conv.normalise(pixels())):
        covered = []
        for j, layer in enumerate(states(image)):
            same = np.sum([k[j] == layer for k in known], 0)
            covered.append(np.minimum(same, 20).mean() / 20)
        assert scores[i] == pytest.approx(-np.mean(covered), rel=1e-5)


def test_every_loss_and_representation_can_be_told_apart() -> None:
    reps: list[Representation] = [METHODS["odin"](epsilon=e).needs[0] for e in (0.001, 0.002)]
    assert len({*reps, *(METHODS["predgrad"](layers=(x,)).needs[0] for x in ("a", "b"))}) == 4
    assert len({Confound(), Confound(2), Uniform(), Uniform(2.0), Predicted()}) == 5


def test_a_layer_that_runs_more_than_once_is_no_end_of_a_stage():
    class Reused(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.convs = torch.nn.ModuleList(torch.nn.Conv2d(3 if i == 0 else 8, 8, 3, padding=1) for i in range(3))
            self.relu, self.pool, self.head = torch.nn.ReLU(), torch.nn.MaxPool2d(2), torch.nn.Linear(8, 4)

        def forward(self, x):
            for conv in self.convs:
                x = self.pool(self.relu(conv(x)))
            return self.head(x.mean((2, 3)))

    assert stages(Reused(), torch.rand(2, 3, 16, 16)) == ["convs.0", "convs.1", "convs.2"]


def test_the_reduced_keys_of_an_attention_end_no_stage():
    class Attention(torch.nn.Module):
        def __init__(self, reduction):
            super().__init__()
            self.keys = torch.nn.Conv2d(8, 8, reduction, reduction)

        def forward(self, x):
            queries, keys = (maps.flatten(2).mT for maps in (x, self.keys(x)))
            return F.scaled_dot_product_attention(queries, keys, keys).mT.reshape(x.shape)

    ends = [nn.Sequential(nn.Conv2d(8 if i else 3, 8, 2, 2), Attention(r)) for i, r in enumerate((8, 4, 2, 1))]
    model = nn.Sequential(*ends, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    assert stages(model, torch.rand(2, 3, 64, 64)) == ["0", "1", "2", "3"]
