"""Plots of made-up runs: all are drawn, at 12 and at 60 methods; curves and label places by hand."""

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from fake_run import fake_run
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from howsure.plots import cost, heat_map, histograms, roc, severity, style, write_plots
from howsure.plots.roc import roc_curve


def stems(paths):
    assert {p.suffix for p in paths} == {".png", ".svg"}
    for path in paths:
        if path.suffix == ".png":
            with Image.open(path) as image:
                assert np.asarray(image.convert("L")).std() > 5
        else:
            assert "<svg" in path.read_text(encoding="utf-8")[:2000]
    return {p.stem for p in paths}


def test_every_plot_of_each_protocol(tmp_path):
    got = stems(write_plots(fake_run(tmp_path, 12, 8, backbones=("cnn",), severities=2)))
    kinds = ("heatmap", "cost", "severity", "roc")
    assert got == {f"{k}_{p}" for k in kinds for p in ("none", "same-shift")} | {
        "scores_none_cnn",
        "scores_same-shift_cnn",
    }


def test_sixty_methods_and_three_backbones(tmp_path):
    run = fake_run(tmp_path, 60, 35, severities=1, protocols=("same-shift",))
    assert len(stems(write_plots(run))) == 7


def test_without_scores_timing_or_corruptions(tmp_path):
    run = fake_run(tmp_path, 3, 3, backbones=("cnn",), severities=0, protocols=("same-shift",))
    (run / "timing.csv").unlink()
    for file in (run / "scores").rglob("*.safetensors"):
        file.unlink()
    assert stems(write_plots(run)) == {"heatmap_same-shift"}


def test_corruptions_without_a_severity_have_no_plot_of_it(tmp_path):
    run = fake_run(tmp_path, 3, 3, backbones=("cnn",), severities=1, protocols=("none",))
    table = pd.read_csv(run / "results.csv")
    table[table["severity"] != 1].assign(task=lambda rows: rows["task"].replace("ood", "corruption")).to_csv(
        run / "results.csv", index=False
    )
    assert stems(write_plots(run)) == {"heatmap_none", "cost_none", "roc_none", "scores_none_cnn"}


def test_plots_of_an_earlier_call_go_and_other_files_stay(tmp_path):
    run = fake_run(tmp_path, 3, 3, backbones=("cnn",), severities=0, protocols=("none",))
    (run / "plots").mkdir()
    for name in ("heatmap_leave-one-out.png", "roc_x.svg", "mine.png", "roc.txt"):
        (run / "plots" / name).write_text("")
    written = {path.name for path in write_plots(run)}
    assert {path.name for path in (run / "plots").iterdir()} == {*written, "mine.png", "roc.txt"}


@pytest.mark.parametrize(
    ("id_scores", "shift_scores", "half"), [([0, 1], [2, 3], 1), ([2, 3], [0, 1], 0), ([1, 1], [1, 1, 1], 0.5)]
)
def test_roc_by_hand(id_scores, shift_scores, half):
    curve = roc_curve(np.array(id_scores), np.array(shift_scores))
    assert curve[50] == pytest.approx(half)
    assert (curve[0], curve[-1]) == (0, 1)


def test_long_tails_are_squeezed_and_order_is_kept():
    near, far = histograms._squeezed(np.array([0.0, 1, 2, 3, 4]), np.array([2.0, 1e12]))
    assert near[2] == far[0] == 0
    assert far[1] < 30
    assert (np.diff(near) > 0).all()


def test_huge_scores_that_are_mostly_alike_are_squeezed():
    near, far = histograms._squeezed(np.array([0.0] * 9 + [1e200]), np.array([1e200], np.float64))
    assert near[0] == 0
    assert 0 < near[-1] == far[0] < 10


def test_a_very_sure_network_has_a_histogram():
    """Its ID scores lie within less than the smallest normal number."""
    got = histograms.histogram({"x": (np.array([0, 1e-320, 3e-320]), np.array([0.5, 1]))}, {"x": "far"})
    assert got["id"][0] == 1
    assert got["far"][-1] > 0


def test_front_holds_what_no_cheaper_one_beats():
    assert cost._front(np.array([1, 1, 2, 3, 4]), np.array([0.5, 0.6, 0.55, 0.7, 0.7])) == [1, 3]


def test_lines_differ_in_more_than_colour():
    chosen = [f"m{i}" for i in range(11)]
    styles = [style.style(m, chosen) for m in chosen]
    assert len({s["marker"] for s in styles}) == 11
    assert len({(s["color"], s["linestyle"]) for s in styles}) == 11


def test_best_and_baselines_are_chosen():
    methods = [f"m{i}" for i in range(20)] + ["msp"]
    assert style.best_and_baselines(methods) == [*methods[: style._TOP], "msp"]


def test_columns_of_narrow_groups_make_room_for_their_names():
    places = heat_map._places(["near", "misclassification-like", "far", "far"])
    assert places[1] - places[0] > 2
    assert places[3] - places[2] == pytest.approx(1)


