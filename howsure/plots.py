"""Plots of a run, redrawn from its `results.csv`, `timing.csv` and `scores/`: PNG and SVG.

No plot mixes protocols. Colours are those of Okabe and Ito, which colour-blind readers can tell apart, each with a
line style and a marker of its own; the heat map is on cividis. Where lines are drawn, they are those of the best
methods and of the ones that every paper compares with; heat map, histograms and costs show all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.cm
import matplotlib.colors
import matplotlib.ticker
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke

from .results import CellName, cleared, read_costs, read_results, read_scores, writing
from .tables import headline, leaderboard, ordered, slug, tidy

OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#7F7F7F")
DASHES = ((0, ()), (0, (5, 1.5)), (0, (1, 1)), (0, (5, 1.5, 1, 1.5)))
MARKERS = "osD^vP*X<>phd"
BASELINES = ("msp", "energy", "gradnorm", "confound", "confound_detector")
PREFIXES = ("heatmap", "cost", "severity", "roc", "scores")
SUFFIXES = (".png", ".svg")
TOP = 6
SET_COLOURS = {"near": "#D55E00", "far": "#0072B2", "corruption": "#009E73", "errors": "#CC79A7"}
SUPERVISION = {"none": ("o", "#56B4E9"), "id-train": ("s", "#0072B2"), "outliers": ("^", "#D55E00")}
RADII = (7, 14, 22, 32, 44, 58)
HALO = [withStroke(linewidth=2, foreground="white")]
COLUMN = 0.36  # inches of a column of the heat map
STAR_NOTE = "; * some cells missing"
GRID = np.linspace(0, 1, 101)

Groups = dict[str, str]


def write_plots(folder: Path) -> list[Path]:
    """Draw `folder/plots/*.png|.svg`, in place of those of an earlier call: what results, timing and scores allow.

    Returns:
        The files written.

    Raises:
        UserError: the folder holds no results, a file that is not a table of them, or cannot be written to.
    """
    results = tidy(read_results(folder))
    costs = read_costs(folder)
    target = cleared(folder / "plots", PREFIXES, SUFFIXES)
    paths = []
    for protocol in ordered(results["protocol"]):
        for name, figure in _figures(folder, results[results["protocol"] == protocol], protocol, costs):
            paths += _save(figure, target / name)
    return paths


def _figures(folder: Path, rows: pd.DataFrame, protocol: str, costs: pd.DataFrame) -> Iterator[tuple[str, Figure]]:
    auroc = rows[rows["metric"] == "auroc"]
    shifted = auroc[auroc["task"] != "misclassification"]
    board = leaderboard(auroc, protocol)
    chosen = _chosen(board["method"].tolist())
    if len(shifted):
        yield slug("heatmap", protocol), heat_map(shifted, board["method"].tolist(), protocol)
        yield slug("cost", protocol), cost(shifted, costs, board, protocol)
    if (auroc["task"] == "corruption").any():
        yield slug("severity", protocol), severity(auroc[auroc["task"] == "corruption"], chosen, protocol)
    yield from _of_scores(folder, auroc, board, chosen, protocol)


def _of_scores(
    folder: Path, auroc: pd.DataFrame, board: pd.DataFrame, chosen: Sequence[str], protocol: str
) -> Iterator[tuple[str, Figure]]:
    """ROC curves averaged over backbones, and the histograms of each backbone's first seed."""
    groups = dict(zip(auroc["column"], headline(auroc), strict=True))
    curves: dict[tuple[str, str], list[np.ndarray]] = {}
    for backbone in ordered(auroc["backbone"]):
        seeds = sorted(auroc.loc[auroc["backbone"] == backbone, "seed"].unique())
        panels = {}
        for method in board["method"]:
            for seed in seeds if method in chosen else seeds[:1]:
                scores = read_scores(folder, CellName(backbone, int(seed), protocol, method))
                if not scores:
                    continue
                if seed == seeds[0]:
                    panels[method] = _histogram(scores, groups)
                if method in chosen:
                    for shift, (low, high) in scores.items():
                        curves.setdefault((_group(shift, groups), method), []).append(_roc(low, high))
        if panels:
            yield slug("scores", protocol, backbone), histograms(panels, f"{backbone}, protocol {protocol}")
    if curves:
        mean = {key: np.mean(many, axis=0) for key, many in curves.items()}
        yield slug("roc", protocol), roc(mean, chosen, protocol)


