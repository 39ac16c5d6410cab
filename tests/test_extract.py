"""Every representation comes from one pass over each split, and is what a direct computation gives."""

from __future__ import annotations

import multiprocessing
import pickle
from collections import Counter, OrderedDict
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from test_gradients_architectures import build
from torch import Tensor, nn

from howsure import (
    ActivationNorms,
    ArrayImages,
    Batch,
    Confound,
    Features,
    GradNorms,
    Head,
    Labels,
    LayerMeans,
    LayerMoments,
    Logits,
    Network,
    Predicted,
    Representation,
    SmallGrads,
    UserError,
)
from howsure import split as split_module
from howsure.backbone import InputSpec
from howsure.cells import refusal
from howsure.check import snapshot
from howsure.extract import Extractor, seeded, union
from howsure.forward import run_pass
from howsure.images import Joined, Subset
from howsure.plugins import METHODS
from howsure.readings import channel_moments
from howsure.representations import ImageIds
from howsure.rows import INDEX
from howsure.split import Pixels, Prepared, Split, batches
from howsure.store import Store
from howsure.timing import peak_memory

EVERYTHING = (
    Logits(), Features(), Head(), Labels(), LayerMeans(), LayerMoments(), ActivationNorms(), GradNorms(),
    GradNorms(Predicted()), SmallGrads(Predicted()), ImageIds(),
)  # fmt: skip
FEW = np.arange(5)


@dataclass(frozen=True)
class Pixel(Representation):
    """The first pixel of each image."""

    def compute(self, batch, **state):
        return batch.images[:, :, 0, 0]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "side", "heads"),
    [("resnet18", 32, 1), ("vit_tiny_patch16_224", 32, 1), ("resnetv2_50", 32, 1), ("dla34", 32, 1),
     ("deit_tiny_distilled_patch16_224", 32, 2), ("efficientformer_l1", 224, 2), ("repvit_m0_9", 32, 2)],
)  # fmt: skip
def test_features_and_head_make_the_logits(name, side, heads):
    """Of linear layers, 1×1 convolutions, and heads whose mean is the logits."""
    model = build(f"{name}:{side}")[0]
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.1)  # no head starts at zero
    network = Network(name, model, InputSpec((side, side), (0.5,) * 3, (0.25,) * 3), 5)
    assert len(network.heads) == heads
    images = ArrayImages(
        np.random.default_rng(0).integers(0, 256, (3, side, side, 3), dtype=np.uint8), np.zeros(3, int)
    )
    reps = run_pass(network, batches(Split("some", images), network), (Logits(), Features(), Head()))
    want = nn.functional.linear(reps[Features()], *reps[Head()])
    torch.testing.assert_close(want, reps[Logits()], rtol=1e-3, atol=1e-4 * float(want.abs().max()))


LOOKED: Counter[tuple[float, int]] = Counter()


@dataclass(frozen=True)
class Costly(Representation):
    """Counts the images that it makes a pass over, by weight and id."""

    cost = "passes"
    weight: float = 1.0

    def compute(self, batch, **state):
        LOOKED.update((self.weight, i) for i in batch.ids.tolist())
        return self.weight * batch.logits


def whole_ids(network, split):
    return run_pass(network, batches(split, network), (ImageIds(),))[ImageIds()]


@pytest.fixture
def split(images):
    return Split("some", images)


@pytest.fixture
def counted(conv_net):
    seen = []
    hook = conv_net.model.register_forward_hook(lambda m, inputs, out: seen.append(len(inputs[0])))
    yield conv_net, seen
    hook.remove()


def test_ten_methods_cost_one_pass_over_each_split(counted, images, tmp_path):
    network, seen = counted
    names = ["msp", "maxlogit", "energy", "entropy", "margin", "mahalanobis", "knn", "vim", "react", "dice"]
    methods = [METHODS[name]() for name in names]
    _ = network.heads, network.digest
    seen.clear()
    extractor = Extractor(network, Store(tmp_path), Split("train", images))
    splits = [
        Split("train", images),
        Split("test", images, ("gaussian_noise", 3)),
        Split("more", images, ("contrast", 1)),
    ]
    needed = union(tuple(m.needs) for m in methods)
    for split in splits:
        reps = extractor(split, needed)
        assert reps[Logits()].shape == (len(images), 4)
    assert sum(seen) == len(splits) * len(images)
    for split in splits:
        extractor(split, needed)
    assert sum(seen) == len(splits) * len(images), "a second run reads what is stored"


