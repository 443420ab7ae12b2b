"""One row per method, of one run or of several seeds."""

from __future__ import annotations

from collections.abc import Sequence

from ..utils.statistics import mean_interval

LABELS = ("method", "n", "runs", "seconds")
SPREAD = " ±"  # ending of the columns that hold half the width of a mean's interval


def tabulate(results: Sequence[dict]) -> list[dict]:
    """Return one row per method.

    The row of several runs holds their means, with 95 % intervals in additional columns.
    """
    table = []
    for name in dict.fromkeys(result["method"] for result in results):
        runs = [result for result in results if result["method"] == name]
        row = {column: value for column, value in runs[0].items() if column != "seed"}
        if len(runs) > 1:
            for column in [name for name in row if name not in LABELS]:
                mean, half_width = mean_interval([run[column] for run in runs])
                assert half_width is not None  # only a single run has none
                row[column], row[column + SPREAD] = round(mean, 2), round(half_width, 2)
            row["seconds"] = round(sum(run["seconds"] for run in runs) / len(runs), 1)
            row["runs"] = len(runs)
        table.append(row)
    return table


def spread_cells(table: Sequence[dict]) -> list[dict]:
    """Return the table with "mean ± half width" in one cell."""
    return [
        {
            name: f"{value} ± {row[name + SPREAD]}" if name + SPREAD in row else value
            for name, value in row.items()
        }
        for row in table
    ]