def heat_map(rows: pd.DataFrame, methods: Sequence[str], protocol: str) -> Figure:
    """AUROC of every method on every shift, mean over backbones and severities; below 0.5 in grey."""
    groups = ordered(rows["group"])
    columns = [(g, c) for g in groups for c in ordered(rows.loc[rows["group"] == g, "column"])]
    means = rows.groupby(["method", "group", "column"])["value"].mean().unstack([1, 2])
    means = means.reindex(index=list(methods), columns=pd.MultiIndex.from_tuples(columns))
    values = means.to_numpy()
    x = _places([g for g, _ in columns])
    starred = _starred(rows)
    names = [starred.get(m, m) for m in methods]
    left, bottom, top = _width(names, 8) + 0.25, 0.75, _width([c for _, c in columns], 8) + 0.55
    across, down = COLUMN * (x[-1] + x[0] + 1), 0.2 * len(methods)
    figure = Figure(figsize=(max(left + across + 0.3, 5.2), bottom + down + top))
    axes = _axes(figure, left, bottom, across, down)
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
        text, ink = _number(value), "white" if 0.5 <= value < 0.72 else "black"
        axes.text(float(x[j]), i, text, ha="center", va="center", fontsize=6.5, color=ink)
    axes.set(xlim=(-0.5, x[-1] + x[0] + 0.5), ylim=(len(methods) - 0.5, -0.5), yticks=range(len(methods)), xticks=x)
    axes.set_yticklabels(names, fontsize=8)
    axes.set_xticklabels([c for _, c in columns], fontsize=8, rotation=90)
    axes.tick_params(length=0, top=True, labeltop=True, bottom=False, labelbottom=False)
    axes.tick_params(axis="x", pad=14)
    axes.spines[:].set_visible(False)
    bar = _axes(figure, left, 0.38, min(across, 3), 0.1)
    figure.colorbar(matplotlib.cm.ScalarMappable(norm, colours), cax=bar, orientation="horizontal", extend="min")
    bar.set_title(
        f"AUROC, protocol {protocol}; grey: below 0.5{STAR_NOTE * bool(starred)}", fontsize=8, loc="left", pad=3
    )
    bar.tick_params(labelsize=7)
    return figure


def _places(groups: Sequence[str]) -> np.ndarray:
    """Where columns stand, in widths of a column: groups apart, each as wide as its name at least."""
    places, end = [], 0.0
    for start, stop in _runs(groups):
        spare = max(0.35, _width([groups[start]], 8.5) / COLUMN + 0.35 - (stop - start))
        places += [end + spare / 2 + i for i in range(stop - start)]
        end = places[-1] + 1 + spare / 2
    return np.array(places)


def _starred(rows: pd.DataFrame) -> dict[str, str]:
    """Names with a star of the methods that have fewer cells than others, and so other means."""
    count = rows.groupby("method")["value"].count()
    return {str(m): f"{m}*" for m in count.index[count < count.max()]}


