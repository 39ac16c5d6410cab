"""The suites to choose methods on: alterations keep the kind of image, classes stay apart, suite files load."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from howsure.registry import import_file
from howsure.suite import load_suite

MAKE = import_file(Path(__file__).parents[1] / "benchmarks" / "validation" / "make.py")


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
