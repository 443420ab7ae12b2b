"""Checks and formats of rows of results, for tables and figures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any, Callable, Union

from ..errors import InvalidArgumentError

Row = Mapping[str, Any]
Format = Union[str, Callable[[Any], str]]

MISSING = "–"


def formatted(value: Any, form: Format | None) -> str:
    """Return a value as text; ``None`` as a dash, text itself whatever the format."""
    if value is None:
        return MISSING
    if form is None or (isinstance(form, str) and isinstance(value, str)):
        return str(value)
    return form(value) if callable(form) else format(value, form)


def is_number(value: Any) -> bool:
    """Whether a value is a real number; True and False are none here."""
    return isinstance(value, Real) and not isinstance(value, bool)


def all_numbers(values: Sequence[Any]) -> bool:
    """Whether there is a value and all that are not ``None`` are numbers."""
    present = [value for value in values if value is not None]
    return bool(present) and all(map(is_number, present))


def check_columns(rows: Sequence[Row], columns: Sequence[str]) -> None:
    """Raise InvalidArgumentError unless there are columns and each is in some row."""
    if not columns:
        raise InvalidArgumentError("columns: none given. Pass the keys to show.")
    for column in columns:
        if rows and not any(column in row for row in rows):
            keys = ", ".join(dict.fromkeys(key for row in rows for key in row))
            raise InvalidArgumentError(
                f"columns: {column!r} is in none of the rows. They have: {keys}."
            )


def numbers(rows: Sequence[Row], column: str) -> list:
    """Return a column of numbers, ``None`` where a row lacks it, or raise InvalidArgumentError."""
    values = [row.get(column) for row in rows]
    if not all_numbers(values):
        raise InvalidArgumentError(
            f"columns: {column!r} holds something other than numbers. Leave it out."
        )
    return values


def half_widths(
    rows: Sequence[Row], errors: Mapping[str, str] | None, columns: Sequence[str]
) -> dict[str, list[float]]:
    """Return the symmetric error bars of each column, 0 where a row or a column has none.

    Args: as of :func:`error_bars`, whose cells are half-widths only.
    """
    return {
        column: [above for _, above in bars]
        for column, bars in error_bars(rows, errors, columns, pairs=False).items()
    }


def error_bars(
    rows: Sequence[Row],
    errors: Mapping[str, str] | None,
    columns: Sequence[str],
    pairs: bool = True,
) -> dict[str, list[tuple[float, float]]]:
    """Return the lengths of each column's error bars below and above, 0 where there is none.

    Args:
        rows: The rows.
        errors: By column, the column that holds the half-widths of its error bars, or the pairs of
            their lengths.
        columns: The columns that are drawn.
        pairs: Whether a cell may be a pair.

    Raises:
        InvalidArgumentError: If a column is unknown, or a length is no number or negative.
    """
    errors = errors or {}
    for column in errors:
        if column not in columns:
            raise InvalidArgumentError(
                f"errors: {column!r} is not drawn. Use keys among: {', '.join(columns)}."
            )
    check_columns(rows, [*columns, *errors.values()])
    lengths = {}
    for column in columns:
        cells = [row.get(errors[column]) if column in errors else None for row in rows]
        lengths[column] = [_error_bar(cell, errors.get(column, ""), pairs) for cell in cells]
    return lengths


def _error_bar(cell: Any, column: str, pairs: bool) -> tuple[float, float]:
    """Return the lengths below and above that a cell holds."""
    if cell is None:
        return 0.0, 0.0
    both = cell if pairs and isinstance(cell, tuple) and len(cell) == 2 else (cell, cell)
    if not all(is_number(length) and 0 <= length < math.inf for length in both):
        raise InvalidArgumentError(
            f"errors: {column!r} holds {cell!r}. Pass half-widths: finite numbers of at least 0, "
            "or None for no error bar."
        )
    return float(both[0]), float(both[1])