def cost(rows: pd.DataFrame, costs: pd.DataFrame, board: pd.DataFrame, protocol: str) -> Figure:
    """The leaderboard's mean AUROC against time an image, in forward passes; the line joins the best for the cost."""
    figure = Figure(figsize=(9, 6.5))
    axes = _axes(figure, 0.75, 0.65, 8, 5.4)
    points = board.set_index("method")[["supervision", "mean"]].rename(columns={"mean": "value"})
    points = points.join(costs.groupby("method")["ratio_to_forward"].mean()).dropna()
    axes.set(xlabel="time an image / time of a forward pass (log scale)", ylabel="mean AUROC, groups of shifts alike")
    axes.set_title(f"Protocol {protocol}", loc="left", fontsize=10)
    axes.grid(color="#E5E5E5", linewidth=0.6)
    axes.set_axisbelow(True)
    if points.empty:
        axes.text(0.5, 0.5, "no timing in this run", ha="center", transform=axes.transAxes)
        return figure
    names = _cost_names(points["value"], _starred(rows))
    ratio, value = points["ratio_to_forward"].to_numpy(), np.maximum(points["value"].to_numpy(), 0.5)
    low, high = np.log10(ratio.min()), np.log10(ratio.max())
    pad = max(0.08 * (high - low), 0.05)
    span = max(value.max() - value.min(), 0.02)
    axes.set_xscale("log")
    axes.set(
        xlim=(10 ** (low - pad), 10 ** (high + 1.6 * pad)), ylim=(value.min() - 0.08 * span, value.max() + 0.1 * span)
    )
    _plain_log_ticks(axes)
    front = _front(ratio, value)
    axes.step(ratio[front], value[front], where="post", color="#7F7F7F", linewidth=1, zorder=1)
    for kind in _kinds(points["supervision"]):
        of = (points["supervision"] == kind).to_numpy()
        axes.plot(ratio[of], value[of], **_marker(kind), zorder=3)
    _supervision_legend(figure, _kinds(points["supervision"]))
    first = [*front, *(i for i, m in enumerate(points.index) if m in BASELINES)]
    left_out = _labels(figure, axes, ratio, value, names, list(dict.fromkeys([*first, *range(len(points))])))
    notes = ["* mean over fewer shifts or backbones"] if any("*" in name for name in names) else []
    notes += [f"{left_out} names left out, where they would cover others"] if left_out else []
    notes += ["below 0.5 drawn at 0.5"] if (points["value"] < 0.5).any() else []
    figure.text(0.972, 0.015, "; ".join(notes), fontsize=8, ha="right")
    return figure


def _kinds(supervision: pd.Series) -> list[str]:
    return sorted(supervision.unique(), key=lambda kind: (list(SUPERVISION).index(kind.partition("+")[0]), kind))


def _marker(kind: str) -> dict[str, Any]:
    """A marker for what a method was fitted on, hollow where its hyper-parameters were tuned on outliers."""
    base, _, tuned = kind.partition("+")
    marker, colour = SUPERVISION[base]
    inside = "white" if tuned else colour
    return {"marker": marker, "color": colour, "markerfacecolor": inside, "linestyle": "", "markersize": 5}


def _supervision_legend(figure: Figure, kinds: Sequence[str]) -> None:
    handles = [Line2D([], [], **_marker(kind), label=kind) for kind in kinds]
    handles.append(Line2D([], [], color="#7F7F7F", linewidth=1, label="best for the cost"))
    figure.legend(handles=handles, loc="upper right", ncols=len(handles), fontsize=8, frameon=False, columnspacing=1)


def _cost_names(values: pd.Series, starred: dict[str, str]) -> list[str]:
    """Names of points; one below 0.5 is drawn there, to leave room for the others, and its value is named."""
    names = map(str, values.index)
    return [starred.get(m, m) + (f" ({_number(v)})" if v < 0.5 else "") for m, v in zip(names, values, strict=True)]


def severity(rows: pd.DataFrame, chosen: Sequence[str], protocol: str) -> Figure:
    """AUROC against severity: all corruptions, then each family, mean over its types and backbones."""
    rows = rows[rows["method"].isin(chosen)]
    families = ["all corruptions", *ordered(rows["group"])]
    if len(families) == 2:
        families = families[:1]
    figure, panels = _panels(len(families), 3.0, 2.6, _legend_width(chosen))
    for axes, family in zip(panels, families, strict=True):
        part = rows if family == "all corruptions" else rows[rows["group"] == family]
        lines = part.groupby(["method", "severity"])["value"].mean().unstack()
        for method in chosen:
            if method in lines.index:
                axes.plot(lines.columns.astype(int), lines.loc[method], **_style(method, chosen), markersize=4)
        axes.axhline(0.5, color="#B0B0B0", linewidth=0.8, zorder=0)
        axes.set_title(family, fontsize=9)
        axes.set_xticks(sorted(rows["severity"].dropna().astype(int).unique()))
    _share_limits(panels)
    figure.supxlabel("severity", fontsize=9, y=0.01, va="bottom")
    figure.supylabel("AUROC", fontsize=9, x=0.01, ha="left")
    _legend(figure, chosen, f"Protocol {protocol}", markersize=4)
    return figure


