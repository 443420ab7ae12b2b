"""Tables in Markdown, from rows of results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ._rows import Format, Row, all_numbers, check_columns, formatted


def markdown_table(
    rows: Sequence[Row], columns: Sequence[str], formats: Mapping[str, Format] | None = None
) -> str:
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
    check_columns(rows, columns)
    formats = formats or {}
    laid_out = []
    for column in columns:
        values = [row.get(column) for row in rows]
        cells = [_cell(column), *(_cell(formatted(value, formats.get(column))) for value in values)]
        width = max(4, *map(len, cells))
        if all_numbers(values):
            rule, cells = "-" * (width - 1) + ":", [cell.rjust(width) for cell in cells]
        else:
            rule, cells = ":" + "-" * (width - 1), [cell.ljust(width) for cell in cells]
        laid_out.append([cells[0], rule, *cells[1:]])
    return "\n".join("| " + " | ".join(line) + " |" for line in zip(*laid_out))


def _cell(text: str) -> str:
    """Return text without what would end a cell: a bar or a line break."""
    return text.replace("|", "\\|").replace("\n", " ")
