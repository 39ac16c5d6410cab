"""The command line: every mistake of a user's is exit status 2 and one line that says what to do."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from howsure import ArrayImages, Logits, cli
from howsure.answer import _divided, score_folder
from howsure.cli import main
from howsure.plugins import BACKBONES, DATASETS, METHODS

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


def test_a_shell_is_told_how_to_complete(monkeypatch, capsys):
    monkeypatch.setenv("_HOWSURE_COMPLETE", "zsh_source")
    assert stop() == 0
    assert "#compdef howsure" in capsys.readouterr().out


def test_a_reader_that_has_seen_enough_is_no_failure():
    with subprocess.Popen([sys.executable, "-m", "howsure", "list", "suites"], stdout=-1, stderr=-1, text=True) as call:
        call.stdout.close()
        assert call.stderr.read() == ""
    assert call.returncode == 0


@pytest.mark.parametrize("kind", ["methods", "datasets", "backbones", "suites"])
def test_lists(kind, capsys):
    assert stop("list", kind) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) >= 3
    if kind == "methods":
        assert len(lines) == len(METHODS)
        assert any(line.startswith("energy ") and "arXiv:2010.03759" in line and "Logits" in line for line in lines)


def test_a_new_method_twice_in_the_folder_that_python_imports_from(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(tmp_path)
    assert stop("new", "method", "brand_newer", "--into", tmp_path) == 0
    assert stop("new", "method", "brand_newer", "--into", tmp_path) == 2
    assert "brand_newer.py exists; move it or choose another name" in capsys.readouterr().err


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
    "device without a way": (["run", "digits", "--device", "mps"], "unknown device 'mps'; use auto, cpu"),
    "device without data": (["run", "digits", "--device", "meta"], "unknown device 'meta'"),
    "a library's name": (["new", "method", "torch"], "'torch' is a Python module, which the new file would hide"),
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
    "missing shift": ({"shift": "imagefolder:nowhere"}, "nowhere: no such folder"),
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
    file = suite(shift=f"imagefolder:{folder}")
    file.write_text(f"seeds = [0, 1]\n{file.read_text()}")
    assert stop("run", file, "--out", tmp_path / "out") == 1
    out, err = capsys.readouterr()
    assert "howsure: shift 'images' left out" in err
    assert [line for line in err.splitlines() if "failed" in line and "1.png: not a readable image" in line]
    assert "misclassification" in out
    rows = pd.read_csv(tmp_path / "out" / "results.csv")
    assert set(rows["task"]) == {"misclassification"}
    assert set(rows["seed"]) == {0, 1}


def test_a_truncated_image_of_the_test_set_ends_the_run(suite, folder, capsys, tmp_path):
    (folder / "a").rename(folder / "0")
    file = folder / "0" / "1.png"
    file.write_bytes(file.read_bytes()[:40])
    assert stop("run", suite(test=f"imagefolder:{folder}"), "--out", tmp_path / "out") == 2
    err = capsys.readouterr().err
    assert "1.png: not a readable image" in err
    assert "left out" not in err


def test_an_empty_folder(suite, capsys, tmp_path):
    (tmp_path / "empty").mkdir()
    assert stop("run", suite(shift=f"imagefolder:{tmp_path / 'empty'}"), "--out", tmp_path / "out") == 2
    assert "no image" in capsys.readouterr().err


NET = "from torch import nn\n\ndef make():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8))\n"


@pytest.mark.parametrize("taken", ["file", "out/cells", "out/scores", "out/tables", "out/plots"])
def test_an_unwritable_folder(suite, capsys, tmp_path, taken):
    (tmp_path / "net.py").write_text(NET)
    (tmp_path / taken).parent.mkdir(exist_ok=True)
    (tmp_path / taken).write_text("")
    inputs = "mean = [0.5]\nstd = [0.25]\nsize = [8, 8]"
    out = tmp_path / ("file/out" if taken == "file" else "out")
    assert stop("run", suite(use="net.py:make", more=inputs), "--out", out) == 2
    assert f"{tmp_path / taken}" in (err := capsys.readouterr().err)
    assert "cannot write there" in err.splitlines()[-1]
    assert all("hardly above chance" in line for line in err.splitlines()[:-1])  # it is not trained


def test_a_network_that_guesses_is_told(suite, capsys, tmp_path):
    (tmp_path / "net.py").write_text(NET)
    inputs = "mean = [0.5]\nstd = [0.25]\nsize = [8, 8]"
    assert stop("run", suite(use="net.py:make", more=inputs), "--out", tmp_path / "out") == 0
    assert "howsure: net: accuracy" in (err := capsys.readouterr().err)
    assert "hardly above chance" in err


@pytest.mark.parametrize(
    ("error", "status", "says"),
    [
        (OSError(28, "No space left on device", "/some/file"), 2, "/some/file: No space left on device"),
        (OSError("no\nroute"), 2, "no route"),
        (ValueError("two\nlines"), 1, "ValueError: two lines; a fault in howsure or in a plugin"),
    ],
)
def test_what_nobody_foresaw_is_one_line(error, status, says, capsys, monkeypatch):
    def fail(name):
        raise error

    monkeypatch.setattr(cli, "load_suite", fail)
    monkeypatch.delenv("HOWSURE_DEBUG", raising=False)
    assert stop("run", "digits") == status
    err = capsys.readouterr().err
    assert says in err
    assert len(err.splitlines()) == 1
    monkeypatch.setenv("HOWSURE_DEBUG", "1")
    with pytest.raises(type(error)):
        main(["run", "digits"])


@pytest.fixture
def plugins(monkeypatch):
    """Registries that forget what a test adds."""
    for registry in (METHODS, DATASETS, BACKBONES):
        len(registry)
        monkeypatch.setattr(registry, "_classes", dict(registry._classes))


PLUGINS = {
    "a method that lacks a value": (
        "from dataclasses import dataclass\nfrom howsure import Method\n\n@dataclass(frozen=True)\n"
        "class Needy(Method):\n    width: int\n",
        ["list", "methods"], 1, "broken plugin: method '{}': ",
    ),
    "a backbone without input": (
        "from howsure import Backbone\n\nclass Net(Backbone):\n    pass\n",
        ["list", "backbones"], 1, "broken plugin: backbone '{}': ",
    ),
    "no dataclass": (
        "from howsure import Method\n\nclass Bare(Method):\n    pass\n",
        ["run", "digits", "--methods", "{}"], 2, "method {}: Bare is not a dataclass; decorate it with @dataclass",
    ),
    "needs that are no tuple": (
        "from dataclasses import dataclass\nfrom howsure import Logits, Method\n\n@dataclass(frozen=True)\n"
        "class One(Method):\n    needs = Logits()\n    def score(self, reps):\n        return reps[Logits()][:, 0]\n",
        ["run", "digits", "--methods", "{}"], 2, "method {}: needs is a Logits, but must be a tuple",
    ),
    "no method": (
        "from howsure import Dataset\n\nclass Data(Dataset):\n    pass\n", ["check"], 2, "{}.py: contains no method",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", PLUGINS)
def test_a_plugin_that_does_not_serve(kind, plugins, tmp_path, capsys):
    code, arguments, status, says = PLUGINS[kind]
    name = f"plugin_{list(PLUGINS).index(kind)}"
    (tmp_path / f"{name}.py").write_text(code)
    assert stop(*(part.format(name) for part in arguments), "--plugin", tmp_path / f"{name}.py") == status
    err = capsys.readouterr().err
    assert says.format(name) in err
    assert len(err.splitlines()) == 1


def test_a_data_root_that_may_not_be_read_hides_no_other_data(capsys, monkeypatch):
    def missing(self):
        raise PermissionError(13, "Permission denied", "/root/data")

    monkeypatch.setattr(DATASETS["cifar10"], "missing", missing)
    assert stop("data", "status", "cifar10", "digits") == 0
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    assert lines[1:] == [["cifar10", "missing: /root/data: Permission denied"], ["digits", "ready"]]


def test_what_comes_with_the_package_is_ready_when_it_is_fetched(capsys):
    assert stop("data", "fetch", "digits") == 0
    assert capsys.readouterr().out == "digits: ready\n"


def test_a_place_for_scores_that_may_not_be_written_is_refused_before_the_work(folder, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    arguments = ["--backbone", "small-cnn", "--method", "msp", "--train", "digits", folder]
    assert stop("score", *arguments, "--out", tmp_path / "scores.csv") == 2
    assert "scores.csv: cannot write there" in capsys.readouterr().err


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
    shutil.copy(folder / "a" / "0.png", folder / "beside.png")
    arguments = ["score", "--backbone", "small-cnn", "--method", "energy", "--train", "digits", folder]
    assert stop(*arguments, "--out", tmp_path / "scores.csv") == 0
    lines = (tmp_path / "scores.csv").read_text().splitlines()
    assert lines[0] == "file,class,score,percentile"
    files = sorted(str(Path(line.split(",")[0]).relative_to(folder)) for line in lines[1:])
    assert files == ["a/0.png", "a/1.png", "a/2.png", "beside.png"], "also beside folders: no class is asked for"
    assert stop("score", "--backbone", "small-cnn", "--method", "confound_detector", "--train", "digits", folder) == 2


@pytest.mark.parametrize(("images", "sizes"), [(4, (4, 4)), (11, (9, 2))])
def test_percentiles_are_of_images_that_a_method_is_not_fitted_on(images, sizes):
    known = ArrayImages(np.zeros((images, 2, 2), np.uint8), np.arange(images))
    fitted, apart = _divided(known)
    assert (len(fitted), len(apart)) == sizes
    assert images < 5 or {*fitted.y, *apart.y} == set(range(images))


@pytest.mark.parametrize("to_file", [False, True])
def test_score_files_with_names_of_another_encoding(folder, tmp_path, capfdbinary, to_file):
    name = os.fsdecode(b"caf\xe9.png")
    (folder / "a" / "0.png").rename(folder / "a" / name)
    out = tmp_path / "scores.csv"
    options = ["--backbone", "small-cnn", "--method", "msp", "--train", "digits", *(["--out", str(out)] * to_file)]
    assert stop("score", *options, str(folder)) == 0
    assert b"caf\xe9.png" in (out.read_bytes() if to_file else capfdbinary.readouterr().out)


@pytest.mark.parametrize(
    ("method", "apart", "fitted"), [("klm", True, 20), ("klm", False, 80), ("mahalanobis", True, 80)]
)
def test_score_fits_on_held_out_images_where_the_method_asks_for_some(tmp_path, monkeypatch, method, apart, fitted):
    net, seen, fit = tmp_path / "flat2.py", [], METHODS[method].fit
    net.write_text("from torch import nn\n\ndef build():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 2))\n")
    for split, images in (("train", 100), ("val", 20)) if apart else (("", 100),):
        for i, image in enumerate(np.random.default_rng(0).integers(0, 256, (images, 8, 8), dtype=np.uint8)):
            file = tmp_path / "data" / split / str(i % 2) / f"{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(file)
    monkeypatch.setattr(
        METHODS[method], "fit", lambda self, train: seen.append(len(train[Logits()])) or fit(self, train)
    )
    monkeypatch.setattr(METHODS[method], "needs", (*METHODS[method].needs, Logits()))
    data, inputs = tmp_path / "data", {"mean": [0.5], "std": [0.25], "size": [8, 8]}
    score_folder(f"{net}:build", method, f"imagefolder:{data}", data, None, torch.device("cpu"), inputs)
    assert seen == [fitted]


def test_score_tells_of_a_network_that_guesses(tmp_path, capsys):
    net, rng = tmp_path / "net3.py", np.random.default_rng(0)
    net.write_text(
        "from torch import nn\n\ndef build():\n    last = nn.Linear(64, 8)\n    nn.init.zeros_(last.weight)\n"
        "    return nn.Sequential(nn.Flatten(), last)\n"
    )
    np.savez(tmp_path / "train.npz", x=rng.integers(0, 256, (400, 8, 8), dtype=np.uint8), y=np.arange(400) % 8)
    (tmp_path / "images").mkdir()
    Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(tmp_path / "images" / "one.png")
    train, place = f"npz:{tmp_path / 'train.npz'}", tmp_path / "images"
    inputs = {"mean": [0.5], "std": [0.25], "size": [8, 8]}
    score_folder(f"{net}:build", "msp", train, place, None, torch.device("cpu"), inputs)
    assert "howsure: network: accuracy" in (err := capsys.readouterr().err)
    assert "hardly above chance" in err


def test_a_percentile_says_how_many_usual_images_score_lower(tmp_path):
    """A distance fitted on as many images as features: those that it was fitted on all lie alike."""
    net, rng = tmp_path / "flat.py", np.random.default_rng(0)
    net.write_text("from torch import nn\n\ndef build():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 2))\n")
    images = rng.integers(0, 256, (180, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "train.npz", x=images[:120], y=np.arange(120) % 2)
    for i, image in enumerate(images[120:]):
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.fromarray(image).save(tmp_path / "images" / f"{i}.png")
    inputs = {"mean": [0.5], "std": [0.25], "size": [8, 8]}
    train, place = f"npz:{tmp_path / 'train.npz'}", tmp_path / "images"
    table = score_folder(f"{net}:build", "mahalanobis", train, place, None, torch.device("cpu"), inputs)
    assert 25 < table["percentile"].median() < 75