@dataclass(frozen=True)
class Wide(Representation):
    """Many numbers an image, in ten arrays."""

    def compute(self, batch, **state):
        return {f"array {i}": batch.logits[:, :1].expand(-1, 1000).contiguous() for i in range(10)}


def test_a_pass_holds_its_rows_once(conv_net, images):
    loaded = list(batches(Split("some", Joined([images] * 40)), conv_net))
    size = 40 * len(images) * 10 * 1000 * 4
    assert peak_memory(conv_net.device, lambda: run_pass(conv_net, loaded, (Wide(),))) < 1.5 * size


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="it tells what is mapped")
def test_what_is_stored_is_left_to_its_file(conv_net, split, tmp_path):
    arrays = Extractor(conv_net, Store(tmp_path), split)(split, (Wide(),))[Wide()]
    with open("/proc/self/maps") as maps:
        mapped = [line.split()[0].split("-") for line in maps if line.rstrip().endswith(".safetensors")]
    spans = [(int(low, 16), int(high, 16)) for low, high in mapped]
    assert all(any(low <= v.data_ptr() < high for low, high in spans) for v in arrays.values())


def test_splits_together_share_batches_and_keep_their_rows(counted, images, tmp_path):
    network, _ = counted
    splits = [Split("all", images), Split("noisy", images, ("gaussian_noise", 3)), Split("few", Subset(images, FEW))]
    calls = []
    network.model.register_forward_hook(lambda *_: calls.append(1))
    extractor = Extractor(network, Store(tmp_path), splits[0])
    extractor(splits[2], (Logits(), ImageIds()))
    done = len(calls)
    found = extractor.together([(split, None) for split in splits], (Logits(), ImageIds()))
    assert len(calls) - done == 1, "100 images in one batch; the rest is stored"
    for split, reps in zip(splits, found, strict=True):
        alone = Extractor(network, None, split)(split, (Logits(), ImageIds()))
        torch.testing.assert_close(reps[Logits()], alone[Logits()])
        assert reps[ImageIds()].equal(alone[ImageIds()])
        assert extractor(split, (Logits(),))[Logits()].equal(reps[Logits()])


@pytest.fixture
def looked():
    LOOKED.clear()
    return LOOKED


def test_rows_are_those_of_the_whole_split_and_computed_once(conv_net, split, looked, tmp_path):
    whole = Extractor(conv_net, None, split)(split, (Costly(), Logits(), Head()))
    looked.clear()
    noisy = replace(split, corruption=("gaussian_noise", 3))
    rows = [torch.tensor([9, 3, 3, 30]), torch.tensor([], dtype=torch.int64), torch.arange(25, 35), None]
    for index in rows:
        extractor = Extractor(conv_net, Store(tmp_path), split)
        found, _, again = extractor.together([(split, index), (noisy, rows[0]), (split, rows[0])], (Costly(), Head()))
        for reps, taken in ((found, slice(None) if index is None else index), (again, rows[0])):
            torch.testing.assert_close(reps[Costly()], whole[Costly()][taken])
            assert torch.equal(reps[Head()].weight, whole[Head()].weight)
        extractor(split, (Costly(2.0),), rows[0])
        assert torch.equal(extractor(split, (Costly(),), index)[Costly()], found[Costly()])
    ids = whole_ids(conv_net, split)
    assert looked == {
        **{(1.0, i): 1 + (i in ids[rows[0]]) for i in ids.tolist()},
        **{(2.0, i): 1 for i in ids[rows[0]].unique().tolist()},
    }, "the noisy images have the same ids"
    elsewhere = Store(tmp_path / "elsewhere")
    Extractor(conv_net, elsewhere, split)(split, (Costly(),))
    kept, plain = (store.get(extractor._key(split, Costly())) for store in (Store(tmp_path), elsewhere))
    assert kept.keys() == plain.keys()
    assert all(torch.allclose(kept[key], plain[key]) for key in kept)


