"""The generated pages say what the registry and the kept runs say."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest

from howsure.cli import main
from howsure.plugins import BACKBONES, DATASETS, METHODS
from howsure.results import RESULT_COLUMNS, Cell, CellName, RunFolder, newest

DOCS = Path(__file__).parent.parent / "docs"


def script(name: str, folder: Path = DOCS) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_page_a_family_is_up_to_date():
    for path, text in script("catalogue").pages().items():
        assert path.read_text() == text, f"{path} is stale: run `python docs/catalogue.py`"


def test_every_method_stands_on_one_page():
    pages = [path.read_text() for path in (DOCS / "methods").glob("*.md")]
    for name in METHODS:
        assert sum(f"| [`{name}`](#{name}) " in page and f"\n## {name}\n" in page for page in pages) == 1, name


@pytest.mark.parametrize(
    ("page", "its"), [("paper", "paper"), ("outlier-free", "outlier_free"), ("../README", "overview")]
)
def test_the_tables_of_a_page_are_those_of_the_kept_runs(page: str, its: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(DOCS))
    text = (DOCS / f"{page}.md").read_text()
    for name, table in script(its).tables().items():
        assert f"<!-- {name} -->\n{table}\n<!-- end -->" in text, f"'{name}' is stale: run `python docs/{its}.py`"


def test_every_question_of_the_paper_has_a_table_and_a_plot() -> None:
    sections = re.split(r"^## ", (DOCS / "paper.md").read_text(), flags=re.MULTILINE)
    answers = [s for s in sections if "<!-- end -->" in s and not s.startswith("On other networks")]
    assert len(answers) == 6
    for answer in answers:
        (plot,) = re.findall(r"!\[.+\]\((paper/.+\.png)\)", answer)
        assert (DOCS / plot).is_file(), plot


def test_a_kept_run_takes_newer_methods_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reference = script("reference")
    monkeypatch.setenv("HOWSURE_DATA", str(tmp_path / "data"))

    def run(name: str, values: dict[str, float]) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        cell = {"backbone": "net", "protocol": "none", "seed": 0}
        rows = [{**cell, "method": m, "metric": "auroc", "value": v} for m, v in values.items()]
        pd.DataFrame(rows, columns=RESULT_COLUMNS).to_csv(folder / "results.csv", index=False)
        times = [{"backbone": "net", "device": "cpu", "method": m, "fit_s": v} for m, v in values.items()]
        pd.DataFrame(times).to_csv(folder / "timing.csv", index=False)
        cells = [{**cell, "method": m, "state": "done", "chosen": {"k": v}} for m, v in values.items()]
        (folder / "run.json").write_text(json.dumps({"cells": cells}))
        return folder

    target = tmp_path / "kept"
    reference.keep([run("old", {"knn": 0.1, "vim": 0.2})], target)
    reference.keep([target, run("new", {"vim": 0.9})], target)
    expected = {"knn": 0.1, "vim": 0.9}
    assert pd.read_parquet(target / "results.parquet").set_index("method")["value"].to_dict() == expected
    assert pd.read_csv(target / "timing.csv").set_index("method")["fit_s"].to_dict() == expected
    records = json.loads((target / "run.json").read_text())
    assert [{c["method"]: c["chosen"]["k"] for c in r["cells"]} for r in records] == [{"knn": 0.1}, {"vim": 0.9}]
    reference.keep([target, run("newest", {"vim": 0.7})], target)
    records = json.loads((target / "run.json").read_text())
    assert [{c["method"]: c["chosen"]["k"] for c in r["cells"]} for r in records] == [{"knn": 0.1}, {"vim": 0.7}]


def test_leads_compare_methods_on_the_same_network(tmp_path: Path) -> None:
    folder, detector = RunFolder(tmp_path), "confound_detector"
    for backbone, method, shifted in (("a", detector, 1.0), ("a", "msp", 0.0), ("b", detector, 0.5)):
        scores = {"id": np.array([0.1, 0.7]), "x": np.array([shifted, shifted])}
        folder.write_cell(Cell(CellName(backbone, 0, "same-shift", method), "done", "key"), scores)
    (lead,) = script("leads", DOCS.parent / "benchmarks" / "paper").leads([tmp_path])
    assert (lead["backbone"], lead["method"], lead["lead"]) == ("a", "msp", 1.0)


def test_leads_that_a_run_has_not_stay() -> None:
    cell = script("leads", DOCS.parent / "benchmarks" / "paper").CELL
    keys = ["backbone", "protocol", "seed", "method", "shift", "lead"]
    old = pd.DataFrame([("a", "none", 0, m, s, 0.1) for m in ("msp", "knn") for s in "xy"], columns=keys)
    new = pd.DataFrame([("a", "none", 0, "knn", "x", 0.2), ("a", "none", 1, "knn", "x", 0.3)], columns=keys)
    assert newest([old, new], cell)[["method", "shift", "lead"]].to_numpy().tolist() == [
        ["msp", "x", 0.1], ["msp", "y", 0.1], ["knn", "x", 0.2], ["knn", "x", 0.3],
    ]  # fmt: skip


def test_the_data_set_and_the_network_of_the_page_run(tmp_path: Path) -> None:
    page = (DOCS / "adding-data-and-networks.md").read_text()
    for language, file in (("python", "mine.py"), ("toml", "suite.toml")):
        (block,) = re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)
        (tmp_path / file).write_text(block)
    try:
        with pytest.raises(SystemExit) as stop:
            main(
                [
                    "run",
                    str(tmp_path / "suite.toml"),
                    "--plugin",
                    str(tmp_path / "mine.py"),
                    "--out",
                    str(tmp_path / "out"),
                ]
            )
        assert stop.value.code == 0
    finally:
        DATASETS._classes.pop("inverted-digits", None)
        BACKBONES._classes.pop("perceptron", None)
    results = pd.read_csv(tmp_path / "out" / "results.csv").query("metric == 'auroc'")
    assert set(results["method"]) == {"msp", "energy", "knn"}
    assert "inverted-digits" in set(results["shift"])
