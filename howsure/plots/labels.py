"""Labels next to points, without overlaps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

_RADII = (7, 14, 22, 32, 44, 58)
_HALO = [withStroke(linewidth=2, foreground="white")]


def label_points(
    figure: Figure, axes: Axes, x: np.ndarray, y: np.ndarray, names: Sequence[str], order: Sequence[int]
) -> int:
    """Place names next to points, in the given order, so that they cover no point and no other name.

    Returns:
        How many names found no place.
    """
    left_out = 0
    canvas = FigureCanvasAgg(figure)
    renderer = canvas.get_renderer()
    points = axes.transData.transform(np.column_stack([x, y]))
    frame = axes.bbox
    taken = np.column_stack([points - 5, points + 5])
    scale = figure.dpi / 72
    for rank, i in enumerate(order):
        text = axes.annotate(
            names[i], (x[i], y[i]), (0, 0), textcoords="offset points", fontsize=7, va="center", path_effects=_HALO
        )
        box = text.get_window_extent(renderer)
        place = _free_place(
            points[i],
            box.width,
            box.height,
            taken,
            np.asarray(frame.extents),
            scale,
            _RADII if rank < len(order) / 4 else _RADII[:4],
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
    """Left and bottom of a free box near a point, in pixels, and whether it is right next to it; None without space."""
    for radius in radii:
        for angle in np.deg2rad([0, 180, 90, 270, 30, -30, 150, 210, 60, -60, 120, 240]):
            dx, dy = np.cos(angle) * radius * scale, np.sin(angle) * radius * scale
            left = point[0] + dx - width * (1 - np.cos(angle)) / 2
            bottom = point[1] + dy - height / 2
            box = np.array([left, bottom, left + width, bottom + height])
            inside = (box[:2] >= frame[:2]).all() and (box[2:] <= frame[2:]).all()
            free = ((box[2:] <= taken[:, :2]) | (box[:2] >= taken[:, 2:])).any(axis=1).all()
            if inside and free:
                return float(left), float(bottom), radius == _RADII[0]
    return None
