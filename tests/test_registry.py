"""Plugins are found in the folder, in packages and in files; clashes and broken files are clear and contained."""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass
from pathlib import Path

import pytest

from howsure import Logits, Method, UserError, register
from howsure.plugins import BACKBONES, DATASETS, METHODS
from howsure.registry import Registry, import_file

SOURCE = """
from dataclasses import dataclass
from howsure import Logits, Method

@dataclass(frozen=True)
class Mine(Method):
    "Mine."
    needs = (Logits(),)
    def score(self, reps):
        return -reps[Logits()].amax(1)
"""


@pytest.fixture
def registry() -> Registry[Method]:
    return Registry("method", Method, "methods")


def test_every_plugin_of_the_checkout_is_found_and_none_is_broken():
    folder = Path(__file__).parent.parent / "methods"
    stems = {f.stem for f in folder.glob("*.py") if not f.stem.startswith("_")}
    assert stems <= set(METHODS)
    for registry in (METHODS, DATASETS, BACKBONES):
        assert len(registry) > 0
        assert registry.broken == {}


def test_a_file_is_named_by_its_stem(registry, tmp_path):
    (tmp_path / "my_score.py").write_text(SOURCE)
    assert registry.add_module(import_file(tmp_path / "my_score.py")) == ["my_score"]
    assert registry["my_score"]().needs == (Logits(),)


def test_a_broken_file_names_file_and_line(tmp_path):
    (tmp_path / "bad.py").write_text("x = 1\ny = 1 / 0\n")
    with pytest.raises(UserError, match=r"bad\.py:2: ZeroDivisionError"):
        import_file(tmp_path / "bad.py")
    (tmp_path / "worse.py").write_text("def f(:\n")
    with pytest.raises(UserError, match=r"worse\.py:1: SyntaxError"):
        import_file(tmp_path / "worse.py")


@pytest.mark.parametrize("error", ["RuntimeError", "SystemExit"])
def test_a_broken_package_does_not_take_the_rest_down(error, registry, tmp_path, monkeypatch):
    (tmp_path / "third_party_broken.py").write_text(f"import torch\n\nraise {error}('no licence')\n")
    (tmp_path / "third_party_fine.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    points = [
        importlib.metadata.EntryPoint("broken_one", "third_party_broken:Mine", "howsure.methods"),
        importlib.metadata.EntryPoint("fine_one", "third_party_fine:Mine", "howsure.methods"),
    ]
    monkeypatch.setattr("howsure.registry.entry_points", lambda group: points)
    assert "fine_one" in registry
    assert "msp" in registry
    with pytest.raises(UserError, match=rf"third_party_broken\.py:3: {error}: no licence"):
        registry["broken_one"]


def test_a_name_clash_names_both_places(registry, tmp_path):
    (tmp_path / "msp.py").write_text(SOURCE)
    assert "msp" in registry
    with pytest.raises(UserError, match=r"two methods are called 'msp': .*methods/msp\.py:\d+ and .*/msp\.py:\d+"):
        registry.add_module(import_file(tmp_path / "msp.py"))


def test_an_unknown_name_gets_the_nearest(registry):
    with pytest.raises(UserError, match=r"unknown method 'energi'; did you mean .*energy"):
        registry["energi"]


def test_register_keeps_the_class():
    @register
    @dataclass(frozen=True)
    class Notebook(Method):
        """From a notebook."""

        name = "from_a_notebook"
        needs = (Logits(),)

    try:
        assert METHODS["from_a_notebook"] is Notebook
    finally:
        del METHODS._classes["from_a_notebook"]


def test_a_plugin_file_named_like_what_ships_is_an_error_before_anything_was_found(tmp_path: Path) -> None:
    (tmp_path / "msp.py").write_text(
        "from howsure import Logits, Method\n\n\nclass MSP(Method):\n    needs = (Logits(),)\n"
    )
    registry = Registry("method", Method, "methods")
    with pytest.raises(UserError, match=r"two methods are called 'msp': .*methods/msp\.py.* and .*rename one"):
        registry.add_module(import_file(tmp_path / "msp.py"))