def test_each_shift_lies_in_a_histogram_as_beside_its_own_id_scores():
    """Where a detector is fitted for each shift, one may score all images higher than another does."""
    low = np.arange(5.0)
    own = {"x": (low, low + 3), "y": (low + 100, low + 103)}
    got = histograms.histogram(own, {"x": "far", "y": "far"})
    want = histograms.histogram({"x": own["x"]}, {"x": "far"})
    for name, heights in want.items():
        np.testing.assert_allclose(got[name], heights)


def test_constant_scores_have_a_histogram():
    got = histograms.histogram({"x": (np.ones(5), np.ones(5))}, {"x": "far"})
    assert got["id"].sum() == got["far"].sum() == 1


def test_long_names_of_methods_stay_in_their_panels():
    sets = {name: np.ones(40) for name in ("id", "far")}
    figure = histograms.histograms({f"activation_norm_detector-logistic-{i}": sets for i in range(7)}, "cnn")
    FigureCanvasAgg(figure).draw()
    names = [text.get_window_extent() for text in figure.axes[0].texts]
    assert not any(one.overlaps(other) for one, other in pairwise(names[:5]))
    assert names[4].x1 < figure.bbox.x1


def lacking(tmp_path):
    """AUROC of three methods, each without some cells that another has: msp has one network, energy no corruption."""
    run = fake_run(tmp_path, 4, 3, backbones=("a", "b", "c"), severities=2, protocols=("none",))
    rows = pd.read_csv(run / "results.csv", keep_default_na=False, na_values={"severity": [""]})
    kept = (rows["method"] == "msp") == (rows["backbone"] == "a")
    rows = rows[kept & ((rows["method"] != "energy") | (rows["task"] != "corruption"))]
    return rows[(rows["metric"] == "auroc") & (rows["task"] != "misclassification")].assign(column=rows["shift"])


def labels_of(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_methods_that_lack_cells_have_a_star_in_every_plot(tmp_path):
    rows = lacking(tmp_path)
    assert style.with_stars(rows) == {m: f"{m}*" for m in ("msp", "energy", "knn")}
    graded = severity.severity(rows[rows["task"] == "corruption"], ["msp", "energy", "knn"], "none")
    assert labels_of(graded) == ["msp*", "knn*"]
    assert "methods" not in graded.legends[0].get_title().get_text()
    curves = {("near", "msp"): np.linspace(0, 1, 101), ("near", "knn"): np.linspace(0, 1, 101)}
    figure = roc.roc(curves, ["msp", "energy", "knn"], {"knn": "knn*"}, "none", 12)
    assert labels_of(figure) == ["msp", "knn*"]
    assert "2 of 12 methods" in figure.legends[0].get_title().get_text()
    assert "some cells missing" in figure.legends[0].get_title().get_text()


def test_the_line_of_the_best_for_the_cost_passes_by_methods_that_lack_cells(tmp_path):
    rows = lacking(tmp_path)
    rows = rows[rows["method"] != "msp"]
    board = pd.DataFrame({"method": ["energy", "knn"], "supervision": "none", "mean": [0.9, 0.6]})
    costs = pd.DataFrame({"method": ["energy", "knn"], "ratio_to_forward": [40.0, 60.0]})
    axes = cost.cost(rows, costs, board, "none").axes[0]
    assert axes.lines[0].get_ydata().tolist() == [0.6]
    assert len([label for label in axes.get_xticklabels() if label.get_text()]) > 1


@pytest.mark.parametrize("panels", [1, 2, 4, 5, 20])
@pytest.mark.parametrize("backbone", ["mine", "vit_small_patch16_224.augreg_in21k_ft_in1k"])
def test_title_and_legend_of_histograms_do_not_meet(panels, backbone):
    sets = {name: np.ones(40) for name in ("id", "near", "far", "corruption", "errors")}
    figure = histograms.histograms({f"m{i}": sets for i in range(panels)}, f"{backbone}, protocol leave-one-out")
    FigureCanvasAgg(figure).draw()
    title, legend = figure.texts[0].get_window_extent(), figure.legends[0].get_window_extent()
    assert not title.overlaps(legend.padded(-6))
    assert title.x1 < figure.bbox.x1
    assert legend.x0 > 0


def test_cost_of_one_method_has_short_labels(tmp_path):
    run = fake_run(tmp_path, 2, 1, backbones=("cnn",), severities=1, protocols=("none",))
    results = pd.read_csv(run / "results.csv", keep_default_na=False, na_values={"severity": [""]})
    figure = cost.cost(
        results[results["metric"] == "auroc"],
        pd.read_csv(run / "timing.csv"),
        pd.DataFrame({"method": ["msp"], "supervision": ["none"], "mean": [0.63964]}),
        "none",
    )
    FigureCanvasAgg(figure).draw()
    axes = figure.axes[0]
    assert axes.yaxis.label.get_window_extent().x0 > 0
    assert len([label for label in axes.get_xticklabels() if label.get_text()]) > 1
