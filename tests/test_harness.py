"""A whole run on a small grid: the tidy results, what is kept, what is redone, and what each protocol may see."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import warnings
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from safetensors.torch import load_file, save_file
from sklearn.metrics import roc_auc_score

from howsure import ArrayImages, Logits, Method, Representation, UserError
from howsure.check import split as made_up
from howsure.cli import main
from howsure.harness import Run
from howsure.material import Material
from howsure.plugins import DATASETS, METHODS
from howsure.protocol import TEST, parts, seen_outliers
from howsure.record import suite_from
from howsure.representations import ActivationNorms, ImageIds
from howsure.results import RESULT_COLUMNS, TIMING_COLUMNS, Cell, CellName, RunFolder, read_scores
from howsure.sources import Npz
from howsure.suite import load_suite
from howsure.timing import peak_memory

SUITE = """
id = {{ train = "npz:train.npz", test = "npz:known.npz" }}
methods = {methods}
protocols = {protocols}

[[backbone]]
name = "tiny"
use = "net.py:build"
mean = [0.5, 0.5, 0.5]
std = [0.25, 0.25, 0.25]
size = [16, 16]
checkpoint = "weights.safetensors"

[[shift]]
data = "npz:outliers.npz"
group = "far"

[[shift]]
data = "npz:inverted.npz"
group = "near"

[corruptions]
types = ["gaussian_noise", "contrast"]
severities = [1, 5]
"""

NET = """
import howsure.check

def build(num_classes):
    return howsure.check._conv_net()

def mixing(num_classes):
    net = build(num_classes)
    net.register_forward_hook(lambda layer, inputs, logits: logits - logits.mean(0))
    net.pretrained_cfg = {"input_size": (3, 16, 16), "mean": (0.5,) * 3, "std": (0.25,) * 3}
    return net
