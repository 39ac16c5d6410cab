"""The suites to choose methods on: alterations keep the kind of image, classes stay apart, suite files load."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from howsure.registry import import_file
from howsure.suite import load_suite

HERE = Path(__file__).parents[1] / "benchmarks" / "validation"
MAKE = import_file(HERE / "make.py")


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_alterations_keep_size_and_mode(mode: str) -> None:
    shape = (16, 16, 3) if mode == "RGB" else (16, 16)
    images = [Image.fromarray(np.random.default_rng(i).integers(0, 256, shape, dtype=np.uint8)) for i in range(4)]
    changes = dict(MAKE.changes(images))
    assert len(changes) == {"L": 22, "RGB": 26}[mode]
    for name, change in changes.items():
        once, again = (np.stack([np.asarray(change(im, np.random.default_rng(0))) for im in images]) for _ in range(2))
        assert once.shape == (4, *shape), name
        assert once.dtype == np.uint8, name
        assert np.array_equal(once, again), name
        assert not np.array_equal(once, np.stack([np.asarray(im) for im in images])), name


def test_held_back_classes_are_near_and_nowhere_else(tmp_path: Path) -> None:
    study = MAKE.Study("digits", (1, 6), ("small-cnn",))
    sets = MAKE.images_of(study, tmp_path)
    rows = {name: {picture.tobytes() for picture in x} for name, (x, _) in sets.items()}
    assert not rows["train"] & rows["test"]
    assert not rows["near"] & (rows["train"] | rows["test"])
    assert set(sets["train"][1]) == set(range(6))
    assert len(sets["near"][0]) == 218


def test_suite_files_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MAKE, "STUDIES", {"digits-a": MAKE.STUDIES["digits-a"]})
    MAKE.main(tmp_path)
    suite = load_suite(str(tmp_path / "digits-a.toml"))
    assert [backbone.name for backbone in suite.backbone] == [f"digits-a.small-{k}" for k in ("cnn", "resnet", "vit")]
    assert [shift.group for shift in suite.shift].count("near") == 1


def test_families_make_networks_glyphs_and_suites(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(HERE))
    families, networks = (import_file(HERE / name) for name in ("families.py", "family_networks.py"))
    x, y = families.glyphs(families.KNOWN, 20, seed=0)
    assert x.shape == (20, 32, 32)
    assert np.ptp(x, (1, 2)).min() > 50
    assert np.array_equal(x, families.glyphs(families.KNOWN, 20, seed=0)[0])
    assert len(set(y)) > 10
    (tmp_path / "glyphs.toml").write_text(families.toml("glyphs", ["near", "photos"]))
    suite = load_suite(str(tmp_path / "glyphs.toml"))
    assert [shift.group for shift in suite.shift] == ["near", "far"]
    kinds = {kind.name: kind for kind in vars(networks).values() if isinstance(kind, type) and hasattr(kind, "name")}
    assert {use for uses in families.NETWORKS.values() for use in uses} == set(kinds)
    for kind in kinds.values():
        assert kind().build(3).eval()(torch.zeros(2, 3, 32, 32)).shape == (2, 3)