def roc(curves: dict[tuple[str, str], np.ndarray], chosen: Sequence[str], protocol: str) -> Figure:
    """ROC curves by group of shifts: at each share of ID flagged, the mean share of shifted images flagged."""
    groups = [g for g in ordered(g for g, _ in curves) if g != "errors"]
    figure, panels = _panels(len(groups), 3.4, 3.4, _legend_width(chosen), columns=3)
    for axes, group in zip(panels, groups, strict=True):
        axes.plot([0, 1], [0, 1], color="#B0B0B0", linewidth=0.8, zorder=0)
        for method in chosen:
            if (group, method) in curves:
                axes.plot(GRID, curves[group, method], **{**_style(method, chosen), "marker": None})
        axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
        axes.set_title(group, fontsize=9)
    figure.supxlabel("share of in-distribution images flagged", fontsize=9, y=0.01, va="bottom")
    figure.supylabel("share of shifted images flagged", fontsize=9, x=0.01, ha="left")
    _legend(figure, chosen, f"Protocol {protocol}", marker=None)
    return figure


def histograms(panels: dict[str, dict[str, np.ndarray]], title: str) -> Figure:
    """Scores of every method: in-distribution filled, shifted sets as outlines; each panel has its own scale.

    Scales are linear around the ID median and logarithmic far from it (asinh): many scores have long tails.
    """
    columns = min(5, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(0.3 + 1.9 * columns, 0.65 + 1.15 * rows))
    axes = _axes(figure, 0.15, 0.15, 1.9 * columns, 1.15 * rows)
    axes.set(xlim=(0, columns), ylim=(rows, 0))
    axes.axis("off")
    kinds = ordered((k for heights in panels.values() for k in heights if k != "id"), tuple(SET_COLOURS))
    _draw_panels(axes, panels, columns, kinds)
    handles: list[Any] = [Patch(color="#BDBDBD", label="in-distribution")]
    handles += [Line2D([], [], color=_set_colour(k, kinds), linewidth=1.5, label=k) for k in kinds]
    figure.legend(handles=handles, loc="upper right", ncols=len(handles), fontsize=8, frameon=False)
    at_top = 1 - (0.3 if columns < 4 else 0.09) / figure.get_figheight()
    figure.text(
        0.15 / figure.get_figwidth(),
        at_top,
        f"Scores, more uncertain to the right (asinh scale), {title}",
        fontsize=9,
        va="top",
    )
    return figure


def _draw_panels(axes: Axes, panels: dict[str, dict[str, np.ndarray]], columns: int, kinds: Sequence[str]) -> None:
    """All panels on one pair of axes, a unit square each, and all of one colour at once: one axes each is slow."""
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


def _histogram(
    scores: dict[str, tuple[np.ndarray, np.ndarray]], groups: Groups, bins: int = 40
) -> dict[str, np.ndarray]:
    """Shares of ID (`id`) and of each group of shifts, by bin, over the middle 99 %; what lies outside, at the ends."""
    sets: dict[str, list[np.ndarray]] = {}
    for shift, (low, high) in scores.items():
        sets.setdefault("id", [low])
        sets.setdefault(_group(shift, groups), []).append(high)
    values = {name: np.concatenate(many).astype(np.float64) for name, many in sets.items()}
    values = dict(zip(values, _squeezed(list(values.values())), strict=True))
    ends = np.array([np.quantile(v, [0.005, 0.995]) for v in values.values()])
    low_end, high_end = ends[:, 0].min(), ends[:, 1].max()
    edges = np.linspace(low_end, high_end if high_end > low_end else low_end + 1, bins + 1)
    return {n: np.histogram(np.clip(v, edges[0], edges[-1]), edges)[0] / len(v) for n, v in values.items()}


