"""Scatter charts in PNG whose points carry their names."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import InvalidArgumentError
from ._figure import COLOURS, DPI, INK, legend_below, new_figure, save, set_title
from ._rows import Row, check_columns, formatted, half_widths, is_number, numbers

#: Distances and directions that are tried for a name, in points, the nearest first.
_DISTANCES = (6, 11, 17, 25, 35, 48, 64, 82)
_DIRECTIONS = ((1, 0), (1, 1), (1, -1), (-1, 0), (-1, 1), (-1, -1), (0, 1), (0, -1))
#: Distance in points between a name and its point from which on a line connects them.
_FAR = 14


class Box(NamedTuple):
    """A rectangle in pixels."""

    left: float
    bottom: float
    right: float
    top: float

    def overlap(self, other: Box) -> float:
        """Return the area in common."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.top, other.top) - max(self.bottom, other.bottom)
        return max(width, 0) * max(height, 0)

    def outside(self, other: Box) -> float:
        """Return the area that is not in ``other``."""
        return (self.right - self.left) * (self.top - self.bottom) - self.overlap(other)


def scatter_chart(
    rows: Sequence[Row],
    x: str,
    y: str,
    label: str,
    path: str | os.PathLike,
    title: str,
    xlabel: str,
    ylabel: str,
    errors: Mapping[str, str] | None = None,
    group: str | None = None,
) -> Path:
    """Draw one named point per row, such as clean against certified accuracy.

    Args:
        rows: One mapping per point; a row without a finite x or y is left out.
        x: Column of the horizontal coordinate.
        y: Column of the vertical coordinate.
        label: Column of the names beside the points.
        path: The PNG file; folders that are missing are made.
        title: Heading of the figure.
        xlabel: What x is, with its unit.
        ylabel: What y is, with its unit.
        errors: By ``x`` or ``y`` the column that holds the half-widths of its error bars, such as
            those of :func:`mean_interval`; a row that lacks it gets none.
        group: Column whose values give the points their colours; ``None`` gives all the same.

    Returns:
        The path.

    Raises:
        InvalidArgumentError: If a column is in none of the rows, a coordinate or half-width is
            not a number, or no row has both coordinates.

    Example:
        >>> import tempfile
        >>> rows = [{"loss": "IBP", "clean": 71.0, "union": 52.0},
        ...         {"loss": "SABR", "clean": 79.5, "union": 55.0}]
        >>> path = Path(tempfile.mkdtemp()) / "trade-off.png"
        >>> titles = "Digits", "clean (%)", "union (%)"
        >>> scatter_chart(rows, "clean", "union", "loss", path, *titles).name
        'trade-off.png'
    """
    check_columns(rows, [x, y, label] if group is None else [x, y, label, group])
    rows = [row for row in rows if not any(_missing(row.get(column)) for column in (x, y))]
    if not rows:
        raise InvalidArgumentError(
            f"rows: none has both {x!r} and {y!r}, so there is no point. Pass at least one."
        )
    points = list(zip(numbers(rows, x), numbers(rows, y)))
    widths = half_widths(rows, errors, [x, y])
    spread = list(zip(widths[x], widths[y]))
    figure, axes = _axes(title, xlabel, ylabel)
    groups = [None if group is None else formatted(row.get(group), None) for row in rows]
    kinds = list(dict.fromkeys(groups))
    for index, kind in enumerate(kinds):
        chosen = [i for i, name in enumerate(groups) if name == kind]
        colour = COLOURS[index % len(COLOURS)]
        _draw_points(axes, [points[i] for i in chosen], [spread[i] for i in chosen], kind, colour)
    if group is not None:
        legend_below(figure)
    _name_points(figure, axes, points, spread, [formatted(row.get(label), None) for row in rows])
    return save(figure, path)


def _axes(title: str, xlabel: str, ylabel: str) -> tuple:
    """Return an empty figure and its axes."""
    figure, (axes,) = new_figure(6.4, 5.2)
    set_title(axes, title)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.grid(axis="x", color="#dddddd", linewidth=0.8)
    axes.margins(0.12)  # room for the names
    return figure, axes


def _missing(value: Any) -> bool:
    """Whether a value gives a point no coordinate."""
    return value is None or (is_number(value) and not math.isfinite(value))


