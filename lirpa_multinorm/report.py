"""Tables in Markdown and bar charts in PNG, from rows of results."""

from __future__ import annotations

import os
import textwrap
from numbers import Real
from pathlib import Path
from typing import Any, Callable, Mapping, Sequence, Union

from .errors import InvalidArgumentError
from .io import temporary_beside

Row = Mapping[str, Any]
Format = Union[str, Callable[[Any], str]]

MISSING = "–"
# Okabe and Ito's colours, which stay apart for colour-blind readers.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#444444")


def markdown_table(rows: Sequence[Row], columns: Sequence[str], formats: Mapping[str, Format] | None = None) -> str:
    """Lay out rows as a Markdown table whose source is aligned too.

    Args:
        rows: One mapping per line; what a row lacks, or holds as ``None``, is shown as a dash.
        columns: Keys to show, in this order; they are the headings.
        formats: Per column a format such as ``".1f"``, or a function from the value to text.

    Returns:
        The table, without a newline at its end. Columns of numbers are aligned to the right.

    Raises:
        InvalidArgumentError: If there are no columns, or a column is in none of the rows.

    Example:
        >>> rows = [{"loss": "ibp", "union": 81.25}, {"loss": "sabr", "union": None}]
        >>> print(markdown_table(rows, ["loss", "union"], {"union": ".1f"}))
        | loss | union |
        | :--- | ----: |
        | ibp  |  81.2 |
        | sabr |     – |
    """
    _check_columns(rows, columns)
    formats = formats or {}
    laid_out = []
    for column in columns:
        values = [row.get(column) for row in rows]
        cells = [_cell(column), *(_cell(_format(value, formats.get(column))) for value in values)]
        width = max(4, *map(len, cells))
        if _all_numbers(values):
            rule, cells = "-" * (width - 1) + ":", [cell.rjust(width) for cell in cells]
        else:
            rule, cells = ":" + "-" * (width - 1), [cell.ljust(width) for cell in cells]
        laid_out.append([cells[0], rule, *cells[1:]])
    return "\n".join("| " + " | ".join(line) + " |" for line in zip(*laid_out))


def grouped_bars(
    rows: Sequence[Row],
    columns: Sequence[str],
    path: str | os.PathLike,
    title: str,
    ylabel: str,
    formats: Mapping[str, Format] | None = None,
) -> Path:
    """Draw one group of bars per row, one bar per column, with the values on top.

    Args:
        rows: As for :func:`markdown_table`.
        columns: The first names the groups, the others are the bars.
        path: The PNG file; folders that are missing are made.
        title: Heading of the figure.
        ylabel: What the bars measure, with its unit.
        formats: Per column a format of the value on the bar; ``".3g"`` where none is given.

    Returns:
        The path.

    Raises:
        InvalidArgumentError: If there are no rows or bars, a column is in none of the rows, or
            a bar's value is not a number.
    """
    _check_columns(rows, columns)
    label, *series = columns
    if not rows or not series:
        raise InvalidArgumentError(
            f"columns: {list(columns)} with {len(rows)} rows draw no bar. "
            "Pass the column of the labels, at least one of numbers, and at least one row."
        )
    for name in series:
        if not _all_numbers([row.get(name) for row in rows]):
            raise InvalidArgumentError(f"columns: {name!r} holds something other than numbers. Leave it out.")
    inches = min(15 / len(rows), max(1.0, 4 / len(rows), 0.45 * (len(series) + 1)))  # per group
    figure, axes = _figure(1 + inches * len(rows), title, ylabel)
    width = min(0.84 / len(series), 0.6 / inches)
    for place, name in enumerate(series):
        values = [row.get(name) for row in rows]
        left = [group + (place - (len(series) - 1) / 2) * width for group in range(len(rows))]
        heights = [0 if value is None else value for value in values]
        bars = axes.bar(left, heights, width * 0.92, label=name, color=COLOURS[place % len(COLOURS)])
        form = (formats or {}).get(name, ".3g")
        texts = ["n/a" if value is None else _format(value, form) for value in values]
        axes.bar_label(bars, texts, padding=2, fontsize=8 if width * inches > 0.3 else 6, color="#333333")
    upright = inches < 0.8
    names = [textwrap.fill(_format(row.get(label), None), 24 if upright else int(inches * 11)) for row in rows]
    axes.set_xticks(range(len(rows)), names, rotation=90 if upright else 0)
    axes.set_xlim(-0.55, len(rows) - 0.45)
    axes.axhline(0, color="#333333", linewidth=1)
    if len(series) > 1:
        # Below the axes, where no bar can be hidden behind it.
        figure.legend(loc="outside lower center", ncols=min(len(series), 4), frameon=False)
    return _save(figure, Path(path))


def _figure(width: float, title: str, ylabel: str):
    """A figure of so many inches with one pair of axes."""
    # Imported here, for it is slow; a Figure of its own leaves the user's pyplot state alone.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", fontsize=12, fontweight="bold", pad=12)
    axes.set_ylabel(ylabel)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.grid(axis="y", color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.margins(y=0.1)
    return figure, axes


def _save(figure, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(path)
    try:
        figure.savefig(temporary, format="png", dpi=150, facecolor="white")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _format(value: Any, form: Format | None) -> str:
    if value is None:
        return MISSING
    if form is None or (isinstance(form, str) and isinstance(value, str)):
        return str(value)
    return form(value) if callable(form) else format(value, form)


def _cell(text: str) -> str:
    """A bar or a line break would end the cell."""
    return text.replace("|", "\\|").replace("\n", " ")


def _all_numbers(values: Sequence[Any]) -> bool:
    present = [value for value in values if value is not None]
    return bool(present) and all(
        isinstance(value, Real) and not isinstance(value, bool) for value in present
    )


def _check_columns(rows: Sequence[Row], columns: Sequence[str]) -> None:
    if not columns:
        raise InvalidArgumentError("columns: none given. Pass the keys to show.")
    for column in columns:
        if rows and not any(column in row for row in rows):
            known = ", ".join(dict.fromkeys(key for row in rows for key in row))
            raise InvalidArgumentError(f"columns: {column!r} is in none of the rows. They have: {known}.")
