"""The cost plot: AUROC against time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib.ticker
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from .labels import label_points
from .style import BASELINES, axes_at, two_digits, with_stars

_SUPERVISION = {"none": ("o", "#56B4E9"), "id-train": ("s", "#0072B2"), "outliers": ("^", "#D55E00")}


def cost(rows: pd.DataFrame, costs: pd.DataFrame, board: pd.DataFrame, protocol: str) -> Figure | None:
    """The leaderboard's mean AUROC against the time per image, in forward passes; None if nothing was timed.

    The line connects the methods that no cheaper one beats. It leaves out those that lack cells, since their means are
    not comparable.
    """
    points = board.set_index("method")[["supervision", "mean"]].rename(columns={"mean": "value"})
    points = points.join(costs.groupby("method")["ratio_to_forward"].mean()).dropna()
    if points.empty:
        return None
    figure = Figure(figsize=(9, 6.5))
    axes = axes_at(figure, 0.75, 0.65, 8, 5.4)
    axes.set(xlabel="time per image / time of a forward pass (log scale)", ylabel="mean AUROC over groups of shifts")
    axes.set_title(f"Protocol {protocol}", loc="left", fontsize=10)
    axes.grid(color="#E5E5E5", linewidth=0.6)
    axes.set_axisbelow(True)
    stars = with_stars(rows)
    names = _cost_names(points["value"], stars)
    ratio, value = points["ratio_to_forward"].to_numpy(), np.maximum(points["value"].to_numpy(), 0.5)
    left, right = _apart(np.log10(ratio), 0.4)
    low, high = _apart(value, 0.05)
    pad, span = 0.08 * (right - left), high - low
    axes.set_xscale("log")
    axes.set(xlim=(10 ** (left - pad), 10 ** (right + 1.6 * pad)), ylim=(low - 0.08 * span, high + 0.1 * span))
    _plain_log_ticks(axes)
    (whole,) = np.nonzero(~points.index.isin(list(stars)))
    front = whole[_front(ratio[whole], value[whole])]
    axes.step(ratio[front], value[front], where="post", color="#7F7F7F", linewidth=1, zorder=1)
    for kind in _kinds(points["supervision"]):
        of = (points["supervision"] == kind).to_numpy()
        axes.plot(ratio[of], value[of], **_marker(kind), zorder=3)
    _supervision_legend(figure, _kinds(points["supervision"]))
    first = [*front, *(i for i, m in enumerate(points.index) if m in BASELINES)]
    left_out = label_points(figure, axes, ratio, value, names, list(dict.fromkeys([*first, *range(len(points))])))
    notes = ["* mean over fewer shifts or backbones"] if any("*" in name for name in names) else []
    notes += [f"{left_out} names omitted for lack of space"] if left_out else []
    notes += ["below 0.5 drawn at 0.5"] if (points["value"] < 0.5).any() else []
    figure.text(0.972, 0.015, "; ".join(notes), fontsize=8, ha="right")
    return figure


def _apart(values: np.ndarray, least: float) -> tuple[float, float]:
    """The smallest and the largest value, moved apart if they are closer than `least`, to leave room for ticks."""
    middle, half = (values.min() + values.max()) / 2, max(np.ptp(values), least) / 2
    return float(middle - half), float(middle + half)


def _kinds(supervision: pd.Series) -> list[str]:
    return sorted(supervision.unique(), key=lambda kind: (list(_SUPERVISION).index(kind.partition("+")[0]), kind))


def _marker(kind: str) -> dict[str, Any]:
    """A marker for what a method was fitted on, hollow if its hyper-parameters were tuned on outliers."""
    base, _, tuned = kind.partition("+")
    marker, colour = _SUPERVISION[base]
    inside = "white" if tuned else colour
    return {"marker": marker, "color": colour, "markerfacecolor": inside, "linestyle": "", "markersize": 5}


def _supervision_legend(figure: Figure, kinds: Sequence[str]) -> None:
    handles = [Line2D([], [], linestyle="", label="supervision:")]
    handles += [Line2D([], [], **_marker(kind), label=kind) for kind in kinds]
    handles.append(Line2D([], [], color="#7F7F7F", linewidth=1, label="best at its cost"))
    figure.legend(handles=handles, loc="upper right", ncols=len(handles), fontsize=8, frameon=False, columnspacing=1)


def _cost_names(values: pd.Series, starred: dict[str, str]) -> list[str]:
    """The points' labels; those below 0.5, which are drawn at 0.5, include their value."""
    names = map(str, values.index)
    return [starred.get(m, m) + (f" ({two_digits(v)})" if v < 0.5 else "") for m, v in zip(names, values, strict=True)]


def _front(ratio: np.ndarray, value: np.ndarray) -> list[int]:
    """Indices of the points that no cheaper one beats, by cost."""
    best, front = -np.inf, []
    for i in np.lexsort([-value, ratio]):
        if value[i] > best:
            best = value[i]
            front.append(int(i))
    return front


def _plain_log_ticks(axes: Axes) -> None:
    low, high = axes.get_xlim()
    steps = (1, 2, 5) if high / low > 30 else (1, 2, 3, 5) if high / low > 4 else (1, 1.1, 1.2, 1.5, 2, 3, 5, 7)
    ticks = [t for power in range(-3, 6) for step in steps if low <= (t := step * 10.0**power) <= high]
    axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
    axes.xaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
