"""AUROC against the severity of corruptions."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..tables import ordered
from .style import legend, legend_width, panels_of, style, with_stars


def severity(rows: pd.DataFrame, chosen: Sequence[str], protocol: str) -> Figure:
    """AUROC against severity, for all corruptions and for each family, averaged over types and backbones."""
    stars, methods = with_stars(rows), rows["method"].nunique()
    rows = rows[rows["method"].isin(chosen)]
    families = ["all corruptions", *ordered(rows["group"])]
    if len(families) == 2:
        families = families[:1]
    figure, panels = panels_of(len(families), 3.0, 2.6, legend_width(chosen))
    for axes, family in zip(panels, families, strict=True):
        part = rows if family == "all corruptions" else rows[rows["group"] == family]
        lines = part.groupby(["method", "severity"])["value"].mean().unstack()
        for method in chosen:
            if method in lines.index:
                axes.plot(lines.columns.astype(int), lines.loc[method], **style(method, chosen), markersize=4)
        axes.axhline(0.5, color="#B0B0B0", linewidth=0.8, zorder=0)
        axes.set_title(family, fontsize=9)
        axes.set_xticks(sorted(rows["severity"].dropna().astype(int).unique()))
    _share_limits(panels)
    figure.supxlabel("severity", fontsize=9, y=0.01, va="bottom")
    figure.supylabel("AUROC", fontsize=9, x=0.01, ha="left")
    names = {m: stars.get(m, m) for m in chosen if m in set(rows["method"])}
    legend(figure, chosen, names, f"Protocol {protocol}", methods, markersize=4)
    return figure


def _share_limits(panels: Sequence[Axes]) -> None:
    low = min(axes.get_ylim()[0] for axes in panels)
    for axes in panels:
        axes.set_ylim(low, 1.02)
