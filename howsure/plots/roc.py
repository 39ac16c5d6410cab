"""ROC curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from ..tables import ordered
from .style import legend, legend_width, panels_of, style

_GRID = np.linspace(0, 1, 101)


def roc(
    curves: dict[tuple[str, str], np.ndarray],
    chosen: Sequence[str],
    stars: Mapping[str, str],
    protocol: str,
    methods: int,
) -> Figure:
    """ROC curves by group of shifts: the mean share of shifted images flagged against that of ID images flagged.

    `methods` were run, of which some are `chosen`.
    """
    groups = ordered(g for g, _ in curves)
    figure, panels = panels_of(len(groups), 3.4, 3.4, legend_width(chosen), columns=3)
    for axes, group in zip(panels, groups, strict=True):
        axes.plot([0, 1], [0, 1], color="#B0B0B0", linewidth=0.8, zorder=0)
        for method in chosen:
            if (group, method) in curves:
                axes.plot(_GRID, curves[group, method], **{**style(method, chosen), "marker": None})
        axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
        axes.set_title(group, fontsize=9)
    figure.supxlabel("share of in-distribution images flagged", fontsize=9, y=0.01, va="bottom")
    figure.supylabel("share of shifted images flagged", fontsize=9, x=0.01, ha="left")
    drawn = {method for _, method in curves}
    names = {m: stars.get(m, m) for m in chosen if m in drawn}
    legend(figure, chosen, names, f"Protocol {protocol}", methods, marker=None)
    return figure


def roc_curve(id_scores: np.ndarray, shift_scores: np.ndarray) -> np.ndarray:
    """The share of shifted images flagged at each share of ID images in `_GRID`; ties give straight lines."""
    thresholds = np.unique(np.concatenate([id_scores, shift_scores]))[::-1]
    flagged = [
        np.append(0, len(s) - np.searchsorted(np.sort(s), thresholds, "left")) / len(s)
        for s in (id_scores, shift_scores)
    ]
    curve = np.interp(_GRID, flagged[0], flagged[1])
    curve[0] = 0
    return curve