def _draw_points(
    axes, points: Sequence[tuple], spread: Sequence[tuple], name: str | None, colour: str
) -> None:
    """Draw the points of one group, with error bars where some half-width is not 0."""
    for axis in (0, 1):
        bars = [(point, half[axis]) for point, half in zip(points, spread) if half[axis]]
        if bars:
            (xs, ys), halves = zip(*(point for point, _ in bars)), [half for _, half in bars]
            axes.errorbar(
                xs,
                ys,
                **{"xerr" if axis == 0 else "yerr": halves},
                fmt="none",
                ecolor=colour,
                elinewidth=1.2,
                capsize=2.5,
                alpha=0.6,
            )
    axes.scatter(
        *zip(*points), s=42, color=colour, label=name, zorder=3, edgecolors="white", linewidths=0.8
    )


def _name_points(
    figure, axes, points: Sequence[tuple], spread: Sequence[tuple], names: Sequence[str]
) -> None:
    """Write each name where it covers least of points, error bars, other names and the edge."""
    figure.draw_without_rendering()  # settles where everything is
    figure.set_layout_engine("none")
    taken = [_marker(axes, point) for point in points] + [
        box for point, half in zip(points, spread) for box in _bars(axes, point, half)
    ]
    frame = Box(*axes.get_window_extent().extents)
    for point, name in zip(points, names):
        text = axes.annotate(
            name,
            point,
            (0, 0),
            textcoords="offset points",
            fontsize=8.5,
            color=INK,
            zorder=4,
            ha="left",
            va="bottom",
            annotation_clip=False,
        )
        extent = text.get_window_extent()
        corner, box = _best(_pixel(axes, point), extent.width, extent.height, taken, frame)
        text.set_position((corner[0] * 72 / DPI, corner[1] * 72 / DPI))
        taken.append(box)
        _leader(axes, point, box)


def _best(
    point: Sequence[float], width: float, height: float, taken: Sequence[Box], frame: Box
) -> tuple[tuple[float, float], Box]:
    """Return the pixel offset of a text's lower left corner, and its box, where it covers least."""
    costs: list[tuple[float, tuple[float, float], Box]] = []
    for distance in _DISTANCES:
        for right, up in _DIRECTIONS:
            step = distance * DPI / 72 / math.hypot(right, up)
            dx = right * step - {1: 0, 0: width / 2, -1: width}[right]
            dy = up * step - {1: 0, 0: height / 2, -1: height}[up]
            box = Box(point[0] + dx, point[1] + dy, point[0] + dx + width, point[1] + dy + height)
            # A little for the distance: of two free positions the nearer one is better.
            cost = sum(box.overlap(other) for other in taken) + 4 * box.outside(frame) + distance
            costs.append((cost, (dx, dy), box))
    _, offset, box = min(costs, key=itemgetter(0))
    return offset, box


def _pixel(axes, point: Sequence[float]) -> Sequence[float]:
    """Return where a point is in the figure, in pixels."""
    return axes.transData.transform(point)


def _marker(axes, point: Sequence[float]) -> Box:
    """Return what a point's marker covers."""
    (across, up), radius = _pixel(axes, point), 4 * DPI / 72
    return Box(across - radius, up - radius, across + radius, up + radius)


def _bars(axes, point: Sequence[float], half: Sequence[float]) -> list[Box]:
    """Return what a point's error bars cover."""
    left, bottom = _pixel(axes, (point[0] - half[0], point[1] - half[1]))
    right, top = _pixel(axes, (point[0] + half[0], point[1] + half[1]))
    (across, up), thick = _pixel(axes, point), 1.5 * DPI / 72
    return [
        Box(left, up - thick, right, up + thick),
        Box(across - thick, bottom, across + thick, top),
    ]


def _leader(axes, point: Sequence[float], box: Box) -> None:
    """Draw a thin line from a point to its name where that is not right beside it."""
    across, up = _pixel(axes, point)
    end = (min(max(across, box.left), box.right), min(max(up, box.bottom), box.top))
    if math.dist((across, up), end) < _FAR * DPI / 72:
        return
    axes.plot(
        *zip(point, axes.transData.inverted().transform(end)),
        color="#999999",
        linewidth=0.7,
        zorder=2,
        scalex=False,
        scaley=False,
    )
