"""What the plots share: colours, lines and markers, legends, and layout in inches.

Colours are those of Okabe and Ito, which colour-blind readers can distinguish; lines also differ in dashes and markers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..tables import CELL

OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#7F7F7F")
DASHES = ((0, ()), (0, (5, 1.5)), (0, (1, 1)), (0, (5, 1.5, 1, 1.5)))
MARKERS = "osD^vP*X<>phd"
BASELINES = ("msp", "energy", "gradnorm", "confound", "confound_detector")
STAR_NOTE = "; * some cells missing"
_TOP = 6


def best_and_baselines(methods: Sequence[str]) -> list[str]:
    """The best methods, and the baselines that every paper compares with; best first."""
    return [m for place, m in enumerate(methods) if place < _TOP or m in BASELINES]


def style(method: str, chosen: Sequence[str]) -> dict[str, Any]:
    """A colour, a dash pattern and a marker; no two lines share more than one of them."""
    place = list(chosen).index(method)
    lap, colour = divmod(place, len(OKABE_ITO))
    dash = DASHES[(place + lap) % len(DASHES)]
    return {"color": OKABE_ITO[colour], "linestyle": dash, "linewidth": 1.5, "marker": MARKERS[place % len(MARKERS)]}


def legend(figure: Figure, chosen: Sequence[str], names: Mapping[str, str], title: str, of: int, **more: Any) -> None:
    """A legend for the methods in `names`, with the lines that `style` gives them among the `chosen`; `of` so many."""
    handles = [Line2D([], [], **{**style(m, chosen), **more}, label=name) for m, name in names.items()]
    title += f"\n{len(names)} of {of} methods" if len(names) < of else ""
    title += "\n* some cells missing" if any(name.endswith("*") for name in names.values()) else ""
    figure.legend(
        handles=handles, title=title, loc="center right", fontsize=8, title_fontsize=8, frameon=False, handlelength=3.5
    )


def legend_width(methods: Sequence[str]) -> float:
    return inches_of(methods, 8) + 0.75


def panels_of(count: int, width: float, height: float, beside: float, columns: int = 3) -> tuple[Figure, list[Axes]]:
    """A figure with `count` panels of `width` by `height` inches, and `beside` inches on the right for a legend."""
    columns = min(columns, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(0.35 + columns * width + beside, 0.3 + rows * height))
    panels = []
    for place in range(count):
        row, column = divmod(place, columns)
        axes = axes_at(figure, 0.65 + column * width, 0.5 + (rows - 1 - row) * height, width - 0.45, height - 0.55)
        axes.tick_params(labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
        panels.append(axes)
    return figure, panels


def axes_at(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """Axes at a position given in inches."""
    w, h = figure.get_size_inches()
    return figure.add_axes((left / w, bottom / h, width / w, height / h))


def with_stars(rows: pd.DataFrame) -> dict[str, str]:
    """By name, the starred names of the methods that lack cells that others have."""
    whole = len(rows.dropna(subset="value").drop_duplicates(CELL))
    count = rows.groupby("method")["value"].count()
    return {str(m): f"{m}*" for m in count.index[count < whole]}


def two_digits(value: float) -> str:
    """A value in [0, 1] with two digits and without the leading zero; a dash if it is missing."""
    return "–" if value != value else f"{value:.2f}".removeprefix("0")


def inches_of(names: Sequence[str], points: float) -> float:
    """The approximate width of the longest name, in inches."""
    return max(map(len, names)) * points * 0.6 / 72