def test_a_damaged_part_is_computed_again(conv_net, split, looked, tmp_path):
    store, index = Store(tmp_path), torch.arange(5, 15)
    first = Extractor(conv_net, store, split)(split, (Costly(),), index)[Costly()]
    path = store.path(Extractor(conv_net, store, split)._key(split, Costly()))
    path.write_bytes(path.read_bytes()[:-1])
    assert torch.equal(Extractor(conv_net, store, split)(split, (Costly(),), index)[Costly()], first)
    assert set(looked.values()) == {2}


def test_of_two_runs_that_write_the_last_wins_and_neither_is_wrong(conv_net, split, tmp_path):
    whole = Extractor(conv_net, None, split)(split, (Costly(),))[Costly()]
    one, other = (Extractor(conv_net, Store(tmp_path), split) for _ in range(2))
    stale = one(split, (Costly(),), torch.arange(10))
    for extractor, index in [
        (one, torch.arange(5)),
        (other, torch.arange(8, 20)),
        (one, torch.arange(30)),
        (other, None),
    ]:
        found = extractor(split, (Costly(),), index)[Costly()]
        torch.testing.assert_close(found, whole if index is None else whole[index])
        one.store.put(one._key(split, Costly()), {"value": stale[Costly()], INDEX: torch.arange(10)})


def test_what_the_shared_pass_gives_does_not_depend_on_rows_that_are_there(conv_net, images, tmp_path):
    split = Split("many", Subset(images, np.arange(600) % len(images)))
    plain = Extractor(conv_net, None, split)(split, (Logits(), Features()))
    extractor = Extractor(conv_net, Store(tmp_path), split)
    extractor(split, (Costly(),), torch.arange(0, 600, 7))
    sizes = []
    hook = conv_net.model.register_forward_hook(lambda m, inputs, out: sizes.append(len(inputs[0])))
    found = extractor(split, (Costly(), Logits(), Features()))
    hook.remove()
    assert sizes[:3] == [256, 256, 88]
    assert sum(sizes[3:]) == 600 - len(range(0, 600, 7))
    assert all(torch.equal(found[rep], plain[rep]) for rep in plain)


def test_an_interruption_leaves_nothing_that_would_be_computed_without_the_gradients(conv_net, split, tmp_path):
    extractor, kept = Extractor(conv_net, Store(tmp_path), split), []
    extractor.store.put = lambda key, arrays: kept.append(key)
    extractor(split, (Logits(), GradNorms(), ActivationNorms(), SmallGrads(), Features()))
    assert set(kept[-2:]) == {extractor._key(split, rep) for rep in (GradNorms(), SmallGrads())}