def _squeezed(values: Sequence[np.ndarray]) -> list[np.ndarray]:
    """asinh of scores in quartile ranges from the median of the first set: linear near it, logarithmic far off."""
    quarter, middle, three = np.quantile(values[0], [0.25, 0.5, 0.75])
    scale = three - quarter or values[0].std() or 1.0
    return [np.arcsinh((v - middle) / scale) for v in values]


def _roc(id_scores: np.ndarray, shift_scores: np.ndarray) -> np.ndarray:
    """Share of shifted images flagged where a share `GRID` of ID is; ties are joined by straight lines."""
    thresholds = np.unique(np.concatenate([id_scores, shift_scores]))[::-1]
    flagged = [
        np.append(0, len(s) - np.searchsorted(np.sort(s), thresholds, "left")) / len(s)
        for s in (id_scores, shift_scores)
    ]
    curve = np.interp(GRID, flagged[0], flagged[1])
    curve[0] = 0
    return curve


def _group(shift: str, groups: Groups) -> str:
    return groups.get(shift.partition("@")[0], groups.get(shift, "far"))


def _chosen(methods: Sequence[str]) -> list[str]:
    """The best, and of the others those that every paper compares with; best first."""
    return [m for place, m in enumerate(methods) if place < TOP or m in BASELINES]


def _style(method: str, chosen: Sequence[str]) -> dict[str, Any]:
    """A colour, a dash and a marker, so that no two lines share more than one of them."""
    place = list(chosen).index(method)
    lap, colour = divmod(place, len(OKABE_ITO))
    dash = DASHES[(place + lap) % len(DASHES)]
    return {"color": OKABE_ITO[colour], "linestyle": dash, "linewidth": 1.5, "marker": MARKERS[place % len(MARKERS)]}


def _legend(figure: Figure, chosen: Sequence[str], title: str, **more: Any) -> None:
    handles = [Line2D([], [], **{**_style(m, chosen), **more}, label=m) for m in chosen]
    figure.legend(
        handles=handles, title=title, loc="center right", fontsize=8, title_fontsize=8, frameon=False, handlelength=3.5
    )


def _legend_width(methods: Sequence[str]) -> float:
    return _width(methods, 8) + 0.75