"""

METHODS_USED = ["msp", "energy", "knn", "gen", "confound", "confound_detector"]
PROTOCOLS = ["none", "same-shift", "leave-one-out", "pseudo-unknown", "synthetic"]


@pytest.fixture(scope="module")
def material(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("material")
    from howsure.check import networks

    save_file(networks()[0].model.state_dict(), folder / "weights.safetensors")
    (folder / "net.py").write_text(NET)
    for name in ("train", "known", "outliers"):
        images = made_up(name).images
        np.savez(folder / f"{name}.npz", x=images.x, y=images.y)
    np.savez(folder / "inverted.npz", x=255 - made_up("test").images.x, y=np.zeros(24, int))
    return folder


def write_suite(material: Path, name: str, methods=METHODS_USED, protocols=PROTOCOLS, extra: str = "") -> str:
    path = material / f"{name}.toml"
    path.write_text(SUITE.format(methods=json.dumps(methods), protocols=json.dumps(protocols)) + extra)
    return str(path)


def told(capsys) -> list[str]:
    """The lines on standard error, without that of a network that is not trained, which guesses now and then."""
    return [line for line in capsys.readouterr().err.splitlines() if "hardly above chance" not in line]


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in arguments])
    return int(stop.value.code or 0)


@pytest.fixture(scope="module")
def finished(material, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("run")
    assert run("run", write_suite(material, "grid"), "--out", out) == 0
    return out


@pytest.fixture(scope="module")
def results(finished) -> pd.DataFrame:
    return pd.read_csv(finished / "results.csv")


def test_the_folder_holds_all_it_should(finished):
    assert {"results.csv", "results.parquet", "timing.csv", "run.json", "scores", "tables", "plots"} <= {
        path.name for path in finished.iterdir()
    }
    for suffix in ("md", "tex", "csv"):
        assert list((finished / "tables").glob(f"*.{suffix}"))
    for suffix in ("png", "svg"):
        assert list((finished / "plots").glob(f"*.{suffix}"))


def test_results_are_tidy(results, finished):
    assert list(results) == RESULT_COLUMNS
    assert set(results["protocol"]) == set(PROTOCOLS)
    assert set(results["task"]) == {"ood", "corruption", "misclassification"}
    keys = ["backbone", "seed", "task", "shift", "severity", "method", "protocol", "metric"]
    assert not results.duplicated(keys).any()
    assert results.loc[results["metric"] != "aurc", "value"].dropna().between(-1e-9, 1 + 1e-9).all()
    known = results.dropna(subset=["ci_low", "ci_high"], how="all")
    assert (known["ci_low"] < known["ci_high"]).all()
    auroc = known[known["metric"] == "auroc"]
    assert results.loc[(results["metric"] == "auroc") & results["value"].between(0.01, 0.99), "ci_low"].notna().all()
    assert auroc["value"].between(auroc["ci_low"] - 1e-9, auroc["ci_high"] + 1e-9).all()
    corrupted = results["task"] == "corruption"
    assert results.loc[~corrupted, "severity"].isna().all()
    assert set(results.loc[corrupted, "severity"]) == {1, 5}
    parquet = pd.read_parquet(finished / "results.parquet")
    assert len(parquet) == len(results)


def test_every_row_says_what_the_method_saw(results):
    seen = results.groupby(["method", "protocol"])["supervision"].agg(set)
    assert seen["msp", "none"] == {"none"}
    assert seen["knn", "none"] == {"id-train"}
    assert seen["gen", "same-shift"] == {"none+tuned"}
    assert seen["confound_detector", "same-shift"] == {"outliers"}
    assert ("confound_detector", "none") not in seen


def test_rows_of_one_protocol_compare(results):
    sizes = results[results["task"] != "misclassification"].groupby(["protocol", "shift", "severity"], dropna=False)
    assert (sizes[["n_id", "n_shift"]].nunique() == 1).all().all()
    none = results[(results["protocol"] == "none") & (results["task"] == "ood")]
    assert set(none["n_id"]) == {len(made_up("known"))}


def test_values_are_those_of_the_stored_scores(results, finished):
    rows = results[(results["metric"] == "auroc") & (results["task"] != "misclassification")]
    for row in rows.itertuples():
        scores = read_scores(finished, CellName(row.backbone, row.seed, row.protocol, row.method))
        name = row.shift if np.isnan(row.severity) else f"{row.shift}@{int(row.severity)}"
        inside, outside = scores[name]
        truth = np.r_[np.zeros(len(inside)), np.ones(len(outside))]
        assert roc_auc_score(truth, np.r_[inside, outside]) == pytest.approx(row.value, abs=1e-6)


def test_scores_under_a_protocol_are_those_of_its_test_part(finished):
    everything = read_scores(finished, CellName("tiny", 0, "none", "msp"))["outliers"]
    left = read_scores(finished, CellName("tiny", 0, "same-shift", "msp"))["outliers"]
    for whole, part in zip(everything, left, strict=True):
        assert set(part) <= set(whole)
        assert 0 < len(part) < len(whole)


def test_the_run_says_what_it_was(finished):
    record = json.loads((finished / "run.json").read_text())
    assert {cell["state"] for cell in record["cells"]} == {"done"}
    network = record["networks"][0]
    assert network["splits"]["train"] == len(made_up("train"))
    results = pd.read_csv(finished / "results.csv")
    tested = results[(results["protocol"] == "same-shift") & (results["shift"] == "outliers")].iloc[0]
    assert [network["parts"][split][2] for split in ("test", "outliers")] == [tested["n_id"], tested["n_shift"]]
    assert {name: sum(sizes) for name, sizes in network["parts"].items()}.items() <= network["splits"].items()
    assert torch.__version__.startswith(record["versions"]["torch"])
    chosen = [c["chosen"] for c in record["cells"] if c["method"] == "gen" and c["protocol"] == "same-shift"]
    assert set(chosen[0]["outliers"]) == {"gamma", "m"}


def test_timing_has_a_row_a_method(finished):
    timing = pd.read_csv(finished / "timing.csv")
    assert list(timing) == TIMING_COLUMNS
    assert set(timing["method"]) == set(METHODS_USED)
    assert (timing["ms_per_image"] > 0).all()
    assert (timing["peak_mb"] > 0).all()


def test_peak_memory_counts_what_tensors_hold_at_once():
    def work() -> None:
        first = torch.empty(1000, dtype=torch.uint8)
        del first
        second, third = torch.empty(5000, dtype=torch.uint8), torch.empty(2000, dtype=torch.uint8)
        del second
        torch.empty(4000, dtype=torch.uint8)
        del third

    assert [peak_memory(torch.device("cpu"), work) for _ in range(2)] == [7000, 7000]
    assert peak_memory(torch.device("cpu"), lambda: None) == 0


def test_a_second_run_gives_the_same_and_computes_nothing(finished, material, monkeypatch):
    before = (finished / "results.csv").read_text()
    monkeypatch.setattr("howsure.cells.Scorer.run", lambda *a: pytest.fail("a finished cell was run again"))
    assert run("run", material / "grid.toml", "--out", finished) == 0
    assert (finished / "results.csv").read_text() == before


def test_a_fresh_run_elsewhere_gives_the_same(finished, material, tmp_path, monkeypatch):
    monkeypatch.setenv("HOWSURE_CACHE", str(tmp_path / "cache"))
    assert run("run", material / "grid.toml", "--out", tmp_path / "again") == 0
    assert (tmp_path / "again" / "results.csv").read_text() == (finished / "results.csv").read_text()


def test_tables_and_plots_are_redrawn_without_a_network(finished, monkeypatch):
    monkeypatch.setattr("torch.nn.Module.__call__", lambda *a, **k: pytest.fail("a network was touched"))
    for file in [*(finished / "tables").iterdir(), *(finished / "plots").iterdir()]:
        file.unlink()
    assert run("table", finished) == 0
    assert run("plot", finished) == 0
    assert list((finished / "tables").glob("*.md"))
    assert list((finished / "plots").glob("*.png"))


@pytest.fixture
def plugin(request):
    @dataclass(frozen=True)
    class Plugin(Method):
        """Whatever a test wants."""

        needs = (Logits(),)

        def score(self, reps):
            return request.param(reps[Logits()])

    METHODS.add("plugin_of_a_test", Plugin)
    yield "plugin_of_a_test"
    del METHODS._classes["plugin_of_a_test"]


def _raise(logits):
    raise ZeroDivisionError("no")


@pytest.mark.parametrize(
    ("plugin", "why"),
    [
        (lambda z: z.amax(1) * torch.nan, "40 of 40 scores of 'test' are NaN or infinite"),
        (lambda z: z, "shape"),
        (_raise, "ZeroDivisionError: no"),
        (lambda z: sys.exit(3), "SystemExit: 3"),
    ],
    indirect=["plugin"],
)
def test_a_failing_method_fails_alone(plugin, why, material, tmp_path, capsys):
    suite = write_suite(material, "failing", ["msp", plugin], ["none"])
    assert run("run", suite, "--out", tmp_path) == 1
    assert why in capsys.readouterr().err
    record = json.loads((tmp_path / "run.json").read_text())
    assert {c["method"]: c["state"] for c in record["cells"]} == {"msp": "done", plugin: "failed"}
    assert set(pd.read_csv(tmp_path / "results.csv")["method"]) == {"msp"}


def test_a_network_without_gradients_of_single_images_is_scored_by_the_other_methods(material, tmp_path, capsys):
    suite = Path(write_suite(material, "mixing", ["msp", "gen", "confound", "confound_detector"], ["none"]))
    suite.write_text(suite.read_text().replace("net.py:build", "net.py:mixing"))
    assert run("run", suite, "--out", tmp_path) == 1
    lines = told(capsys)
    assert len(lines) == 4
    assert lines[0].endswith("no protocol here supplies outliers: confound_detector")
    assert "gives an image different logits in different batches" in lines[1]
    assert "howsure: tiny: no gradients of single images from 'tiny'" in lines[2]
    assert "failed: confound on tiny" in lines[3]
    assert "mixes the samples" in lines[3]
    record = json.loads((tmp_path / "run.json").read_text())
    assert {c["method"]: c["state"] for c in record["cells"]} == {"msp": "done", "gen": "done", "confound": "failed"}
    assert set(pd.read_csv(tmp_path / "timing.csv")["method"]) == {"msp", "gen"}


def test_score_says_that_a_network_has_no_gradients_of_single_images(material, tmp_path, capsys):
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(tmp_path / "one.png")
    options = {"backbone": material / "net.py:mixing", "checkpoint": material / "weights.safetensors"}
    options |= {"train": f"npz:{material / 'train.npz'}", "method": "confound"}
    assert run("score", *(x for key, value in options.items() for x in (f"--{key}", value)), tmp_path) == 2
    assert "no gradients of single images" in capsys.readouterr().err


@pytest.mark.parametrize("plugin", [lambda z: z.amax(1)], indirect=True)
@pytest.mark.parametrize("error", [ZeroDivisionError, SystemExit])
def test_a_representation_that_breaks_fails_its_own_cells_alone(plugin, error, material, tmp_path, monkeypatch, capsys):
    @dataclass(frozen=True)
    class Broken(Representation):
        def compute(self, batch):
            raise error("no such thing")

    monkeypatch.setattr(METHODS[plugin], "needs", (Broken(),))
    assert run("run", write_suite(material, "broken", ["msp", plugin], ["none"]), "--out", tmp_path) == 1
    assert "no such thing" in capsys.readouterr().err
    record = json.loads((tmp_path / "run.json").read_text())
    assert {c["method"]: c["state"] for c in record["cells"]} == {"msp": "done", plugin: "failed"}


def test_what_is_finished_survives_an_interruption(material, tmp_path, monkeypatch):
    def interrupt(self, protocol):
        raise KeyboardInterrupt

    suite = write_suite(material, "interrupted", ["msp", "energy"], ["none"])
    original = METHODS["energy"].score
    monkeypatch.setattr(METHODS["energy"], "score", interrupt)
    assert run("run", suite, "--out", tmp_path) == 130
    assert set(pd.read_csv(tmp_path / "results.csv")["method"]) == {"msp"}
    monkeypatch.setattr(METHODS["energy"], "score", original)
    assert run("run", suite, "--out", tmp_path) == 0
    assert set(pd.read_csv(tmp_path / "results.csv")["method"]) == {"msp", "energy"}


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_stop_leaves_results_of_what_is_finished(stop, material, tmp_path, monkeypatch):
    suite = write_suite(material, "stopped", ["msp", "energy"], ["none"])
    monkeypatch.setattr(METHODS["energy"], "score", lambda self, reps: os.kill(os.getpid(), stop))
    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in what a shell runs in the background
    try:
        assert run("run", suite, "--out", tmp_path) == 130
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
    assert set(pd.read_csv(tmp_path / "results.csv")["method"]) == {"msp"}


def test_what_a_killed_run_finished_is_not_replaced_by_another_suite(material, tmp_path, monkeypatch, capsys):
    def killed(self, reps):
        raise KeyboardInterrupt

    first, other = (write_suite(material, name, ["msp", "energy"], ["none"]) for name in ("killed", "next"))
    with monkeypatch.context() as patch:
        patch.setattr(METHODS["energy"], "score", killed)
        patch.setattr(RunFolder, "assemble", lambda self, run: None)
        assert run("run", first, "--out", tmp_path) == 130
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    assert run("run", other, "--out", tmp_path) == 2
    assert "has results of the suite 'killed'" in capsys.readouterr().err
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before


def test_no_record_stands_beside_scores_of_another_cell(tmp_path, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    folder, name = RunFolder(tmp_path), CellName("net", 0, "none", "msp")
    folder.write_cell(Cell(name, "done", "one"), {"id": np.zeros(3), "far": np.zeros(3)})
    with monkeypatch.context() as patch:
        patch.setattr("howsure.results._write_json", killed)
        with pytest.raises(KeyboardInterrupt):
            folder.write_cell(Cell(name, "done", "another"), {"id": np.ones(3), "far": np.ones(3)})
    assert folder.read_cell(name) is None
    folder.write_cell(Cell(name, "failed", "another"))
    assert read_scores(tmp_path, name) == {}


def test_code_that_is_edited_while_it_runs_is_not_taken_for_what_ran(material, tmp_path, monkeypatch):
    file, out = tmp_path / "edited.py", tmp_path / "out"
    text = (
        "from dataclasses import dataclass\nfrom howsure import Logits, Method\n\n"
        "@dataclass(frozen=True)\nclass Edited(Method):\n    needs = (Logits(),)\n\n"
        "    def score(self, reps):\n        return -reps[Logits()].amax(1)\n"
    )
    file.write_text(text)
    suite, found, extract = write_suite(material, "edited", ["edited"], ["none"]), [], Run._extract

    def edit(self, *arguments):
        file.write_text(text.replace("-reps", "reps"))
        return extract(self, *arguments)

    monkeypatch.setattr(Run, "_extract", edit)
    for _ in range(2):
        assert run("run", suite, "--out", out, "--plugin", file) == 0
        found.append(pd.read_csv(out / "results.csv").query("metric == 'auroc'")["value"])
        METHODS._classes.pop("edited", None)
        sys.modules.pop("howsure_plugins.edited")
    assert np.allclose(found[0], 1 - found[1])
    assert not np.allclose(found[0], found[1])


def test_a_missing_shift_is_named_and_the_rest_runs(material, tmp_path, capsys):
    extra = '\n[[shift]]\ndata = "svhn"\n'
    assert run("run", write_suite(material, "lacking", ["msp"], ["none"], extra), "--out", tmp_path) == 0
    assert "shift 'svhn' left out" in capsys.readouterr().err
    assert "svhn" in json.loads((tmp_path / "run.json").read_text())["missing"]
    assert "svhn" not in set(pd.read_csv(tmp_path / "results.csv")["shift"])


def test_a_shift_whose_data_set_breaks_is_a_failure_and_the_rest_runs(material, tmp_path, monkeypatch, capsys):
    def broken(self, split):
        raise ZeroDivisionError("a bug of the plugin")

    monkeypatch.setattr(DATASETS["svhn"], "split", broken)
    extra = '\n[[shift]]\ndata = "svhn"\n'
    assert run("run", write_suite(material, "breaking", ["msp"], ["none"], extra), "--out", tmp_path) == 1
    assert "failed: shift 'svhn': " in capsys.readouterr().err
    assert "svhn" not in set(pd.read_csv(tmp_path / "results.csv")["shift"])


def test_leave_one_out_never_fits_on_the_shift(material, tmp_path, monkeypatch):
    seen: dict[str, int] = {}
    cls = METHODS["confound_detector"]
    original = cls.fit

    def spy(self, train, outliers):
        seen["fits"] = seen.get("fits", 0) + 1
        return original(self, train, outliers)

    monkeypatch.setattr(cls, "fit", spy)
    suite = write_suite(material, "left", ["confound_detector"], ["leave-one-out"])
    assert run("run", suite, "--out", tmp_path) == 0
    assert seen["fits"] == 4 + 1, "one for each of two sets and two corruption types, and one to time"


def test_detectors_take_no_training_images_but_those_they_are_fitted_on(material, tmp_path, monkeypatch):
    passed: set[int] = set()
    fitted: set[tuple[float, ...]] = set()
    compute, fit = ActivationNorms.compute, METHODS["activation_norm_detector"].fit

    def note_images(self, batch):
        passed.update(batch.ids.tolist())
        return compute(self, batch)

    def note_rows(self, train, outliers):
        fitted.update(tuple(row) for reps in (train, outliers) for row in reps[ActivationNorms()].tolist())
        return fit(self, train, outliers)

    monkeypatch.setattr(ActivationNorms, "compute", note_images)
    monkeypatch.setattr(METHODS["activation_norm_detector"], "fit", note_rows)
    monkeypatch.setattr(Run, "_time", lambda *_: None)
    suite = write_suite(material, "made", ["msp", "activation_norm_detector"], ["pseudo-unknown", "synthetic"])
    assert run("run", suite, "--out", tmp_path) == 0
    tested = 40 + 40 + 24  # known, outliers, inverted; a corrupted image has the id of the clean one
    assert 20 < len(fitted) < 64
    assert len(passed) == tested + len(fitted)


def test_stored_test_parts_are_the_protocols(finished):
    """The number of scores under a protocol is that of the images whose hash falls into the test part."""
    files = sorted((finished / "scores" / "tiny" / "seed0" / "same-shift").glob("*.safetensors"))
    sizes = {f.stem: len(load_file(f)["outliers"]) for f in files}
    assert len(set(sizes.values())) == 1
    assert parts(torch.arange(3), 0).max() <= TEST


def test_a_run_without_any_shift_still_finds_misclassified_images(material, tmp_path):
    path = material / "shiftless.toml"
    text = SUITE[: SUITE.index("[[shift]]")] + '[[shift]]\ndata = "svhn"\n'
    path.write_text(text.format(methods='["msp", "confound_detector"]', protocols=json.dumps(PROTOCOLS)))
    assert run("run", path, "--out", tmp_path) == 0
    assert set(pd.read_csv(tmp_path / "results.csv")["task"]) == {"misclassification"}


def test_a_users_torch_data_set_is_enough(material, tmp_path):
    (tmp_path / "mine.py").write_text(
        "from howsure import Dataset\nfrom howsure.check import split\n\n"
        "class Mine(Dataset):\n    name = 'a-torch-data-set'\n\n"
        "    def split(self, name):\n        return [split('outliers').images[i] for i in range(40)]\n"
    )
    suite = write_suite(
        material, "foreign", ["msp", "gen"], ["none", "same-shift"], '\n[[shift]]\ndata = "a-torch-data-set"\n'
    )
    try:
        assert run("run", suite, "--out", tmp_path / "out", "--plugin", tmp_path / "mine.py") == 0
    finally:
        DATASETS._classes.pop("a-torch-data-set", None)
    auroc = pd.read_csv(tmp_path / "out" / "results.csv").query("metric == 'auroc' and protocol == 'none'")
    mine, known = (auroc.query(f"method == 'msp' and shift == '{s}'") for s in ("a-torch-data-set", "outliers"))
    assert mine["value"].tolist() == known["value"].tolist()


@pytest.mark.parametrize("label", [-1, 4])
@pytest.mark.parametrize(("split", "file"), [("train", "train"), ("test", "known")])
def test_a_label_that_no_class_has_is_refused(split, file, label, material, monkeypatch):
    own = Npz.split

    def spoilt(self, name):
        images = own(self, name)
        return ArrayImages(images.x, np.r_[label, images.y[1:]]) if self.path.stem == file else images

    monkeypatch.setattr(Npz, "split", spoilt)
    with pytest.raises(
        UserError, match=f"id: {split} has the label {label}, but training has 4 classes, counted from 0"
    ):
        Material(load_suite(write_suite(material, "strange", ["msp"], ["none"])))


def test_a_methods_own_error_fails_its_cell_alone(material, tmp_path, monkeypatch, capsys):
    def refuse(self, reps):
        raise UserError("k must be positive")

    monkeypatch.setattr(METHODS["energy"], "score", refuse)
    assert run("run", write_suite(material, "own", ["energy", "msp"], ["none"]), "--out", tmp_path) == 1
    assert "k must be positive" in capsys.readouterr().err
    assert set(pd.read_csv(tmp_path / "results.csv")["method"]) == {"msp"}


@pytest.fixture
def published(material, tmp_path, monkeypatch) -> Path:
    """CIFAR-10-C and CIFAR-100-C, made of the known images."""
    monkeypatch.setenv("HOWSURE_DATA", str(tmp_path))
    known = np.load(material / "known.npz")
    for folder, step in ((tmp_path / "CIFAR-10-C", 9), (tmp_path / "CIFAR-100-C", 11)):
        folder.mkdir()
        for kind in ("fog", "snow"):
            noisy = [np.clip(known["x"].astype(int) + step * level, 0, 255).astype(np.uint8) for level in range(1, 6)]
            np.save(folder / f"{kind}.npy", np.concatenate(noisy))
        np.save(folder / "labels.npy", np.tile(known["y"], 5))
    return tmp_path


def test_tables_and_plots_of_an_earlier_run_do_not_outlive_its_results(material, tmp_path, monkeypatch):
    def refuse(self, reps):
        raise UserError("no more")

    suite = write_suite(material, "outlived", ["energy"], ["none"])
    assert run("run", suite, "--out", tmp_path) == 0
    monkeypatch.setattr(METHODS["energy"], "score", refuse)
    assert run("run", suite, "--fresh", "--out", tmp_path) == 1
    assert pd.read_csv(tmp_path / "results.csv").empty
    left = [file.stem for folder in ("tables", "plots") for file in (tmp_path / folder).iterdir()]
    assert not left


def test_a_published_corruption_is_one_kind_beside_the_clean_images(material, published, tmp_path):
    shifts = "".join(f'[[shift]]\ndata = "cifar10-c:{name}"\n' for name in ("fog:2", "fog:5", "snow:2"))
    suite = load_suite(write_suite(material, "published", ["msp"], ["leave-one-out"], shifts))
    job = Run(suite, suite.chosen_methods(), RunFolder(tmp_path / "out"), torch.device("cpu"), quiet=True)
    bench = job.bench(suite.backbone[0], 0)
    by_name = {shift.name: shift for shift in bench.shifts}
    fog = by_name["cifar10-c-fog-2"]
    assert (fog.kind, fog.severity, fog.task, fog.group) == ("fog", 2, "corruption", "weather")
    assert "cifar10-c-fog-5" not in seen_outliers("leave-one-out", fog, bench.shifts)
    assert "cifar10-c-snow-2" in seen_outliers("leave-one-out", fog, bench.shifts)
    assert torch.equal(bench.ids["cifar10-c-fog-2"][ImageIds()], bench.ids["test"][ImageIds()])


@pytest.mark.parametrize("beside", ["cifar10-c:fog:2", "cifar100-c", "made"])
def test_a_whole_corrupted_set_does_not_show_what_leave_one_out_leaves_out(beside, material, published):
    shifts = "".join(f'[[shift]]\ndata = "{data}"\n' for data in ("cifar10-c", beside) if data != "made")
    for protocol in ("none", "leave-one-out"):
        suite = Path(write_suite(material, f"twice-{protocol}", ["msp"], [protocol], shifts))
        if beside == "made":
            suite.write_text(suite.read_text().replace('"contrast"', '"fog"'))
        if protocol == "none":
            whole = Material(load_suite(str(suite))).shifts(["cifar10-c"])
            assert [(s.kind, s.severity, s.task, s.group) for s in whole] == [
                ("cifar10-c", None, "corruption", "corruption")
            ]
        else:
            with pytest.raises(UserError, match="both contain fog, so leave-one-out cannot leave it out"):
                Material(load_suite(str(suite)))


@pytest.mark.parametrize(("data", "copies"), [("cifar10-c", 10), ("cifar10-c:snow:1", 1)])
def test_published_corruptions_lie_in_the_parts_of_their_clean_images(data, copies, material, published, capsys):
    suite = load_suite(write_suite(material, "whole", ["msp"], ["same-shift"], f'[[shift]]\ndata = "{data}"\n'))
    splits = Material(suite).splits
    split, known = splits[data.replace(":", "-")], splits["test"].images
    assert len(split) == copies * len(known)
    assert [split.clean[i][0].tobytes() for i in range(len(split))] == copies * [image.tobytes() for image, _ in known]
    np.save(published / "CIFAR-10-C" / "labels.npy", np.zeros(5 * len(known), int))
    assert Material(suite).splits[split.name].clean is None
    assert f"'{split.name}': its images are not those of test in the same order" in capsys.readouterr().err


def test_published_corruptions_stand_under_their_own_names(material, published, tmp_path, monkeypatch, capsys):
    names = {"cifar10-c-fog-2": 2, "cifar10-c-fog-5": 5, "hundred": 5}
    shifts = '[[shift]]\ndata = "cifar10-c:fog:2"\n[[shift]]\ndata = "cifar10-c:fog:5"\n'
    shifts += '[[shift]]\nname = "hundred"\ndata = "cifar100-c:fog:5"\n'
    suite, out = Path(write_suite(material, "own_names", ["msp"], ["none"], shifts)), tmp_path / "out"
    suite.write_text(suite.read_text().replace('"contrast"', '"fog"').replace("[1, 5]", "[5]"))
    drawn: list[str] = []
    monkeypatch.setattr("howsure.plots.write.roc", lambda curves, *_: drawn.extend(g for g, _ in curves) or Figure())
    assert run("run", suite, "--out", out) == 0
    rows = pd.read_csv(out / "results.csv").query("metric == 'auroc' and task == 'corruption'")
    assert dict(zip(rows["shift"], rows["severity"], strict=True)) == {**names, "gaussian_noise": 5, "fog": 5}
    assert len(rows) == 5
    assert set(pd.read_csv(out / "tables" / "corruption_none_auroc.csv")) == {
        "method", "supervision", "mean", "noise mean", "weather mean", "gaussian_noise", "fog", "cifar10-c-fog",
        "hundred",
    }  # fmt: skip
    assert sorted(drawn) == ["corruption", "far", "near"]

    before = (out / "results.csv").read_text()
    (published / "CIFAR-10-C").rename(published / "away")
    assert run("run", suite, "--out", out) == 2
    assert "has results on 'cifar10-c-fog-2', which is no longer available" in capsys.readouterr().err
    assert (out / "results.csv").read_text() == before


def test_plots_pass_over_scores_on_a_shift_that_the_results_lack(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "copy")
    rows = pd.read_csv(finished / "results.csv")
    rows[rows["shift"] != "outliers"].to_csv(tmp_path / "copy" / "results.csv", index=False)
    assert run("plot", tmp_path / "copy") == 0


@pytest.mark.parametrize("function", ["skip", "needs"])
def test_a_method_that_cannot_say_what_it_needs_fails_alone(function, material, tmp_path, monkeypatch, capsys):
    def broken(*_):
        raise ZeroDivisionError("no idea")

    monkeypatch.setattr(METHODS["energy"], function, property(broken) if function == "needs" else broken)
    assert run("run", write_suite(material, "idea", ["energy", "msp"], ["none"]), "--out", tmp_path) == 1
    assert "no idea" in capsys.readouterr().err
    assert set(pd.read_csv(tmp_path / "results.csv")["method"]) == {"msp"}


def test_a_network_that_is_not_to_be_had_stops_no_other(material, tmp_path, capsys):
    text = '[[backbone]]\nname = "lost"\nuse = "net.py:build"\ncheckpoint = "nothing.pt"\nsize = [16, 16]\n'
    text += "mean = [0.5, 0.5, 0.5]\nstd = [0.25, 0.25, 0.25]\n"
    suite = write_suite(material, "lost", ["msp"], ["none"], text)
    assert run("run", suite, "--out", tmp_path) == 1
    assert "msp on lost (none, seed 0): " in capsys.readouterr().err
    assert set(pd.read_csv(tmp_path / "results.csv")["backbone"]) == {"tiny"}


def test_a_run_that_cannot_start_leaves_the_results_of_an_earlier_one(material, tmp_path):
    suite = Path(write_suite(material, "kept", ["msp"], ["none"]))
    assert run("run", suite, "--out", tmp_path) == 0
    before = (tmp_path / "results.csv").read_text()
    suite.write_text(suite.read_text().replace("inverted.npz", "inverted.npy"))
    suite.write_text(suite.read_text().replace('test = "npz:known.npz"', 'test = "npz:unknown.npz"'))
    assert run("run", suite, "--out", tmp_path) == 2
    assert (tmp_path / "results.csv").read_text() == before


def _meddle(logits):
    print("a method prints")
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    torch.set_grad_enabled(False)
    torch.set_num_threads(torch.get_num_threads() + 1)
    torch.set_float32_matmul_precision("medium")
    torch.use_deterministic_algorithms(True)
    np.seterr(all="raise")
    os.chdir("/")
    warnings.simplefilter("ignore")
    return logits.mul_(0).amax(1)


@pytest.mark.parametrize("plugin", [_meddle], indirect=True)
def test_a_method_that_meddles_spoils_no_other(plugin, material, tmp_path, monkeypatch, capsys):
    suite, before = write_suite(material, "meddling", [plugin, "odin", "confound_detector"], ["same-shift"]), settings()
    monkeypatch.setenv("HOWSURE_CACHE", str(tmp_path / "cache"))
    assert run("run", suite, "--out", tmp_path / "both") == 0
    assert settings() == before
    assert "a method prints" not in capsys.readouterr().out
    monkeypatch.setenv("HOWSURE_CACHE", str(tmp_path / "another"))
    assert run("run", suite, "--methods", "odin,confound_detector", "--out", tmp_path / "alone") == 0
    both, alone = (pd.read_csv(tmp_path / name / "results.csv") for name in ("both", "alone"))
    assert both[both["method"] != plugin]["value"].tolist() == alone["value"].tolist()


def settings() -> list[object]:
    found: list[object] = [torch.get_default_dtype(), torch.get_default_device(), torch.is_grad_enabled()]
    found += [torch.get_num_threads(), torch.get_float32_matmul_precision()]
    return [*found, torch.are_deterministic_algorithms_enabled(), np.geterr(), os.getcwd(), [*warnings.filters]]


def test_a_finished_network_or_shift_out_of_reach_loses_nothing(material, tmp_path, capsys):
    text = '[[backbone]]\nname = "other"\nuse = "net.py:build"\ncheckpoint = "other.safetensors"\nsize = [16, 16]\n'
    text += "mean = [0.5, 0.5, 0.5]\nstd = [0.25, 0.25, 0.25]\n"
    suite, away = write_suite(material, "reach", ["msp"], ["none"], text), tmp_path / "away"
    weights = material / "other.safetensors"
    weights.write_bytes((material / "weights.safetensors").read_bytes())
    out, record = tmp_path / "out", tmp_path / "out" / "cells" / "other" / "seed0" / "none" / "msp.json"
    assert run("run", suite, "--out", out) == 0
    before = record.read_text()
    weights.rename(away)
    assert run("run", suite, "--out", out) == 1
    assert record.read_text() == before
    assert set(pd.read_csv(out / "results.csv")["backbone"]) == {"tiny"}
    away.rename(weights)
    assert run("run", suite, "--out", out) == 0
    assert record.read_text() == before
    assert set(pd.read_csv(out / "results.csv")["backbone"]) == {"tiny", "other"}


def test_a_data_set_that_is_gone_takes_no_results_along(material, tmp_path, capsys, monkeypatch):
    extra = '\n[[shift]]\ndata = "svhn"\n'
    suite, out = write_suite(material, "gone", ["msp"], ["none"], extra), tmp_path / "out"
    images = made_up("outliers").images
    monkeypatch.setattr(DATASETS["svhn"], "split", lambda self, name: images)
    assert run("run", suite, "--out", out) == 0
    before = (out / "results.csv").read_text()
    assert "svhn" in before
    monkeypatch.undo()
    assert run("run", suite, "--out", out) == 2
    assert "has results on 'svhn', which is no longer available" in capsys.readouterr().err
    assert (out / "results.csv").read_text() == before
    assert run("run", suite, "--fresh", "--out", out) == 0
    assert "svhn" not in (out / "results.csv").read_text()


@pytest.mark.parametrize(
    ("known", "says"),
    [
        ('"letters"', "id: letters has no split 'train', only test; name another data set"),
        (
            '{ train = "npz:train.npz", test = "npz:known.npz", val = "noise" }',
            "id: noise has no split 'val', only test",
        ),
        ('"npz:known.npz"', "id: train and test are the same images"),
        ('{ train = "npz:train.npz", test = "npz:known.npz", val = "npz:known.npz" }', "id: test and val are the same"),
    ],
)
def test_no_method_is_scored_on_what_it_is_fitted_on(known, says, material, tmp_path, capsys):
    suite = Path(write_suite(material, "seen", ["msp"], ["none"]))
    suite.write_text(suite.read_text().replace('{ train = "npz:train.npz", test = "npz:known.npz" }', known))
    assert run("run", suite, "--out", tmp_path) == 2
    assert says in capsys.readouterr().err


def test_results_of_another_suite_are_not_replaced(material, tmp_path, capsys):
    first, other = (write_suite(material, name, ["msp"], ["none"]) for name in ("first", "other"))
    assert run("run", first, "--out", tmp_path) == 0
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    assert run("run", other, "--out", tmp_path) == 2
    said = capsys.readouterr().err
    assert "has results of the suite 'first', which those of 'other' would replace; name another --out" in said
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before
    assert run("run", other, "--fresh", "--out", tmp_path) == 0
    assert set(pd.read_csv(tmp_path / "results.csv")["suite"]) == {"other"}
    assert run("run", other, "--out", tmp_path) == 0


def test_results_of_a_suite_of_the_same_name_elsewhere_are_not_replaced(material, tmp_path, capsys):
    text = Path(write_suite(material, "namesake", ["msp"], ["none"])).read_text()
    for name in ("one", "two"):
        shutil.copytree(material, tmp_path / name)
        (tmp_path / name / "namesake.toml").write_text(text)
    out = tmp_path / "one" / "out"
    assert run("run", tmp_path / "one" / "namesake.toml", "--out", out) == 0
    assert str(tmp_path) not in (out / "run.json").read_text()
    before = (out / "results.csv").read_text()
    assert run("run", tmp_path / "two" / "namesake.toml", "--out", out) == 2
    assert "has results of another file's suite 'namesake', which those of 'namesake'" in capsys.readouterr().err
    assert run("run", "digits", "--out", out) == 2
    assert (out / "results.csv").read_text() == before

    (tmp_path / "one" / "namesake.toml").write_text(text.replace("severities = [1, 5]", "severities = [5]"))
    assert run("run", tmp_path / "one" / "namesake.toml", "--out", out) == 0
    assert (out / "results.csv").read_text() != before
    (tmp_path / "one").rename(tmp_path / "elsewhere")
    assert run("run", tmp_path / "elsewhere" / "namesake.toml", "--out", tmp_path / "elsewhere" / "out") == 0
    (tmp_path / "elsewhere" / "out").rename(out := tmp_path / "moved")
    assert run("run", tmp_path / "elsewhere" / "namesake.toml", "--out", out) == 0
    assert run("run", tmp_path / "two" / "namesake.toml", "--fresh", "--out", out) == 0


def test_where_a_suite_lies_is_noted_but_of_one_that_comes_along_or_on_another_drive(material, tmp_path, monkeypatch):
    suite = load_suite(write_suite(material, "placed", ["msp"], ["none"]))
    assert len(suite_from(suite, tmp_path)) == 2
    assert suite_from(load_suite("digits"), tmp_path) == []

    def no_way(path: str, start: str) -> str:
        raise ValueError("path is on mount 'C:', start on mount 'D:'")

    monkeypatch.setattr("os.path.relpath", no_way)
    assert len(suite_from(suite, tmp_path)) == 1


def test_an_interrupted_rerun_keeps_what_an_earlier_one_finished(material, tmp_path, monkeypatch):
    def interrupt(self, reps):
        raise KeyboardInterrupt

    suite = write_suite(material, "again", ["msp", "energy", "gen"], ["none"])
    assert run("run", suite, "--out", tmp_path) == 0
    before = pd.read_csv(tmp_path / "results.csv")
    monkeypatch.setattr(METHODS["energy"], "score", interrupt)
    assert run("run", suite, "--fresh", "--out", tmp_path) == 130
    after = pd.read_csv(tmp_path / "results.csv")
    assert sorted(after["value"]) == sorted(before["value"])


OTHER = """
[[backbone]]
name = "other"
use = "net.py:build"
mean = [0.5, 0.5, 0.5]
std = [0.25, 0.25, 0.25]
size = [16, 16]
"""


@pytest.mark.parametrize(
    ("name", "limit", "of_other", "kept"),
    [
        ("changed", "", "", 6),
        ("changed", "", "seed = 3\n", 3),
        ("changed", "max_images = 20\n", "", 1),
        ("changed_and_renamed", "", "", 1),
    ],
)
def test_an_interrupted_run_shows_no_cell_that_it_would_not_make(
    name, limit, of_other, kept, material, tmp_path, monkeypatch
):
    def interrupt(self, reps):
        raise KeyboardInterrupt

    methods = ["msp", "energy", "gen"]
    assert run("run", write_suite(material, "changed", methods, ["none"], OTHER), "--out", tmp_path) == 0
    suite = Path(write_suite(material, name, methods, ["none"], OTHER + of_other))
    suite.write_text(limit + suite.read_text())
    monkeypatch.setattr(METHODS["energy"], "score", interrupt)
    assert run("run", suite, "--fresh", "--out", tmp_path) == 130
    after = pd.read_csv(tmp_path / "results.csv")
    shown = list(product(("tiny", "other"), ("msp", "energy", "gen")))[:kept]
    assert set(zip(after["backbone"], after["method"], strict=True)) == set(shown)
    assert set(after["suite"]) == {name}
    cells = json.loads((tmp_path / "run.json").read_text())["cells"]
    assert {(cell["backbone"], cell["method"]) for cell in cells} == set(shown)


@pytest.mark.parametrize("file", ["net.py", "weights.safetensors"])
def test_an_interrupted_run_shows_no_cell_of_a_network_that_is_another_now(file, material, tmp_path, monkeypatch):
    def interrupt(self, reps):
        raise KeyboardInterrupt

    shutil.copytree(material, tmp_path / "here")
    suite = write_suite(
        tmp_path / "here", "anew", ["msp", "energy"], ["none"], OTHER + 'checkpoint = "other.safetensors"\n'
    )
    place = tmp_path / "here" / file.replace("weights", "other")
    shutil.copy(tmp_path / "here" / "weights.safetensors", tmp_path / "here" / "other.safetensors")
    assert run("run", suite, "--out", tmp_path) == 0
    if file == "net.py":
        place.write_text(NET + "# edited\n")
    else:
        save_file({key: 2 * value for key, value in load_file(place).items()}, place)
    monkeypatch.setattr(METHODS["energy"], "score", interrupt)
    assert run("run", suite, "--fresh", "--out", tmp_path) == 130
    assert set(pd.read_csv(tmp_path / "results.csv")["backbone"]) == {"tiny"}


@pytest.mark.parametrize(
    ("methods", "protocols"), [(["confound_detector"], ["none"]), (["msp", "knn"], ["leave-one-out"])]
)
def test_a_run_with_nothing_to_do_says_so_and_leaves_results_alone(methods, protocols, material, tmp_path, capsys):
    suite = Path(write_suite(material, "idle", ["msp"], ["none"]))
    assert run("run", suite, "--out", tmp_path) == 0
    before = (tmp_path / "results.csv").read_text()
    text = suite.read_text().replace('["msp"]', json.dumps(methods)).replace('["none"]', json.dumps(protocols))
    if protocols != ["none"]:
        text = text.partition("[[shift]]")[0]
    suite.write_text(text)
    assert run("run", suite, "--out", tmp_path) == 2
    assert "nothing to run" in capsys.readouterr().err
    assert (tmp_path / "results.csv").read_text() == before


def flip(file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


@pytest.mark.parametrize("lose", [Path.unlink, lambda file: os.truncate(file, file.stat().st_size // 2), flip])
def test_a_cell_whose_scores_are_lost_is_computed_again(lose, material, tmp_path):
    suite, scores = write_suite(material, "lost_scores", ["msp"], ["none"]), tmp_path / "scores"
    assert run("run", suite, "--out", tmp_path) == 0
    file = scores / "tiny" / "seed0" / "none" / "msp.safetensors"
    before = file.read_bytes()
    lose(file)
    assert run("run", suite, "--out", tmp_path) == 0
    assert file.read_bytes() == before


def test_images_in_two_sets_are_told(material, tmp_path, capsys):
    for file in material.iterdir():
        if file.is_file():
            shutil.copy(file, tmp_path)
    train, known, outliers = (dict(np.load(material / f"{name}.npz")) for name in ("train", "known", "outliers"))
    np.savez(tmp_path / "known.npz", **{key: np.concatenate([known[key], train[key][:3]]) for key in known})
    np.savez(tmp_path / "outliers.npz", **{key: np.concatenate([outliers[key], known[key][:2]]) for key in outliers})
    suite = write_suite(tmp_path, "twice", ["msp"], ["none"])
    assert run("run", suite, "--out", tmp_path / "out") == 0
    assert [line for line in told(capsys) if "among those" in line] == [
        f"howsure: 3 of the {len(known['y']) + 3} images of 'test' are also among those of 'train'",
        f"howsure: 2 of the {len(outliers['y']) + 2} images of 'outliers' are also among those of 'test'",
    ]


def test_a_shift_too_small_to_be_split_is_left_out_of_the_protocols_that_split(material, tmp_path, capsys):
    np.savez(material / "one.npz", x=made_up("outliers").images.x[:1], y=np.zeros(1, int))
    extra = '\n[[shift]]\ndata = "npz:one.npz"\n'
    suite = write_suite(
        material, "small", ["msp", "knn", "feature_detector"], ["none", "same-shift", "leave-one-out"], extra
    )
    assert run("run", suite, "--out", tmp_path) == 0
    assert "shift 'one' left out: too small" in capsys.readouterr().err
    rows = pd.read_csv(tmp_path / "results.csv")
    assert run("run", write_suite(material, "small_none", ["msp"], ["none"], extra), "--out", tmp_path / "none") == 0
    assert told(capsys) == []
    assert set(rows[rows["shift"] == "one"]["protocol"]) == {"none"}
    assert set(rows[rows["shift"] == "outliers"]["protocol"]) == {"none", "same-shift", "leave-one-out"}


def test_protocols_that_cannot_be_had_are_left_out_by_default_and_fail_if_asked_for(material, tmp_path, capsys):
    np.savez(material / "one.npz", x=made_up("outliers").images.x[:1], y=np.zeros(1, int))
    text = Path(write_suite(material, "only_small", ["msp"], ["same-shift"])).read_text()
    text = text[: text.index("[[shift]]")] + '[[shift]]\ndata = "npz:one.npz"\n'
    for asked, status in (True, 1), (False, 0):
        lines = [line for line in text.splitlines() if asked or not line.startswith("protocols")]
        suite = material / "only_small.toml"
        suite.write_text("\n".join(lines))
        assert run("run", suite, "--out", tmp_path / str(asked)) == status
        err = capsys.readouterr().err
        assert ("is too small for protocol same-shift" in err) == asked
        assert ("protocol 'same-shift' left out: it needs a shift that is large enough" in err) != asked
    assert set(pd.read_csv(tmp_path / "False" / "results.csv")["protocol"]) == {"none"}


def test_a_test_set_too_small_to_be_divided_leaves_the_protocol_none(material, tmp_path, capsys):
    known = np.load(material / "known.npz")
    np.savez(material / "few.npz", x=known["x"][:2], y=known["y"][:2])
    text = Path(write_suite(material, "few_known", ["msp"], ["none"])).read_text()
    suite = material / "few_known.toml"
    suite.write_text(text.replace("npz:known.npz", "npz:few.npz").replace('protocols = ["none"]', ""))
    assert run("run", suite, "--out", tmp_path) == 0
    assert "'test' is too small for protocols that divide it into three parts" in capsys.readouterr().err
    assert set(pd.read_csv(tmp_path / "results.csv")["protocol"]) == {"none"}


def test_what_earlier_runs_left_in_the_folder_is_told(material, tmp_path, capsys):
    suite = write_suite(material, "more", ["msp", "knn", "energy"], ["none"])
    assert run("run", suite, "--out", tmp_path, "--methods", "msp,energy") == 0
    assert told(capsys) == []
    assert run("run", suite, "--out", tmp_path, "--methods", "knn", "--seed", "1") == 0
    [line] = told(capsys)
    assert line.startswith(f"howsure: {tmp_path}: results of earlier runs (energy, msp, seed 0) stay there")
    assert run("run", suite, "--out", tmp_path) == 0
    assert [line for line in told(capsys) if "(seed 1)" not in line] == []


def test_leaving_one_out_needs_two_shifts_that_are_large_enough(material, tmp_path, capsys):
    np.savez(material / "two.npz", x=made_up("outliers").images.x[:2], y=np.zeros(2, int))
    file = Path(write_suite(material, "too_few", ["knn", "feature_detector"], ["same-shift", "leave-one-out"]))
    text, _, _ = file.read_text().partition("[[shift]]")
    file.write_text(text + '[[shift]]\ndata = "npz:two.npz"\n\n[[shift]]\ndata = "npz:outliers.npz"\n')
    assert run("run", file, "--out", tmp_path) == 0
    assert capsys.readouterr().err.count("protocol 'leave-one-out' left out: it needs two kinds of shift") == 1
    assert set(pd.read_csv(tmp_path / "results.csv")["protocol"]) == {"same-shift"}


def test_holding_classes_back_needs_two(material, tmp_path, capsys):
    images = made_up("train").images
    np.savez(material / "one_class.npz", x=images.x, y=np.full(len(images), 3))
    suite = Path(write_suite(material, "one_class", ["msp", "feature_detector"], ["none", "pseudo-unknown"]))
    suite.write_text(suite.read_text().replace("npz:train.npz", "npz:one_class.npz"))
    assert run("run", suite, "--out", tmp_path) == 0
    assert "protocol 'pseudo-unknown' left out: it needs two classes" in told(capsys)[0]
    assert set(pd.read_csv(tmp_path / "results.csv")["protocol"]) == {"none"}


def test_what_a_suite_asks_for_and_cannot_have_is_told(material, tmp_path, capsys):
    file = Path(write_suite(material, "asked", ["msp", "feature_detector"], ["none", "leave-one-out"]))
    file.write_text(file.read_text().partition("[[shift]]")[0] + '[[shift]]\ndata = "npz:outliers.npz"\n')
    assert run("run", file, "--out", tmp_path) == 0
    lines = told(capsys)
    assert "protocol 'leave-one-out' left out" in lines[0]
    assert lines[1].endswith("since no protocol here supplies outliers: feature_detector")


def test_a_cache_that_cannot_be_written_stops_no_run(material, tmp_path, capsys, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("HOWSURE_CACHE", str(tmp_path / "file"))
    assert run("run", write_suite(material, "diskless", ["msp", "knn"], ["none"]), "--out", tmp_path / "out") == 0
    assert capsys.readouterr().err.count("kept in memory, not on disk") == 1


@pytest.mark.parametrize(
    ("plugin", "why"),
    [
        (lambda z: z.amax(1) * torch.inf, "are NaN or infinite"),
        (lambda z: z.amax(1)[:-1], "they must have shape"),
        (lambda z: None, "score returned a NoneType"),
        (lambda z: z.amax(1).to(torch.complex64), "are torch.complex64; they must be floating-point numbers"),
        (lambda z: z.argmax(1), "are torch.int64; they must be floating-point numbers"),
        (lambda z: sys.exit(3), "SystemExit: 3"),
    ],
    indirect=["plugin"],
)
def test_score_refuses_what_is_no_score(plugin, why, material, tmp_path, capsys):
    for i in range(2):
        Image.fromarray(np.full((16, 16, 3), 40 * i, np.uint8)).save(tmp_path / f"{i}.png")
    options = {"backbone": material / "net.py:mixing", "checkpoint": material / "weights.safetensors"}
    options |= {"train": f"npz:{material / 'train.npz'}", "method": plugin}
    assert run("score", *(x for key, value in options.items() for x in (f"--{key}", value)), tmp_path) == 2
    lines = told(capsys)
    assert why in lines[-1]
    assert len(lines) == 2
    assert "gives an image different logits in different batches" in lines[0]


def test_a_method_is_timed_again_when_it_is_another(material, tmp_path):
    suite, kept = write_suite(material, "timed", ["energy"], ["none"]), []
    for temperature in (1.0, 1.0, 2.0):
        Path(suite).write_text(
            SUITE.format(methods='["energy"]', protocols='["none"]') + f"[method.energy]\ntemperature = {temperature}\n"
        )
        assert run("run", suite, "--out", tmp_path) == 0
        kept.append((tmp_path / "timing" / "tiny" / "energy.json").stat().st_mtime_ns)
    assert kept[0] == kept[1] < kept[2]


def test_times_of_other_images_or_of_a_method_that_fails_now_are_not_shown(material, tmp_path, monkeypatch):
    def refuse(self, reps):
        raise ZeroDivisionError

    suite = Path(write_suite(material, "times", ["msp", "energy"], ["none"]))
    assert run("run", suite, "--out", tmp_path) == 0
    suite.write_text("max_images = 20\n" + suite.read_text())
    monkeypatch.setattr(METHODS["energy"], "score", refuse)
    assert run("run", suite, "--out", tmp_path) == 1
    times = pd.read_csv(tmp_path / "timing.csv")
    assert times[["method", "n_images"]].to_numpy().tolist() == [["msp", 20]]


def test_results_name_the_data_as_the_suite_does_now(material, tmp_path):
    suite = Path(write_suite(material, "named", ["msp"], ["none"]))
    shutil.copy(material / "known.npz", material / "copy.npz")
    for name in ("known", "copy"):
        suite.write_text(suite.read_text().replace("npz:known.npz", f"npz:{name}.npz"))
        assert run("run", suite, "--out", tmp_path) == 0
        assert set(pd.read_csv(tmp_path / "results.csv")["id"]) == {f"npz:{name}.npz"}


def test_a_tuned_cell_is_not_taken_for_one_whose_values_the_suite_sets(material, tmp_path):
    for values, tuned in (("", True), (f"\n[method.knn]\nk = {METHODS['knn']().k}\n", False)):
        assert run("run", write_suite(material, "set", ["knn"], ["same-shift"], values), "--out", tmp_path) == 0
        (cell,) = json.loads((tmp_path / "run.json").read_text())["cells"]
        assert bool(cell["chosen"]) == tuned
        seen = set(pd.read_csv(tmp_path / "results.csv")["supervision"])
        assert seen == {"id-train+tuned" if tuned else "id-train"}


def test_a_cell_is_made_again_when_a_value_that_no_repr_shows_is_another(material, tmp_path):
    (tmp_path / "quiet.py").write_text(
        "from dataclasses import dataclass, field\nfrom howsure import Logits, Method\n\n"
        "@dataclass(frozen=True)\nclass Quiet(Method):\n    sign: float = field(default=1.0, repr=False)\n"
        "    supervision = 'none'\n    needs = (Logits(),)\n\n"
        "    def score(self, reps):\n        return -self.sign * reps[Logits()].amax(1)\n"
    )
    found = []
    try:
        for sign in (1.0, -1.0):
            suite = write_suite(material, "quiet", ["quiet"], ["none"], f"\n[method.quiet]\nsign = {sign}\n")
            assert run("run", suite, "--out", tmp_path / "out", "--plugin", tmp_path / "quiet.py") == 0
            found.append(pd.read_csv(tmp_path / "out" / "results.csv").query("metric == 'auroc'")["value"])
    finally:
        METHODS._classes.pop("quiet", None)
    assert np.allclose(found[0], 1 - found[1])
    assert not np.allclose(found[0], found[1])


def test_skipped_methods_are_told(material, tmp_path, capsys):
    assert run("run", write_suite(material, "told", ["ensemble", "msp"], ["none"]), "--out", tmp_path) == 0
    assert "skipped: ensemble on tiny: " in capsys.readouterr().err


def test_each_severity_of_a_corruption_takes_its_own_share_of_the_images(material, tmp_path):
    suite = load_suite(write_suite(material, "shares", extra="images = 10\n"))
    job = Run(suite, suite.chosen_methods(), RunFolder(tmp_path), torch.device("cpu"), quiet=True)
    splits = job.material.splits
    first, second = (splits[f"contrast@{severity}"] for severity in (1, 5))
    assert len(first) == len(second) == 10
    assert set(first.images.indices).isdisjoint(second.images.indices)
    assert list(first.images.indices) != list(splits["gaussian_noise@1"].images.indices)


@pytest.mark.parametrize(("seed", "networks"), [("", 2), ("seed = 1", 1)])
def test_a_network_with_a_seed_of_its_own_is_the_same_under_all_seeds(seed, networks, tmp_path):
    text = f"""id = "digits"\nmethods = ["msp"]\nprotocols = ["same-shift"]\nseeds = [0, 1]\nmax_images = 100
        [[backbone]]\nuse = "small-cnn"\n{seed}\n[[shift]]\ndata = "noise"\n"""
    (tmp_path / "suite.toml").write_text(text)
    assert run("run", tmp_path / "suite.toml", "--out", tmp_path) == 0
    record = json.loads((tmp_path / "run.json").read_text())
    assert len({network["digest"] for network in record["networks"]}) == networks
    assert pd.read_csv(tmp_path / "results.csv").query("metric == 'auroc'")["value"].nunique() == 2


def test_methods_are_timed_on_the_network_of_the_first_seed(tmp_path):
    text = """id = "digits"\nmethods = ["msp"]\nprotocols = ["same-shift"]\nseeds = [1, 0]\nmax_images = 100
        [[backbone]]\nuse = "small-cnn"\n[[shift]]\ndata = "noise"\n"""
    (tmp_path / "suite.toml").write_text(text)
    assert run("run", tmp_path / "suite.toml", "--out", tmp_path) == 0
    before = (tmp_path / "timing.csv").read_text()
    assert run("run", tmp_path / "suite.toml", "--out", tmp_path) == 0
    assert (tmp_path / "timing.csv").read_text() == before


def test_scores_that_shifts_share_are_kept_for_each(tmp_path):
    folder, name, scores = RunFolder(tmp_path), CellName("net", 0, "same-shift", "odin"), np.arange(3.0)
    folder.write_cell(Cell(name, "done", "key"), {"id/a": scores, "a": scores + 1, "id/b": scores, "b": scores + 2})
    for shift, offset in (("a", 1), ("b", 2)):
        inside, outside = read_scores(tmp_path, name)[shift]
        np.testing.assert_array_equal(inside, scores)
        np.testing.assert_array_equal(outside, scores + offset)
