"""The heat map: every method on every shift."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import matplotlib
import matplotlib.cm
import matplotlib.colors
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ..tables import ordered
from .style import STAR_NOTE, axes_at, inches_of, two_digits, with_stars

_COLUMN = 0.36  # width in inches


def heat_map(rows: pd.DataFrame, methods: Sequence[str], protocol: str) -> Figure:
    """AUROC of every method on every shift, averaged over backbones and severities; values below 0.5 are grey."""
    groups = ordered(rows["group"])
    columns = [(g, c) for g in groups for c in ordered(rows.loc[rows["group"] == g, "column"])]
    means = rows.groupby(["method", "group", "column"])["value"].mean().unstack([1, 2])
    means = means.reindex(index=list(methods), columns=pd.MultiIndex.from_tuples(columns))
    values = means.to_numpy()
    x = _places([g for g, _ in columns])
    stars = with_stars(rows)
    names = [stars.get(m, m) for m in methods]
    left, bottom, top = inches_of(names, 8) + 0.25, 0.75, inches_of([c for _, c in columns], 8) + 0.55
    across, down = _COLUMN * (x[-1] + x[0] + 1), 0.2 * len(methods)
    figure = Figure(figsize=(max(left + across + 0.3, 5.2), bottom + down + top))
    axes = axes_at(figure, left, bottom, across, down)
    colours = matplotlib.colormaps["cividis"].with_extremes(under="#D9D9D9", bad="white")
    norm = matplotlib.colors.Normalize(0.5, 1)
    for start, end in _runs([g for g, _ in columns]):
        edges = np.append(x[start:end] - 0.5, x[end - 1] + 0.5)
        mesh = axes.pcolormesh(edges, np.arange(len(methods) + 1) - 0.5, values[:, start:end], cmap=colours, norm=norm)
        mesh.set(edgecolor="white", linewidth=0.5)
        axes.text(
            edges.mean(), -0.62, columns[start][0], ha="center", va="bottom", fontsize=8, fontweight="bold",
            transform=axes.transData,
        )  # fmt: skip
    for (i, j), value in np.ndenumerate(values):
        text, ink = two_digits(value), "white" if 0.5 <= value < 0.72 else "black"
        axes.text(float(x[j]), i, text, ha="center", va="center", fontsize=6.5, color=ink)
    axes.set(xlim=(-0.5, x[-1] + x[0] + 0.5), ylim=(len(methods) - 0.5, -0.5), yticks=range(len(methods)), xticks=x)
    axes.set_yticklabels(names, fontsize=8)
    axes.set_xticklabels([c for _, c in columns], fontsize=8, rotation=90)
    axes.tick_params(length=0, top=True, labeltop=True, bottom=False, labelbottom=False)
    axes.tick_params(axis="x", pad=14)
    axes.spines[:].set_visible(False)
    bar = axes_at(figure, left, 0.38, min(across, 3), 0.1)
    figure.colorbar(matplotlib.cm.ScalarMappable(norm, colours), cax=bar, orientation="horizontal", extend="min")
    bar.set_title(
        f"AUROC, protocol {protocol}; grey: below 0.5{STAR_NOTE * bool(stars)}", fontsize=8, loc="left", pad=3
    )
    bar.tick_params(labelsize=7)
    return figure


def _places(groups: Sequence[str]) -> np.ndarray:
    """Positions of the columns, in column widths; groups are set apart, each at least as wide as its name."""
    places, end = [], 0.0
    for start, stop in _runs(groups):
        spare = max(0.35, inches_of([groups[start]], 8.5) / _COLUMN + 0.35 - (stop - start))
        places += [end + spare / 2 + i for i in range(stop - start)]
        end = places[-1] + 1 + spare / 2
    return np.array(places)


def _runs(names: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Start and end of each run of equal names."""
    start = 0
    for end in range(1, len(names) + 1):
        if end == len(names) or names[end] != names[start]:
            yield start, end
            start = end
