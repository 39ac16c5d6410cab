"""The command line: every mistake of a user's is exit status 2 and one line that says what to do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from howsure.cli import main
from howsure.plugins import METHODS

SUITE = """
id = {{ train = "{train}", test = "{test}" }}
methods = ["msp"]
[[backbone]]
name = "net"
use = "{use}"
{more}
[[shift]]
data = "{shift}"
"""
GOOD = {"train": "digits", "test": "digits", "use": "small-cnn", "more": "", "shift": "noise"}


def stop(*arguments: object) -> int:
    with pytest.raises(SystemExit) as error:
        main([str(a) for a in arguments])
    return int(error.value.code or 0)


@pytest.fixture
def suite(tmp_path):
    def write(**changes: str) -> Path:
        path = tmp_path / "mine.toml"
        path.write_text(SUITE.format(**{**GOOD, **changes}))
        return path

    return write


@pytest.fixture
def folder(tmp_path):
    for i in range(3):
        (tmp_path / "images" / "a").mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8), 40 * i, np.uint8)).save(tmp_path / "images" / "a" / f"{i}.png")
    return tmp_path / "images"


def test_python_m_howsure_is_the_same():
    done = subprocess.run([sys.executable, "-m", "howsure", "--version"], capture_output=True, text=True)
    assert done.returncode == 0
    assert "0.1.0" in done.stdout


@pytest.mark.parametrize("kind", ["methods", "datasets", "backbones", "suites"])
def test_lists(kind, capsys):
    assert stop("list", kind) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) >= 3
    if kind == "methods":
        assert len(lines) == len(METHODS)
        assert any(line.startswith("energy ") and "arXiv:2010.03759" in line and "Logits" in line for line in lines)


def test_list_with_a_plugin(tmp_path, capsys):
    assert stop("new", "method", "brand_new", "--into", tmp_path) == 0
    try:
        assert stop("list", "methods", "--plugin", tmp_path / "brand_new.py") == 0
        assert "brand_new" in capsys.readouterr().out
        assert stop("check", "--plugin", tmp_path / "brand_new.py") == 0
        assert "1 method checked, 0 problems" in capsys.readouterr().out
    finally:
        METHODS._classes.pop("brand_new", None)


def test_check_by_name(capsys):
    assert stop("check", "msp") == 0
    assert "ignores_order" in capsys.readouterr().out


def test_data_status(capsys):
    assert stop("data", "status") == 0
    out = capsys.readouterr().out
    assert "data root:" in out
    assert any(line.split() == ["digits", "ready"] for line in out.splitlines())


MISTAKES = {
    "unknown method": (["run", "digits", "--methods", "energi"], "unknown method 'energi'; did you mean"),
    "unknown suite": (["run", "digit"], "unknown suite 'digit'; did you mean digits"),
    "unknown backbone of the suite": (["run", "digits", "--backbones", "vti"], "did you mean vit"),
    "unknown kind": (["list", "method"], "method"),
    "unknown command": (["rnu"], "rnu"),
    "unknown device": (["run", "digits", "--device", "tpux"], "unknown device 'tpux'"),
    "no results": (["table", "."], "no results.csv"),
    "no such plugin": (["list", "methods", "--plugin", "nowhere.py"], "nowhere.py: no such plugin file"),
    "unknown method to check": (["check", "energi"], "did you mean"),
    "unknown data set": (["data", "fetch", "cifar11"], "did you mean cifar10"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_status_two(mistake, capsys, tmp_path, monkeypatch):
    arguments, message = MISTAKES[mistake]
    monkeypatch.chdir(tmp_path)
    assert stop(*arguments) == 2
    err = capsys.readouterr().err
    assert message in err
    assert len(err.strip().splitlines()) == 1


SUITE_MISTAKES = {
    "unknown data set": ({"shift": "nois"}, "did you mean noise"),
    "missing folder of images": ({"test": "imagefolder:nowhere"}, "nowhere"),
    "missing array": ({"test": "npz:nowhere.npz"}, "nowhere.npz"),
    "unknown network": ({"use": "small-cnm"}, "did you mean small-cnn"),
    "unknown timm network": ({"use": "timm/resnet19"}, "resnet1"),
    "missing network file": ({"use": "nets.py:build"}, "nets.py"),
    "missing checkpoint": ({"more": 'checkpoint = "w.pt"'}, "w.pt"),
}


@pytest.mark.parametrize("mistake", SUITE_MISTAKES)
def test_a_mistake_in_a_suite_is_one_line_and_status_two(mistake, suite, capsys, tmp_path):
    changes, message = SUITE_MISTAKES[mistake]
    assert stop("run", suite(**changes), "--out", tmp_path / "out") == 2
    err = capsys.readouterr().err
    assert message in err
    assert len(err.strip().splitlines()) == 1


def test_a_truncated_image(suite, folder, capsys, tmp_path):
    file = folder / "a" / "1.png"
    file.write_bytes(file.read_bytes()[:40])
    assert stop("run", suite(shift=f"imagefolder:{folder}"), "--out", tmp_path / "out") == 2
    err = capsys.readouterr().err
    assert "1.png" in err
    assert len(err.strip().splitlines()) == 1


def test_an_empty_folder(suite, capsys, tmp_path):
    (tmp_path / "empty").mkdir()
    assert stop("run", suite(shift=f"imagefolder:{tmp_path / 'empty'}"), "--out", tmp_path / "out") == 2
    assert "no image" in capsys.readouterr().err


def test_an_unwritable_folder(suite, capsys, tmp_path):
    (tmp_path / "file").write_text("")
    assert stop("run", suite(), "--out", tmp_path / "file" / "out") == 2
    assert "cannot write there" in capsys.readouterr().err


def test_a_checkpoint_that_does_not_fit(suite, capsys, tmp_path):
    import torch

    torch.save({"stage1.0.weight": torch.zeros(3)}, tmp_path / "w.pt")
    assert stop("run", suite(more='checkpoint = "w.pt"'), "--out", tmp_path / "out") == 2
    err = capsys.readouterr().err
    assert "w.pt" in err
    assert len(err.strip().splitlines()) == 1


@pytest.mark.parametrize("arguments", [[], ["data"], ["new"]])
def test_no_arguments_show_the_help_as_it_is(arguments, capsys):
    assert stop(*arguments) == 2
    assert len(capsys.readouterr().err.splitlines()) > 3


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--size", "16,16"], "give mean, std"),
        (["--mean", "a,b"], "give numbers"),
        (["--out", "no/where.csv"], "there is no folder no"),
    ],
)
def test_score_says_what_is_wrong_before_it_works(folder, tmp_path, capsys, arguments, says):
    (tmp_path / "net.py").write_text("from torch import nn\n\ndef make():\n    return nn.Flatten()\n")
    use = f"{tmp_path / 'net.py'}:make"
    assert stop("score", "--backbone", use, "--method", "msp", "--train", "digits", folder, *arguments) == 2
    assert says in capsys.readouterr().err


def test_score_a_network_of_a_file_that_imports_its_neighbour(folder, tmp_path, capsys):
    (tmp_path / "beside_it.py").write_text(
        "from torch import nn\n\ndef build():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8))\n"
    )
    (tmp_path / "net_of_two.py").write_text("from beside_it import build\n")
    use, inputs = f"{tmp_path / 'net_of_two.py'}:build", ["--mean", "0.5", "--std", "0.5", "--size", "8,8"]
    assert stop("score", "--backbone", use, "--method", "msp", "--train", "digits", folder, *inputs) == 0
    assert len(capsys.readouterr().out.splitlines()) == 4


def test_score_a_folder(folder, tmp_path, capsys):
    arguments = ["score", "--backbone", "small-cnn", "--method", "energy", "--train", "digits", folder]
    assert stop(*arguments, "--out", tmp_path / "scores.csv") == 0
    lines = (tmp_path / "scores.csv").read_text().splitlines()
    assert lines[0] == "file,class,score,percentile"
    assert len(lines) == 4
    assert stop("score", "--backbone", "small-cnn", "--method", "confound_detector", "--train", "digits", folder) == 2