def test_what_a_fit_draws_by_numpy_goes_by_the_seed():
    before = np.random.get_state()[1].tolist()
    one, same, other = (seeded(seed, lambda: {"x": torch.from_numpy(np.random.rand(3))})["x"] for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert np.random.get_state()[1].tolist() == before


def test_a_fit_beside_several_gpus_warns_of_nothing(monkeypatch):
    states = {0: torch.ones(1), 1: torch.zeros(1)}
    monkeypatch.setattr(torch.random, "_fork_rng_warned_already", False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_rng_state", states.get)
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: states.pop(device))
    assert seeded(0, lambda: {"x": torch.rand(1)})
    assert states == {}


def test_an_image_that_is_not_there_is_an_error(conv_net, split):
    for wrong in (-1, len(split)):
        with pytest.raises(IndexError):
            Extractor(conv_net, None, split)(split, (Logits(),), torch.tensor([0, wrong]))


def test_asking_twice_gives_the_rows_once(conv_net, split):
    reps = Extractor(conv_net, None, split)(split, (Logits(), ImageIds(), Logits()))
    assert len(reps[Logits()]) == len(split)


@pytest.mark.parametrize(("side", "size"), [(16, 256), (32, 64), (64, 32)])
def test_batches_hold_fewer_of_larger_images(conv_net, images, side, size):
    many = Subset(images, np.arange(300) % len(images))
    network = replace(conv_net, input=replace(conv_net.input, size=(side, side)))
    assert len(next(iter(batches(Split("many", many), network)))[0]) == size


def test_pixels_are_prepared_once_for_networks_with_the_same_input(conv_net, images, monkeypatch):
    seen, prepare = [], InputSpec.prepare
    monkeypatch.setattr(InputSpec, "prepare", lambda spec, image: [seen.append(1), prepare(spec, image)][1])
    pixels, split = Pixels(), Split("noisy", images, ("gaussian_noise", 3))
    first = Extractor(conv_net, None, split, pixels)(split, (Pixel(),))
    again = Extractor(replace(conv_net, name="other"), None, split, pixels)(split, (Pixel(),))
    assert len(seen) == len(images)
    assert first[Pixel()].equal(again[Pixel()])
    other = replace(conv_net, input=replace(conv_net.input, size=(8, 8)))
    Extractor(other, None, split, pixels)(split, (Pixel(),))
    assert len(seen) == 2 * len(images)
    monkeypatch.setattr("howsure.split._KEPT_BYTES", 100)
    small = Extractor(conv_net, None, split, Pixels())
    assert small(split, (Pixel(),))[Pixel()].equal(small(split, (Pixel(),))[Pixel()])
    assert len(seen) == 4 * len(images), "too large to keep"


def test_workers_need_no_network(conv_net, images):
    """Where they do not start as forks, what they load from is sent to them."""
    prepared = Prepared(Split("noisy", images, ("gaussian_noise", 3)), conv_net.input)
    sent = pickle.dumps(prepared)
    assert len(sent) < 2 * images.x.nbytes + 10_000
    pixels, label, identity = pickle.loads(sent)[1]
    assert np.array_equal(pixels, prepared[1][0])
    assert (label, identity) == prepared[1][1:]


def test_workers_are_forks_where_that_can_be(conv_net, images, monkeypatch):
    """Not what Python starts by default (from 3.14 on no forks): data sets of plugins cannot be sent to others."""
    given, loader = {}, split_module.DataLoader

    def seen(*args, **options):
        given.update(options)
        return loader(*args)

    monkeypatch.setattr(split_module, "DataLoader", seen)
    on_gpu = SimpleNamespace(device=torch.device("cuda"), normalise=lambda pixels: pixels)
    assert len(list(split_module.load([Prepared(Split("s", images), conv_net.input)], on_gpu))) == 1
    assert given["num_workers"] > 0
    starts = multiprocessing.get_all_start_methods()
    assert given["multiprocessing_context"] == ("fork" if "fork" in starts else None)


def test_gradients_share_the_pass(counted, split):
    network, seen = counted
    needed = (Logits(), Features(), GradNorms(), GradNorms(Predicted()))
    run_pass(network, batches(split, network), needed)  # learns the network from its first images
    seen.clear()
    run_pass(network, batches(split, network), needed)
    assert sum(seen) == len(split)


@pytest.mark.parametrize("which", ["conv_net", "transformer"])
def test_values_are_those_of_a_direct_computation(which, split, request):
    network = request.getfixturevalue(which)
    before = snapshot(network.model)
    reps = run_pass(network, batches(split, network, 16), EVERYTHING)
    assert snapshot(network.model) == before
    x = network.normalise(
        torch.stack([torch.from_numpy(network.prepare(split.images[i][0]).copy()) for i in range(len(split))])
    )
    with torch.no_grad():
        logits = network.model(x)
    torch.testing.assert_close(reps[Logits()], logits)
    weight, bias = reps[Head()]
    torch.testing.assert_close(reps[Features()] @ weight.T + bias, logits, rtol=1e-4, atol=1e-5)
    assert reps[Labels()].tolist() == [split.images[i][1] for i in range(len(split))]
    network.model.zero_grad()
    grads = torch.autograd.grad(Confound()(network.model(x[3:4])).sum(), list(network.model.parameters()))
    expected = torch.stack([g.square().sum() for g in grads])
    torch.testing.assert_close(reps[GradNorms()][3], expected, rtol=1e-4, atol=1e-12)
    grads = torch.autograd.grad(Predicted()(network.model(x[3:4])).sum(), list(network.model.parameters()))
    small = torch.cat([g for g in grads if g.dim() == 1])
    torch.testing.assert_close(reps[SmallGrads(Predicted())][3], small, rtol=1e-3, atol=1e-7)


def test_layer_moments_by_hand(conv_net, split):
    reps = run_pass(conv_net, batches(split, conv_net), (LayerMoments(), LayerMeans(("2",)), ActivationNorms()))
    assert list(reps[LayerMoments()]) == ["1", "5", "9"]
    x = next(batches(split, conv_net))[0]
    with torch.no_grad():
        first = conv_net.model[:2](x)
    torch.testing.assert_close(reps[LayerMoments()]["1"][:, 0], first.mean((2, 3)))
    torch.testing.assert_close(reps[LayerMoments()]["1"][:, 1], first.std((2, 3), correction=0))
    torch.testing.assert_close(reps[LayerMeans(("2",))]["2"], first.relu().mean((2, 3)))
    torch.testing.assert_close(reps[ActivationNorms()][:, 0], first.mean((2, 3)).norm(dim=1).log())


class Tokens(nn.Module):
    """Tokens, of which each is a row of a batch norm, as in LeViT; one norm is not used."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm, self.idle = nn.Linear(3, 8), nn.BatchNorm1d(8), nn.LayerNorm(8)
        self.last_norm, self.head = nn.LayerNorm(8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x.flatten(2).mT)
        tokens = self.norm(tokens.flatten(0, 1)).view_as(tokens)
        return self.head(self.last_norm(tokens).mean(1))


def test_norms_without_one_row_per_image_are_left_out():
    network = Network("tokens", Tokens(), InputSpec((4, 4), (0.0,) * 3, (1.0,) * 3), 4)
    assert network.norms == ["last_norm"]
    x, needs = torch.randn(5, 3, 4, 4), (LayerMoments(), ActivationNorms())
    reps = run_pass(network, [(x, torch.zeros(5, dtype=torch.long), torch.arange(5))], needs)
    assert {name: v.shape for name, v in reps[LayerMoments()].items()} == {"last_norm": (5, 2, 8)}
    assert reps[ActivationNorms()].shape == (5, 2)


@pytest.fixture
def unsorted() -> Network:
    """A network whose layers do not come in the order of their names."""
    torch.manual_seed(0)
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for name, (inside, outside) in zip(("stem", "block2", "block10"), pairwise((3, 8, 12, 16)), strict=True):
        convolution = nn.Conv2d(inside, outside, 3, padding=1)
        layers[name] = nn.Sequential(convolution, nn.BatchNorm2d(outside), nn.ReLU(), nn.MaxPool2d(2))
    layers |= {"flat": nn.Flatten(), "last": nn.Linear(64, 4)}
    return Network("unsorted", nn.Sequential(layers), InputSpec((16, 16), (0.5,) * 3, (0.25,) * 3), 4)


def test_layers_come_back_from_the_store_in_their_order(unsorted, split, tmp_path):
    rep = LayerMeans(("stem", "block2", "block10"))
    for _ in range(2):
        assert list(Extractor(unsorted, Store(tmp_path), split)(split, (rep,))[rep]) == list(rep.layers)


@pytest.mark.parametrize("name", ["layerprint", "mahalanobis_layers", "actprint", "grood"])
def test_what_is_fitted_on_stored_images_is_what_is_fitted_on_computed_ones(name, unsorted, split, tmp_path):
    method = METHODS[name](**METHODS[name].test_params)
    assert refusal(method, unsorted) is None
    (rep,) = [rep for rep in method.needs if rep.needs]
    first, again = (Extractor(unsorted, Store(tmp_path), split).state(rep) for _ in range(2))
    values = [run_pass(unsorted, batches(split, unsorted), (rep,), {rep: state})[rep] for state in (first, again)]
    torch.testing.assert_close(*values)


def test_store_misses_when_anything_changed(conv_net, images, tmp_path):
    split = Split("some", images)
    extractor = Extractor(conv_net, Store(tmp_path), split)
    keys = {extractor._key(split, Logits())}
    keys.add(extractor._key(split, GradNorms()))
    keys.add(extractor._key(split, GradNorms(Confound(hot=2))))
    keys.add(extractor._key(replace(split, corruption=("contrast", 1)), Logits()))
    other = images.x.copy()
    other[0, 0, 0, 0] ^= 1
    keys.add(extractor._key(Split("some", ArrayImages(other, images.y)), Logits()))
    keys.add(
        Extractor(replace(conv_net, input=replace(conv_net.input, mean=(0.1, 0.2, 0.3))), None, split)._key(
            split, Logits()
        )
    )
    assert len(keys) == 6
    assert extractor._key(Split("same images", ArrayImages(images.x.copy(), images.y)), Logits()) in keys


@pytest.mark.parametrize(
    "damage", [lambda x: x[:100], lambda x: x[:-9] + bytes(9), lambda x: x[:-1] + bytes([x[-1] ^ 1])]
)
def test_a_damaged_file_is_computed_again(conv_net, split, tmp_path, damage):
    store = Store(tmp_path)
    extractor = Extractor(conv_net, store, split)
    first = extractor(split, (Logits(),))[Logits()].clone()
    path = store.path(extractor._key(split, Logits()))
    path.write_bytes(damage(path.read_bytes()))
    assert torch.equal(extractor(split, (Logits(),))[Logits()], first)


def test_a_full_disk_stops_no_pass(conv_net, split, looked, tmp_path, monkeypatch, capsys):
    def full(*args):
        raise SafetensorError("Error while serializing: No space left on device")

    monkeypatch.setattr("howsure.store.save_file", full)
    extractor = Extractor(conv_net, Store(tmp_path), split)
    first, again = (extractor(split, (Costly(),))[Costly()] for _ in range(2))
    assert torch.equal(first, again)
    assert set(looked.values()) == {1}
    assert "kept in memory, not on disk" in capsys.readouterr().err


def test_reading_what_was_not_declared_is_an_error(conv_net, split):
    reps = run_pass(conv_net, batches(split, conv_net), (Logits(), Features())).only((Logits(),), "energy")
    with pytest.raises(UserError, match=r"energy reads Features\(\) but declares Logits\(\)"):
        reps[Features()]


def test_an_unknown_layer_is_an_error(conv_net, split):
    with pytest.raises(UserError, match="no layer 'layer9'"):
        run_pass(conv_net, batches(split, conv_net), (LayerMeans(("layer9",)),))


def test_hooks_are_removed_when_a_pass_fails(conv_net, split):
    before = snapshot(conv_net.model)
    broken = replace(conv_net, input=replace(conv_net.input, mean=(0.5,), std=(0.5,)))
    with pytest.raises(RuntimeError):
        run_pass(broken, batches(split, broken), EVERYTHING)
    assert snapshot(conv_net.model) == before


def test_a_corrupted_image_has_the_id_of_the_clean_one(conv_net, split):
    clean = run_pass(conv_net, batches(split, conv_net), (ImageIds(), Logits()))
    noisy = replace(split, corruption=("gaussian_noise", 5))
    corrupted = run_pass(conv_net, batches(noisy, conv_net), (ImageIds(), Logits()))
    assert torch.equal(clean[ImageIds()], corrupted[ImageIds()])
    assert not torch.equal(clean[Logits()], corrupted[Logits()])
    assert len(clean[ImageIds()].unique()) == len(split)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("cached", [1, 200, 2**18])
def test_channel_moments_a_few_images_at_a_time(monkeypatch, layout, cached):
    monkeypatch.setattr("howsure.readings._CACHED", cached)
    maps = 100 + torch.randn(7, 5, 6, 6, generator=torch.Generator().manual_seed(0)).contiguous(memory_format=layout)
    mean, deviation = channel_moments(maps, nn.BatchNorm2d(5)).unbind(1)
    torch.testing.assert_close(mean, maps.mean((2, 3)))
    torch.testing.assert_close(deviation, maps.double().std((2, 3), correction=0).float())
    vectors = channel_moments(torch.ones(3, 5), nn.BatchNorm1d(5))
    assert vectors.tolist() == [[[1.0] * 5, [0.0] * 5]] * 3


@dataclass(frozen=True)
class Quiet(Representation[torch.Tensor]):
    """`factor` `[N]`, which its `repr` leaves out."""

    factor: float = field(default=1.0, repr=False)

    def compute(self, batch: Batch, **state: torch.Tensor) -> torch.Tensor:
        return torch.full((len(batch.images),), self.factor)


def test_what_a_repr_leaves_out_is_behind_a_key_too(conv_net, images, tmp_path):
    split = Split("some", images)
    for factor in (1.0, 50.0):
        rep = Quiet(factor)
        assert Extractor(conv_net, Store(tmp_path), split)(split, (rep,))[rep].unique().tolist() == [factor]
