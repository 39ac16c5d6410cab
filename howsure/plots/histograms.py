"""Histograms of the scores of every method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from ..protocol import without_severity
from ..tables import ordered
from .style import OKABE_ITO, axes_at, inches_of

_COLOURS = {"near": "#D55E00", "far": "#0072B2", "corruption": "#009E73"}

_LEAST = 5.8
"""Minimal width in inches, which title and legend need."""


def histograms(panels: dict[str, dict[str, np.ndarray]], title: str) -> Figure:
    """Scores of every method: in-distribution images filled, shifted sets as outlines; each panel has its own scale.

    Scales are linear around the ID median and logarithmic far from it (asinh), since many scores have long tails.
    """
    columns = min(5, len(panels))
    rows = -(-len(panels) // columns)
    title = f"Scores, more uncertain to the right (asinh scale), {title}"
    panel = max(1.9, inches_of(list(panels), 8) + 0.1)
    width = max(0.3 + panel * columns, _LEAST, inches_of([title], 9) + 0.3)
    figure = Figure(figsize=(width, 0.65 + 1.15 * rows))
    axes = axes_at(figure, 0.15, 0.15, panel * columns, 1.15 * rows)
    axes.set(xlim=(0, columns), ylim=(rows, 0))
    axes.axis("off")
    kinds = ordered((k for heights in panels.values() for k in heights if k != "id"), tuple(_COLOURS))
    _draw_panels(axes, panels, columns, kinds)
    handles: list[Any] = [Patch(color="#BDBDBD", label="in-distribution")]
    handles += [Line2D([], [], color=_set_colour(k, kinds), linewidth=1.5, label=k) for k in kinds]
    figure.legend(handles=handles, loc="upper right", ncols=len(handles), fontsize=8, frameon=False)
    beside = inches_of([title], 9) + sum(inches_of([h.get_label()], 8) + 0.5 for h in handles) + 0.3 < width
    at_top = 1 - (0.09 if beside else 0.3) / figure.get_figheight()
    figure.text(0.15 / width, at_top, title, fontsize=9, va="top")
    return figure


def _draw_panels(axes: Axes, panels: dict[str, dict[str, np.ndarray]], columns: int, kinds: Sequence[str]) -> None:
    """Draw all panels as unit squares of one Axes object, colour by colour: one Axes object per panel would be slow."""
    outlines: dict[str, list[np.ndarray]] = {kind: [] for kind in ("id", *kinds)}
    base = []
    for place, (method, heights) in enumerate(panels.items()):
        y, x = divmod(place, columns)
        scale = 0.68 / max(h.max() for h in heights.values())
        axes.text(x + 0.04, y + 0.12, method, fontsize=8, va="center")
        base.append([(x + 0.04, y + 0.95), (x + 0.94, y + 0.95)])
        for kind, height in heights.items():
            edges = x + 0.04 + 0.9 * np.linspace(0, 1, len(height) + 1)
            steps = np.concatenate([[0], np.repeat(height, 2), [0]])
            outlines[kind].append(np.column_stack([np.repeat(edges, 2), y + 0.95 - scale * steps]))
    axes.add_collection(PolyCollection(outlines.pop("id"), facecolor="#BDBDBD"), autolim=False)
    for kind, lines in outlines.items():
        axes.add_collection(LineCollection(lines, color=_set_colour(kind, kinds), linewidth=1.1), autolim=False)
    axes.add_collection(LineCollection(base, color="black", linewidth=0.6), autolim=False)


def _set_colour(kind: str, kinds: Sequence[str]) -> str:
    return _COLOURS.get(kind, OKABE_ITO[(3 + list(kinds).index(kind)) % len(OKABE_ITO)])


def histogram(
    scores: dict[str, tuple[np.ndarray, np.ndarray]], groups: Mapping[str, str], bins: int = 40
) -> dict[str, np.ndarray]:
    """Shares per bin of ID images (`id`) and of each group of shifts; what is outside the middle 99 % is at the ends.

    Each shift is scaled by its own ID scores, which differ between shifts if a detector is fitted, or a method tuned,
    for each shift.
    """
    sets: dict[str, list[np.ndarray]] = {"id": []}
    for shift, (low, high) in scores.items():
        low, high = _squeezed(low, high)
        sets["id"].append(low)
        sets.setdefault(groups[without_severity(shift)], []).append(high)
    values = {name: np.concatenate(many) for name, many in sets.items()}
    ends = np.array([np.quantile(v, [0.005, 0.995]) for v in values.values()])
    low_end, high_end = ends[:, 0].min(), ends[:, 1].max()
    edges = np.linspace(low_end, high_end if high_end > low_end else low_end + 1, bins + 1)
    return {n: np.histogram(np.clip(v, edges[0], edges[-1]), edges)[0] / len(v) for n, v in values.items()}


def _squeezed(low: np.ndarray, high: np.ndarray) -> list[np.ndarray]:
    """asinh of the scores' distance from the median of `low`, in interquartile ranges of `low`."""
    low, high = low.astype(np.float64), high.astype(np.float64)
    quarter, middle, three = np.quantile(low, [0.25, 0.5, 0.75])
    largest = max(np.abs(low).max(), np.abs(high).max(), 1e-300)
    scale = max(three - quarter or largest * (low / largest).std() or 1.0, 1e-300 * largest)
    return [np.arcsinh((v - middle) / scale) for v in (low, high)]
