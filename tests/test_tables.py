"""Tables of made-up runs: order, bold, protocols apart, seeds, missing cells, LaTeX."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fake_run import fake_run
from safetensors import SafetensorError

from howsure import store
from howsure.errors import UserError
from howsure.plots import write_plots
from howsure.results import RESULT_COLUMNS, TIMING_COLUMNS, Cell, CellName, RunFolder, read_costs
from howsure.tables import leaderboard, write_tables

ABOUT = {"suite": "s", "id": "i", "n_id": 10, "n_shift": 10, "ci_low": 0.0, "ci_high": 1.0, "severity": None}


def results(*rows):
    """Rows of (method, backbone, seed, group, shift, value), AUROC under protocol none."""
    names = ("method", "backbone", "seed", "group", "shift", "value")
    common = {**ABOUT, "task": "ood", "metric": "auroc", "protocol": "none", "supervision": "id-train"}
    return pd.DataFrame([{**common, **dict(zip(names, r, strict=True))} for r in rows])[RESULT_COLUMNS]


def written(tmp_path, table, name):
    table.to_csv(tmp_path / "results.csv", index=False)
    write_tables(tmp_path)
    return (tmp_path / "tables" / name).read_text(encoding="utf-8")


TWO = (
    ("a", "net", 0, "far", "x", 0.7),
    ("a", "net", 0, "near", "y", 0.9),
    ("b", "net", 0, "far", "x", 0.9),
    ("b", "net", 0, "near", "y", 0.8),
)


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    return write_tables(fake_run(tmp_path_factory.mktemp("run"), 12, 12))


def test_every_table_in_three_formats(paths):
    assert all(path.stat().st_size for path in paths)
    names = {path.name for path in paths}
    for stem in ("leaderboard_none", "ood_same-shift_fpr95", "ood_none_auroc_cnn", "corruption_none_auroc", "timing"):
        assert {f"{stem}.md", f"{stem}.tex", f"{stem}.csv"} <= names
    assert "misclassification_none_vit_tiny.md" in names


def test_protocols_stay_apart(paths):
    text = {path.name: path.read_text(encoding="utf-8") for path in paths}
    assert "confound_detector" not in text["leaderboard_none.md"]
    assert "| outliers" in text["leaderboard_same-shift.md"]


def test_best_first_and_bold_with_supervision(tmp_path):
    lines = written(tmp_path, results(*TWO), "ood_none_auroc.md").splitlines()
    assert lines[0] == "# AUROC, ood, protocol none, net; means give all cells equal weight"
    assert [c.strip() for c in lines[2].split("|")[1:-1]] == [
        "method", "supervision", "mean", "near mean", "far mean", "y", "x"
    ]  # fmt: skip
    assert [c.strip() for c in lines[4].split("|")[1:-1]] == [
        "b", "id-train", "**0.850**", "0.800", "**0.900**", "0.800", "**0.900**"
    ]  # fmt: skip
    assert [c.strip() for c in lines[5].split("|")[1:5]] == ["a", "id-train", "0.800", "**0.900**"]


def test_lower_is_bold_where_lower_is_better(tmp_path):
    table = results(*TWO)
    text = written(tmp_path, pd.concat([table, table.assign(metric="fpr95")]), "ood_none_fpr95.csv")
    assert text.splitlines()[1].startswith("b,")
    row = (tmp_path / "tables/ood_none_fpr95.md").read_text().splitlines()[5]
    assert row.split("|")[1].strip() == "a"
    assert row.split("|")[3].strip() == "**0.800**"


def test_all_that_look_equal_are_bold(tmp_path):
    table = results(("a", "net", 0, "far", "x", 0.90001), ("b", "net", 0, "far", "x", 0.90002))
    assert written(tmp_path, table, "ood_none_auroc.md").count("**0.900**") == 6


def test_what_is_rounded_to_the_same_text_is_bold_alike(tmp_path):
    """0.8015 is a little less than that in binary: its text is 0.801, though numpy rounds it to 0.802."""
    table = results(("a", "net", 0, "far", "x", 0.8015), ("b", "net", 0, "far", "x", 0.8012))
    assert written(tmp_path, table, "ood_none_auroc.md").count("**0.801**") == 6


def test_seeds_give_mean_and_sd_of_their_means(tmp_path):
    rows = [("a", net, seed, "far", "x", value) for net, seed, value in
            [("n", 0, 0.7), ("n", 1, 0.8), ("m", 0, 0.8), ("m", 1, 0.9)]]  # fmt: skip
    assert "**0.800 ± 0.071**" in written(tmp_path, results(*rows), "ood_none_auroc.md")
    assert r"\textbf{0.800 $\pm$ 0.071}" in (tmp_path / "tables/ood_none_auroc.tex").read_text()
    assert "x sd" in (tmp_path / "tables/ood_none_auroc.csv").read_text()


def test_a_mean_over_fewer_cells_is_starred_and_never_bold(tmp_path):
    rows = [*TWO, ("c", "net", 0, "far", "x", 0.99)]
    text = written(tmp_path, results(*rows), "ood_none_auroc.md")
    c = next(line for line in text.splitlines() if line.startswith("| c"))
    assert "0.990\\*" in c
    assert "–" in c
    assert "**0.990**" in c  # on x alone it is the best
    assert "fewer cells" in text
    numbers = pd.read_csv(tmp_path / "tables" / "ood_none_auroc.csv").set_index("method")["fewer cells in"]
    assert numbers.fillna("").to_dict() == {"c": "mean, near mean, y", "a": "", "b": ""}


def test_means_over_other_cells_are_starred_though_there_are_as_many(tmp_path):
    rows = [("a", "net", 0, "far", "x", 0.7), ("b", "vit", 0, "far", "x", 0.9)]
    text = written(tmp_path, results(*rows), "ood_none_auroc.md")
    assert "0.700\\*" in text
    assert "0.900\\*" in text
    assert "**" not in text


def test_latex_escapes_names(tmp_path):
    tex = written(tmp_path, results(("a_b", "net", 0, "far", "x_y", 0.5)), "ood_none_auroc.tex")
    assert "a\\_b & id-train" in tex
    assert "x\\_y" in tex


def test_leaderboard_weighs_groups_equally():
    rows = [*TWO, ("a", "net", 0, "far", "z", 0.5), ("b", "net", 0, "far", "z", 0.9)]
    board = leaderboard(results(*rows), "none")
    assert board.columns.tolist() == ["method", "supervision", "near", "far", "mean"]
    assert board["method"].tolist() == ["b", "a"]
    assert board.set_index("method").loc["a", "mean"] == pytest.approx((0.9 + 0.6) / 2)


def test_the_mean_of_the_leaderboard_has_the_deviation_over_seeds(tmp_path):
    rows = [("a", "net", seed, group, group, value) for seed, group, value in
            [(0, "near", 0.6), (0, "far", 0.8), (1, "near", 0.7), (1, "far", 0.9)]]  # fmt: skip
    text = written(tmp_path, results(*rows), "leaderboard_none.md")
    assert [c.strip() for c in text.splitlines()[4].split("|")[3:-1]] == [
        "**0.650 ± 0.071**", "**0.850 ± 0.071**", "**0.750 ± 0.071**"
    ]  # fmt: skip
    table = pd.read_csv(tmp_path / "tables" / "leaderboard_none.csv")
    assert table["mean sd"].tolist() == [pytest.approx(0.0707, abs=1e-4)]


def test_leaderboard_says_who_lacks_cells():
    board = leaderboard(results(*TWO, ("c", "net", 0, "near", "y", 0.5)), "none").set_index("method")
    assert board["note"].to_dict() == {"b": "", "a": "", "c": "fewer cells"}


def test_leaderboard_of_misclassification_alone():
    board = leaderboard(results(*TWO).assign(task="misclassification", shift=None, group=None), "none")
    assert board.columns.tolist() == ["method", "supervision", "misclassification", "mean"]


def test_stale_tables_go_and_other_files_stay(tmp_path):
    folder = tmp_path / "tables"
    folder.mkdir()
    for name in ("ood_none_auroc_gone.md", "notes.md"):
        (folder / name).touch()
    written(tmp_path, results(*TWO), "ood_none_auroc.md")
    assert {p.name for p in folder.glob("*.md")} == {"ood_none_auroc.md", "leaderboard_none.md", "notes.md"}


def test_names_that_look_like_numbers_or_like_nothing_stay_as_they_are(tmp_path):
    shifts = ("2019", "2020", "null", "NA", "1e3")
    rows = [(method, net, 0, "far", shift, 0.8) for method in "ab" for net in ("18", "34") for shift in shifts]
    timing = pd.DataFrame(
        [[net, "cpu", m, 0.1, 1.0, 2.0, None, 10, 5] for m in "ab" for net in ("18", "34")], columns=TIMING_COLUMNS
    )
    timing.to_csv(tmp_path / "timing.csv", index=False)
    text = written(tmp_path, results(*rows), "ood_none_auroc.md")
    assert [c.strip() for c in text.splitlines()[2].split("|")[5:-1]] == [*shifts]
    assert "mean over 18, 34" in text
    assert "34: x forward" in (tmp_path / "tables" / "timing.md").read_text()
    assert read_costs(tmp_path)["peak_mb"].isna().all()
    assert write_plots(tmp_path)


def test_costs_are_those_of_untuned_methods_and_starred_where_a_network_lacks(tmp_path):
    timing = [
        [net, "cpu", m, 0.1, 1.0, x, None, 10, 5] for net, m, x in [("n", "a", 2.0), ("m", "a", 3.0), ("n", "b", 1.0)]
    ]
    pd.DataFrame(timing, columns=TIMING_COLUMNS).to_csv(tmp_path / "timing.csv", index=False)
    text = written(tmp_path, results(*TWO).assign(supervision="none+tuned"), "timing.md")
    rows = [[c.strip() for c in line.split("|")[1:4]] for line in text.splitlines()[4:6]]
    assert rows == [["b", "none", "1.000\\*"], ["a", "none", "**2.500**"]]


def test_backbones_and_groups_of_any_name_have_a_place_of_their_own(tmp_path):
    rows = [("a", net, 0, group, group, 0.8) for net in ("n+", "n-") for group in ("ood", "timing")]
    text = written(tmp_path, results(*rows), "leaderboard_none.md")
    assert [c.strip() for c in text.splitlines()[2].split("|")[3:-1]] == ["ood", "timing", "mean"]
    assert {"ood_none_auroc_n+.md", "ood_none_auroc_n-.md"} <= {p.name for p in (tmp_path / "tables").iterdir()}


def test_no_results_is_a_clear_error(tmp_path):
    with pytest.raises(UserError, match=r"no results\.csv"):
        write_tables(tmp_path)


def in_place_of(name, text):
    """A change to a run's folder: a file of that name, instead of whatever is there."""

    def spoil(folder):
        if (folder / name).is_dir():
            shutil.rmtree(folder / name)
        (folder / name).write_text(text)

    return spoil


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (in_place_of("tables", "in the way"), r"tables: cannot write there \(File exists\)"),
        (in_place_of("timing.csv", ""), r"timing\.csv: not a readable table \(No columns"),
        (in_place_of("timing.csv", "a,b\n1,2\n"), r"timing\.csv: column 'backbone' is missing"),
    ],
)
@pytest.mark.parametrize("write", [write_tables, write_plots])
def test_what_cannot_be_read_or_written_is_one_line(tmp_path, spoil, says, write):
    written(tmp_path, results(*TWO), "ood_none_auroc.md")
    spoil(tmp_path)
    (tmp_path / "plots").write_text("in the way too")
    with pytest.raises(UserError, match=says if write is write_tables else says.replace("tables", "plots")) as error:
        write(tmp_path)
    assert "\n" not in str(error.value)


