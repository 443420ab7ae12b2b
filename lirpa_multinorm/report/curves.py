"""Curves in PNG: any series of numbers, and the log of a training run."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from ..errors import InvalidArgumentError
from ._figure import COLOURS, legend_below, new_figure, save, set_title
from ._rows import is_number

Series = Mapping[str, "tuple[Sequence[float], Sequence[float | None]]"]

STYLES = ("-", "--", ":")
_LOSSES = ("loss", "alignment", "regulari", "penalty")
_SHARES = ("accuracy", "proved", "certified", "attacked", "verified")
_SCHEDULE = ("eps_scale", "kappa")
_RATE = "learning_rate"


def line_chart(
    series: Series, path: str | os.PathLike, title: str, xlabel: str, ylabel: str
) -> Path:
    """Draw one line per series.

    Args:
        series: By name the x and the y values, of the same length; a y that is ``None`` or not
            finite is a gap.
        path: The PNG file; folders that are missing are made.
        title: Heading of the figure.
        xlabel: What x is, with its unit.
        ylabel: What y is, with its unit.

    Returns:
        The path.

    Raises:
        InvalidArgumentError: If there is nothing to draw, the lengths differ, or a value is not a
            number.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "lines.png"
        >>> series = {"IBP": ([1, 2, 4], [0.9, 0.7, None])}
        >>> line_chart(series, path, "Width", "layers", "share").name
        'lines.png'
    """
    checked = {name: _checked(name, *pair) for name, pair in series.items()}
    if not any(math.isfinite(y) for _, ys in checked.values() for y in ys):
        raise InvalidArgumentError(
            "series: holds no point to draw. Pass at least one series with a finite y."
        )
    figure, (axes,) = new_figure(7, 4.2)
    set_title(axes, title)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    _draw(axes, checked)
    if len(checked) > 1:
        legend_below(figure)
    return save(figure, path)


def learning_curves(
    log_lines: Sequence[Mapping[str, Any]], path: str | os.PathLike, title: str
) -> Path:
    """Draw the log of a training run over its epochs.

    It shows losses, shares of examples, and the schedule.

    Args:
        log_lines: One mapping per epoch, with ``epoch`` and any numbers. Keys with ``loss``,
            ``alignment``, ``regularizer`` or the like go to the first panel, ``accuracy``,
            ``region_proved_*`` and the like to the second, ``eps_scale``, ``kappa`` and
            ``learning_rate`` to the third, all other numbers but ``*seconds`` to a fourth. What an
            epoch lacks, or holds as anything but a finite number, is a gap.
        path: The PNG file; folders that are missing are made.
        title: Heading of the figure.

    Returns:
        The path.

    Raises:
        InvalidArgumentError: If a line has no epoch, or there is nothing to draw.
    """
    epochs: list[Any] = [line.get("epoch") for line in log_lines]
    if not all(map(is_number, epochs)):
        raise InvalidArgumentError(
            "log_lines: a line has no number under 'epoch'. Pass lines of one training run."
        )
    panels = _panels(log_lines)
    if not panels:
        raise InvalidArgumentError(
            f"log_lines: {len(epochs)} lines hold no number to draw. "
            "Pass those of a run that has finished an epoch."
        )
    figure, all_axes = new_figure(8, 0.9 + 2.2 * len(panels), len(panels))
    figure.suptitle(title, x=0.02, ha="left", fontsize=12, fontweight="bold")
    for axes, (kind, columns) in zip(all_axes, panels.items()):
        lines = {key.replace("_", " "): (epochs, ys) for key, ys in columns.items() if key != _RATE}
        _draw(axes, lines)
        handles = axes.get_legend_handles_labels()
        if _RATE in columns:
            handles = _second_scale(axes, epochs, columns[_RATE], handles, alone=not lines)
        # Above the panel, where no curve can be hidden behind it.
        axes.legend(
            *handles,
            loc="lower left",
            bbox_to_anchor=(-0.02, 0.98),
            ncols=4,
            frameon=False,
            fontsize=8,
        )
        _PANELS[kind][1](axes, [y for _, ys in lines.values() for y in ys if math.isfinite(y)])
        axes.set_ylabel(_PANELS[kind][0])
    all_axes[-1].set_xlabel("epoch")
    all_axes[-1].xaxis.get_major_locator().set_params(integer=True)
    figure.align_ylabels(all_axes)
    return save(figure, path)


def has_curves(log_lines: Sequence[Mapping[str, Any]]) -> bool:
    """Whether :func:`learning_curves` can draw anything of lines that all have an epoch."""
    return bool(_panels(log_lines))


def _panels(log_lines: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, list[float]]]:
    """Return the curves (NaN for a gap) by panel and key, without panels that stay empty."""
    panels: dict[str, dict[str, list[float]]] = {kind: {} for kind in _PANELS}
    for key in dict.fromkeys(key for line in log_lines for key in line):
        ys = [_or_gap(line.get(key)) for line in log_lines]
        if key != "epoch" and not key.endswith("seconds") and any(map(math.isfinite, ys)):
            panels[_kind(key)][key] = ys
    return {kind: columns for kind, columns in panels.items() if columns}


def _kind(key: str) -> str:
    """Return the panel of a key."""
    if key in _SCHEDULE or key == _RATE:
        return "schedule"
    for kind, words in (("shares", _SHARES), ("losses", _LOSSES)):
        if any(word in key for word in words):
            return kind
    return "other"


def _loss_scale(axes, values: Sequence[float]) -> None:
    """Set a logarithmic scale, linear around 0, where a few values would press the others flat."""
    if max(values, default=0) > 20 * abs(median(values or [0])):
        axes.set_yscale("symlog", linthresh=0.1)


def _share_scale(axes, values: Sequence[float]) -> None:
    """Show all of [0, 1] where the values are in it."""
    if values and min(values) >= 0 and max(values) <= 1:
        axes.set_ylim(-0.03, 1.03)


def _any_scale(axes, values: Sequence[float]) -> None:
    """Leave the scale to matplotlib."""


_PANELS = {
    "losses": ("loss", _loss_scale),
    "shares": ("share of examples", _share_scale),
    "schedule": ("factor", _share_scale),
    "other": ("value", _any_scale),
}


def _second_scale(axes, epochs: Sequence[float], rates: Sequence[float], handles, alone: bool):
    """Draw the learning rate over a scale of its own on the right.

    Returns the legend's handles and labels.
    """
    right = axes.twinx()
    right.spines[:].set_visible(False)
    right.tick_params(length=0)
    (line,) = right.plot(
        epochs, rates, color=COLOURS[5], linestyle="--", linewidth=1.8, **_marks(rates)
    )
    top = 1.1 * max(rate for rate in rates if math.isfinite(rate)) or 1
    right.set_ylim(-0.03 * top, 1.03 * top)  # 0 at the height of the left scale's 0
    right.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    right.set_ylabel("learning rate")
    if alone:
        axes.set_yticks([])
    return [*handles[0], line], [*handles[1], "learning rate (right)"]


def _draw(axes, series: Mapping[str, tuple]) -> None:
    """Draw lines, the colours first and then the styles going round."""
    for index, (name, (xs, ys)) in enumerate(series.items()):
        axes.plot(
            xs,
            ys,
            label=name,
            color=COLOURS[index % len(COLOURS)],
            linestyle=STYLES[index // len(COLOURS) % len(STYLES)],
            linewidth=1.8,
            **_marks(ys),
        )


def _marks(ys: Sequence[float]) -> dict[str, Any]:
    """Show the points where they are few, or alone between gaps, where no line would show them."""
    finite = [False, *map(math.isfinite, ys), False]
    alone = [
        index
        for index in range(len(ys))
        if finite[index + 1] and not finite[index] and not finite[index + 2]
    ]
    few = len(ys) <= 25
    if few or alone:
        return {"marker": "o", "markersize": 3.5, "markevery": None if few else alone}
    return {}


def _or_gap(value: Any) -> float:
    """Return a finite number as it is, anything else as NaN."""
    return float(value) if is_number(value) and math.isfinite(value) else math.nan


def _checked(name: str, xs: Sequence[float], ys: Sequence[float | None]) -> tuple[list, list]:
    """Return the x and the y values of a series as floats, or raise InvalidArgumentError."""
    xs, ys = list(xs), list(ys)
    if len(xs) != len(ys):
        raise InvalidArgumentError(
            f"series: {name!r} has {len(xs)} x and {len(ys)} y values. Pass pairs."
        )
    for value in [*xs, *(y for y in ys if y is not None)]:
        if not is_number(value):
            raise InvalidArgumentError(
                f"series: {name!r} holds {value!r}. Pass numbers; None as y is a gap."
            )
    return [float(x) for x in xs], [_or_gap(y) for y in ys]
