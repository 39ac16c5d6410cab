"""No image is in two parts, no shift is seen that must not be."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from howsure import ArrayImages
from howsure.bench import Bench
from howsure.extract import Extractor
from howsure.protocol import FIT, TEST, VAL, Shift, gather, members, parts, pseudo_unknowns, seen_outliers
from howsure.representation import Reps
from howsure.representations import ImageIds
from howsure.split import Split
from howsure.synthetic import Synthetic

SHIFTS = [
    Shift("svhn", "svhn", "far", "ood"),
    *(Shift(f"{kind}@{s}", kind, "noise", "corruption", s) for kind in ("fog", "snow") for s in (1, 2)),
]


def ids(n: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 2**63 - 1, n))


def test_shares_are_forty_twenty_forty():
    counts = torch.bincount(parts(ids(100_000), 0), minlength=3) / 100_000
    torch.testing.assert_close(counts, torch.tensor([0.4, 0.2, 0.4]), atol=0.01, rtol=0)


@given(st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=50), st.integers(0, 1000))
def test_a_part_belongs_to_the_image_and_not_to_its_place(values, seed):
    x = torch.tensor(values)
    assert torch.equal(parts(x, seed).flip(0), parts(x.flip(0), seed))
    assert torch.equal(parts(torch.cat([x, x]), seed), parts(x, seed).repeat(2))


def test_seeds_give_other_parts():
    assert (parts(ids(1000), 0) != parts(ids(1000), 1)).double().mean() > 0.4


def test_no_image_is_in_two_parts_by_hash_of_its_pixels(conv_net):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (60, 16, 16, 3), dtype=np.uint8)
    x = np.concatenate([x, x[:20]])
    clean = Split("test", ArrayImages(x))
    splits = {"test": clean, "fog@1": Split("fog@1", clean.images, ("contrast", 1))}
    bench = Bench(conv_net, Extractor(conv_net, None, clean), splits, SHIFTS[1:2], seed=3)
    hashes = [hashlib.sha256(image.tobytes()).hexdigest() for image in x]
    seen = {part: {hashes[i] for name in splits for i in bench.part(name, part)} for part in (FIT, VAL, TEST)}
    assert all(seen.values())
    assert seen[FIT].isdisjoint(seen[VAL] | seen[TEST])
    assert seen[VAL].isdisjoint(seen[TEST])
    assert sum(len(bench.part("test", part)) for part in seen) == len(x)


def test_leave_one_out_never_shows_the_shift_nor_another_severity():
    assert seen_outliers("same-shift", SHIFTS[1], SHIFTS) == ["fog@1"]
    assert seen_outliers("leave-one-out", SHIFTS[1], SHIFTS) == ["svhn", "snow@1", "snow@2"]
    assert seen_outliers("leave-one-out", SHIFTS[0], SHIFTS) == ["fog@1", "fog@2", "snow@1", "snow@2"]


def test_gather_takes_the_same_number_of_each():
    own = {"a": torch.arange(0, 1000, 3), "b": torch.arange(1, 90, 2)}
    found = dict(gather(own, 0, 60))
    assert {name: len(index) for name, index in found.items()} == {"a": 30, "b": 30}
    for name, index in found.items():
        assert torch.equal(index, own[name][torch.isin(own[name], index)]), "some of its own, in order"
    assert [len(index) for _, index in gather(own, 0, 8000)] == [334, 45], "all where there are fewer"


def test_sets_of_the_same_images_give_different_ones():
    corrupted = {f"fog@{severity}": torch.arange(1000) for severity in range(1, 6)}
    found = torch.cat([index for _, index in gather(corrupted, 0, 100)])
    assert len(found) == 100
    assert len(found.unique()) > 80


@pytest.mark.parametrize("seed", range(5))
def test_pseudo_unknowns_hold_whole_classes_back(seed):
    labels = torch.arange(500) % 10
    known, unknown = pseudo_unknowns(labels, torch.arange(500), seed, 8000)
    held = set(labels[unknown].tolist())
    assert len(held) == 3
    assert not held & set(labels[known].tolist())
    assert len(known) == len(unknown) == 150
    some = (labels < 8).nonzero().squeeze(1)[::3]  # the same classes are held back of any part
    known, unknown = pseudo_unknowns(labels, some, seed, 8000)
    assert set(labels[unknown].tolist()) <= held
    assert not held & set(labels[known].tolist())
    assert set(known.tolist() + unknown.tolist()) <= set(some.tolist())


def test_members_are_indices_in_order():
    reps = Reps({ImageIds(): ids(100)})
    index = members(reps, VAL, 0)
    assert torch.equal(index, index.sort().values)
    assert (parts(ids(100)[index], 0) == VAL).all()


@pytest.mark.parametrize("side", [8, 32])
def test_no_altered_image_is_nearly_the_original(side):
    x = np.kron(np.random.default_rng(0).integers(0, 256, (70, 8, 8)), np.ones((side // 8, side // 8))).astype(np.uint8)
    images = ArrayImages(x, np.zeros(70, int))
    altered = np.stack([np.asarray(image, float) for image, _ in Synthetic(images)])
    assert (np.abs(altered - x).mean((1, 2)) > 0.15 * x.std((1, 2))).all()
