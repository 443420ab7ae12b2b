"""Bar charts in PNG, from rows of results."""

from __future__ import annotations

import math
import os
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..errors import InvalidArgumentError
from ._figure import COLOURS, INK, legend_below, new_figure, save, set_title
from ._rows import Format, Row, check_columns, error_bars, formatted, numbers

HATCHES = ("", "///", "xxx")


def grouped_bars(
    rows: Sequence[Row],
    columns: Sequence[str],
    path: str | os.PathLike,
    title: str,
    ylabel: str,
    formats: Mapping[str, Format] | None = None,
    errors: Mapping[str, str] | None = None,
) -> Path:
    """Draw one group of bars per row, one bar per column, with the values on top.

    Args:
        rows: As for :func:`markdown_table`.
        columns: The first names the groups, the others are the bars.
        path: The PNG file; folders that are missing are made.
        title: Heading of the figure.
        ylabel: What the bars measure, with its unit.
        formats: Per column a format of the value on the bar; ``".3g"`` where none is given.
        errors: Per column of bars the column that holds the half-widths of their error bars, such
            as those of :func:`mean_interval`, or pairs of their lengths below and above; a row
            that lacks it gets none.

    Returns:
        The path.

    Raises:
        InvalidArgumentError: If there are no rows or bars, a column is in none of the rows, or
            a bar's value or half-width is not a number.
    """
    check_columns(rows, columns)
    label, *series = columns
    if not rows or not series:
        raise InvalidArgumentError(
            f"columns: {list(columns)} with {len(rows)} rows draw no bar. "
            "Pass the column of the labels, at least one of numbers, and at least one row."
        )
    values = {name: numbers(rows, name) for name in series}
    lengths = error_bars(rows, errors, series)
    inches = min(15 / len(rows), max(1.0, 4 / len(rows), 0.45 * (len(series) + 1)))  # per group
    figure, (axes,) = new_figure(1 + inches * len(rows), 4.2)
    set_title(axes, title)
    axes.set_ylabel(ylabel)
    axes.margins(y=0.1)
    width = min(0.84 / len(series), 0.6 / inches)
    for index, name in enumerate(series):
        offset = (index - (len(series) - 1) / 2) * width
        bars = _draw_bars(axes, offset, width, values[name], lengths[name], name, index)
        form = (formats or {}).get(name, ".3g")
        texts = ["n/a" if value is None else formatted(value, form) for value in values[name]]
        axes.bar_label(bars, texts, padding=2, fontsize=8 if width * inches > 0.3 else 6, color=INK)
    _name_groups(axes, [formatted(row.get(label), None) for row in rows], inches)
    if len(series) > 1:
        legend_below(figure)
    return save(figure, path)


def _draw_bars(
    axes,
    offset: float,
    width: float,
    values: Sequence[float | None],
    lengths: Sequence[tuple[float, float]],
    name: str,
    index: int,
):
    """Draw and return the bars of one column, beside the middle of each group, with error bars.

    A value that is None has a bar of no height, and no error bar.
    """
    heights = [0 if value is None else value for value in values]
    errors = [(0.0, 0.0) if value is None else pair for value, pair in zip(values, lengths)]
    return axes.bar(
        [group + offset for group in range(len(values))],
        heights,
        width * 0.92,
        label=name,
        color=COLOURS[index % len(COLOURS)],
        yerr=list(zip(*errors)) if any(map(any, errors)) else None,
        ecolor=INK,
    )


def stacked_bars(
    rows: Sequence[Row],
    label: str,
    parts: Sequence[str],
    path: str | os.PathLike,
    title: str,
    xlabel: str,
) -> Path:
    """Draw a horizontal bar per row, of parts end to end, with their values where they fit.

    Args:
        rows: One mapping per bar, the first on top; a part that a row lacks has no length.
        label: Column of the bars' names.
        parts: Columns of the parts' lengths, of at least 0, in order.
        path: The PNG file; folders that are missing are made.
        title: Heading of the figure.
        xlabel: What the lengths are, with their unit.

    Returns:
        The path.

    Raises:
        InvalidArgumentError: If there are no rows or parts, a column is in none of the rows, or a
            length is negative or no number.
    """
    check_columns(rows, [label, *parts])
    if not rows or not parts:
        raise InvalidArgumentError(
            f"parts: {list(parts)} with {len(rows)} rows draw no bar. Pass at least one each."
        )
    lengths = {name: [value or 0 for value in numbers(rows, name)] for name in parts}
    for name in parts:
        if not all(0 <= value < math.inf for value in lengths[name]):
            raise InvalidArgumentError(
                f"parts: {name!r} holds {min(lengths[name])}; pass finite lengths of at least 0"
            )
    figure, (axes,) = new_figure(9, 1.6 + 0.42 * len(rows) + 0.25 * math.ceil(len(parts) / 4))
    set_title(axes, title)
    axes.set_xlabel(xlabel)
    axes.grid(axis="y", visible=False)
    _stack_bars(axes, lengths, len(rows))
    names = [textwrap.fill(formatted(row.get(label), None), 40) for row in rows]
    axes.set_yticks(range(len(rows)), names)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    legend_below(figure)
    return save(figure, path)


def _stack_bars(axes, lengths: Mapping[str, Sequence[float]], count: int) -> None:
    """Draw ``count`` horizontal bars, whose parts have the lengths given by name."""
    starts, longest = [0.0] * count, max(map(sum, zip(*lengths.values()))) or 1
    for index, (name, widths) in enumerate(lengths.items()):
        bars = axes.barh(
            range(count),
            widths,
            left=starts,
            height=0.72,
            label=name,
            color=COLOURS[index % len(COLOURS)],
            edgecolor="white",
            linewidth=0.8,
            hatch=HATCHES[index // len(COLOURS) % len(HATCHES)],
        )
        texts = [f"{value:g}" if value > 0.04 * longest else "" for value in widths]
        axes.bar_label(bars, texts, label_type="center", fontsize=8, color=INK)
        starts = [start + value for start, value in zip(starts, widths)]
    axes.set_xlim(0, longest)


def _name_groups(axes, names: Sequence[str], inches: float) -> None:
    """Write the names under the groups, upright where a group is narrow."""
    upright = inches < 0.8
    names = [textwrap.fill(name, 24 if upright else int(inches * 11)) for name in names]
    axes.set_xticks(range(len(names)), names, rotation=90 if upright else 0)
    axes.set_xlim(-0.55, len(names) - 0.45)
    axes.axhline(0, color=INK, linewidth=1)