def test_numbers_that_are_none_and_files_that_may_not_be_read(tmp_path, monkeypatch):
    table = results(*TWO)
    with pytest.raises(UserError, match=r"results\.csv: not a readable table \(Unable to parse string"):
        written(tmp_path, table.assign(value="high"), "ood_none_auroc.md")

    def refuse(*args, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(pd, "read_csv", refuse)
    with pytest.raises(UserError, match=r"results\.csv: not a readable table \(Permission denied\)"):
        write_tables(tmp_path)


def test_tables_that_another_call_is_clearing_too(tmp_path, monkeypatch):
    written(tmp_path, results(*TWO), "ood_none_auroc.md")
    own = Path.iterdir

    def cleared_meanwhile(folder):
        files = list(own(folder))
        for file in files:
            file.unlink()
        return iter(files)

    monkeypatch.setattr(Path, "iterdir", cleared_meanwhile)
    assert write_tables(tmp_path)


def test_stray_files_among_the_records_are_passed_over(tmp_path):
    folder = RunFolder(tmp_path)
    cell = Cell(CellName("net", 0, "none", "msp"), "done", "key")
    folder.write_cell(cell)
    record = tmp_path / "cells" / cell.name.path.with_suffix(".json")
    for stray in ("x.json", "a/b.json", "net/seedx/none/msp.json", "net/seed0/none/copy.json"):
        (tmp_path / "cells" / stray).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "cells" / stray).write_bytes(record.read_bytes())
    (record.parent / "list.json").write_text("[]")
    assert list(folder.cells()) == [cell]


def test_a_full_disk_is_one_line_with_the_place(tmp_path, monkeypatch):
    def full(*args):
        raise SafetensorError("Error while serializing: No space left on device")

    folder = RunFolder(tmp_path)
    monkeypatch.setattr(store, "save_file", full)
    with pytest.raises(UserError, match=r"msp\.safetensors: cannot write there .*No space left"):
        folder.write_cell(Cell(CellName("net", 0, "none", "msp"), "done", "key"), {"id": np.zeros(2)})
    assert not list((tmp_path / "scores").rglob("*.*"))
