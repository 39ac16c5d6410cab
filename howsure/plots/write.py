"""Draws a run's plots, as PNG and SVG."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ..protocol import without_severity
from ..results import CellName, cleared, read_costs, read_results, read_scores, writing
from ..tables import headline, leaderboard, ordered, slug, tidy
from .cost import cost
from .heat_map import heat_map
from .histograms import histogram, histograms
from .roc import roc, roc_curve
from .severity import severity
from .style import best_and_baselines, with_stars

_PREFIXES = ("heatmap", "cost", "severity", "roc", "scores")
_SUFFIXES = (".png", ".svg")


def write_plots(folder: Path) -> list[Path]:
    """Draw `folder/plots/*.png|.svg`, replacing those of an earlier call, as far as there are results, timings, scores.

    Returns:
        The files written.

    Raises:
        UserError: the folder contains no results, they cannot be read, or the folder cannot be written to.
    """
    results = tidy(read_results(folder))
    costs = read_costs(folder)
    target = cleared(folder / "plots", _PREFIXES, _SUFFIXES)
    paths = []
    for protocol in ordered(results["protocol"]):
        for name, figure in _figures(folder, results[results["protocol"] == protocol], protocol, costs):
            paths += _save(figure, target / name)
    return paths


def _figures(folder: Path, rows: pd.DataFrame, protocol: str, costs: pd.DataFrame) -> Iterator[tuple[str, Figure]]:
    auroc = rows[rows["metric"] == "auroc"]
    shifted = auroc[auroc["task"] != "misclassification"]
    board = leaderboard(auroc, protocol)
    chosen = best_and_baselines(board["method"].tolist())
    if len(shifted):
        yield slug("heatmap", protocol), heat_map(shifted, board["method"].tolist(), protocol)
        costly = cost(shifted, costs, board, protocol)
        if costly:
            yield slug("cost", protocol), costly
    graded = auroc[(auroc["task"] == "corruption") & auroc["severity"].notna()]
    if len(graded):
        yield slug("severity", protocol), severity(graded, chosen, protocol)
    yield from _of_scores(folder, auroc, board, chosen, protocol)


def _of_scores(
    folder: Path, auroc: pd.DataFrame, board: pd.DataFrame, chosen: Sequence[str], protocol: str
) -> Iterator[tuple[str, Figure]]:
    """The histograms of each backbone's first seed, and ROC curves averaged over backbones and seeds."""
    groups = dict(zip(auroc["shift"], headline(auroc), strict=True))
    curves: dict[tuple[str, str], list[np.ndarray]] = {}
    for backbone in ordered(auroc["backbone"]):
        seeds = sorted(auroc.loc[auroc["backbone"] == backbone, "seed"].unique())
        panels = {}
        for method in board["method"]:
            for seed in seeds if method in chosen else seeds[:1]:
                kept = read_scores(folder, CellName(backbone, int(seed), protocol, method))
                scores = {shift: pair for shift, pair in kept.items() if without_severity(shift) in groups}
                if not scores:
                    continue
                if seed == seeds[0]:
                    panels[method] = histogram(scores, groups)
                if method in chosen:
                    for shift, (low, high) in scores.items():
                        curves.setdefault((groups[without_severity(shift)], method), []).append(roc_curve(low, high))
        if panels:
            yield slug("scores", protocol, backbone), histograms(panels, f"{backbone}, protocol {protocol}")
    if curves:
        mean = {key: np.mean(many, axis=0) for key, many in curves.items()}
        stars = with_stars(auroc[auroc["task"] != "misclassification"])
        yield slug("roc", protocol), roc(mean, chosen, stars, protocol, len(board))


def _save(figure: Figure, path: Path) -> list[Path]:
    paths = [path.with_name(f"{path.name}{suffix}") for suffix in _SUFFIXES]
    with writing(path.parent), matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "howsure"}):
        figure.savefig(paths[0], dpi=150)
        figure.savefig(paths[1], metadata={"Date": None})
    return paths