def _panels(count: int, width: float, height: float, legend: float, columns: int = 3) -> tuple[Figure, list[Axes]]:
    """A figure of `count` panels, inches each, and room on the right for a legend."""
    columns = min(columns, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(0.35 + columns * width + legend, 0.3 + rows * height))
    panels = []
    for place in range(count):
        row, column = divmod(place, columns)
        axes = _axes(figure, 0.65 + column * width, 0.5 + (rows - 1 - row) * height, width - 0.45, height - 0.55)
        axes.tick_params(labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
        panels.append(axes)
    return figure, panels


def _axes(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """Axes at a place given in inches."""
    w, h = figure.get_size_inches()
    return figure.add_axes((left / w, bottom / h, width / w, height / h))


def _share_limits(panels: Sequence[Axes]) -> None:
    low = min(axes.get_ylim()[0] for axes in panels)
    for axes in panels:
        axes.set_ylim(low, 1.02)


def _labels(
    figure: Figure, axes: Axes, x: np.ndarray, y: np.ndarray, names: Sequence[str], order: Sequence[int]
) -> int:
    """Names beside points, in that order, each where it covers no point and no other name; how many had no place."""
    left_out = 0
    canvas = FigureCanvasAgg(figure)
    renderer = canvas.get_renderer()
    points = axes.transData.transform(np.column_stack([x, y]))
    frame = axes.bbox
    taken = np.column_stack([points - 5, points + 5])
    scale = figure.dpi / 72
    for rank, i in enumerate(order):
        text = axes.annotate(
            names[i], (x[i], y[i]), (0, 0), textcoords="offset points", fontsize=7, va="center", path_effects=HALO
        )
        box = text.get_window_extent(renderer)
        place = _free_place(
            points[i],
            box.width,
            box.height,
            taken,
            np.asarray(frame.extents),
            scale,
            RADII if rank < len(order) / 4 else RADII[:4],
        )
        if place is None:
            text.remove()
            left_out += 1
            continue
        left, bottom, near = place
        text.set_position(((left - points[i, 0]) / scale, (bottom + box.height / 2 - points[i, 1]) / scale))
        taken = np.vstack([taken, [left, bottom, left + box.width, bottom + box.height]])
        if not near:
            end = np.clip(points[i], [left, bottom], [left + box.width, bottom + box.height])
            line = axes.transData.inverted().transform([points[i], end])
            axes.plot(*line.T, color="#B0B0B0", linewidth=0.5, zorder=2)
    return left_out


def _free_place(
    point: np.ndarray,
    width: float,
    height: float,
    taken: np.ndarray,
    frame: np.ndarray,
    scale: float,
    radii: Sequence[int],
) -> tuple[float, float, bool] | None:
    """Left and bottom of a free box near a point, in pixels, and whether it is next to it."""
    for radius in radii:
        for angle in np.deg2rad([0, 180, 90, 270, 30, -30, 150, 210, 60, -60, 120, 240]):
            dx, dy = np.cos(angle) * radius * scale, np.sin(angle) * radius * scale
            left = point[0] + dx - width * (1 - np.cos(angle)) / 2
            bottom = point[1] + dy - height / 2
            box = np.array([left, bottom, left + width, bottom + height])
            inside = (box[:2] >= frame[:2]).all() and (box[2:] <= frame[2:]).all()
            free = ((box[2:] <= taken[:, :2]) | (box[:2] >= taken[:, 2:])).any(axis=1).all()
            if inside and free:
                return float(left), float(bottom), radius == RADII[0]
    return None


def _front(ratio: np.ndarray, value: np.ndarray) -> list[int]:
    """Points that no other beats at less cost, by cost."""
    best, front = -np.inf, []
    for i in np.lexsort([-value, ratio]):
        if value[i] > best:
            best = value[i]
            front.append(int(i))
    return front


def _plain_log_ticks(axes: Axes) -> None:
    low, high = axes.get_xlim()
    ticks = [t for t in (0.1, 0.2, 0.5, 1, 1.1, 1.2, 1.5, 2, 3, 5, 10, 20, 50, 100, 200, 500) if low <= t <= high]
    if high / low > 4:
        ticks = [t for t in ticks if t not in (1.1, 1.2, 1.5)]
    axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
    axes.xaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())


def _runs(names: Sequence[str]) -> Iterator[tuple[int, int]]:
    start = 0
    for end in range(1, len(names) + 1):
        if end == len(names) or names[end] != names[start]:
            yield start, end
            start = end


def _set_colour(kind: str, kinds: Sequence[str]) -> str:
    return SET_COLOURS.get(kind, OKABE_ITO[(3 + list(kinds).index(kind)) % len(OKABE_ITO)])


def _number(value: float) -> str:
    """Two digits without the leading zero; a full 1 only where it is one to two digits."""
    return "–" if value != value else f"{value:.2f}".removeprefix("0")


def _width(names: Sequence[str], points: float) -> float:
    """Inches that the longest name takes, about."""
    return max(map(len, names)) * points * 0.6 / 72


def _save(figure: Figure, path: Path) -> list[Path]:
    paths = [path.with_name(f"{path.name}{suffix}") for suffix in SUFFIXES]
    with writing(path.parent), matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "howsure"}):
        figure.savefig(paths[0], dpi=150)
        figure.savefig(paths[1], metadata={"Date": None})
    return paths
