"""The table of a comparison: names of its columns, percentages of a network, and its files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..perturbations.described import AnySet
from ..report import grouped_bars, markdown_table
from ..report.methods import LABELS, SPREAD, spread_cells
from ..utils.files import write_json, write_text
from ..utils.statistics import proportion_interval


def set_names(perturbations: Sequence[AnySet]) -> list[str]:
    """Return a name per set: its norm, and its radius too where several sets have that norm."""
    names = [perturbation.name for perturbation in perturbations]
    return [
        perturbation.label if names.count(name) > 1 else name
        for name, perturbation in zip(names, perturbations)
    ]


def percentages(summary: Mapping[str, Any], perturbations: Sequence[AnySet]) -> dict[str, Any]:
    """Return a network's cells of the table.

    Args:
        summary: :meth:`~lirpa_multinorm.certification.Certification.summary` of the network.
        perturbations: The sets that it was certified against.
    """
    per_set = {
        f"certified {name}": _percent(share)
        for name, share in zip(set_names(perturbations), summary["certified"])
    }
    return {
        "clean": _percent(summary["clean"]),
        **per_set,
        "certified union": _percent(summary["certified_union"]),
        "attacked union": _percent(summary["attacked_union"]),
        "n": summary["n"],
    }


def _percent(share: float) -> float:
    return round(100 * share, 2)


def write_table(
    folder: Path,
    table: Sequence[dict],
    content: Mapping[str, Any],
    data: str,
    perturbations: Sequence[AnySet],
) -> None:
    """Write the table as JSON, Markdown and PNG.

    Args:
        folder: Where to write table.json, table.md and table.png.
        table: The rows.
        content: What table.json has beside the rows.
        data: Name of the data set, for the figure's title.
        perturbations: The sets, for the figure's title.
    """
    write_json(folder / "table.json", {"rows": table, **content})
    columns = [name for name in table[0] if not name.endswith(SPREAD)]
    write_text(folder / "table.md", markdown_table(spread_cells(table), columns) + "\n")
    sets = ", ".join(perturbation.label for perturbation in perturbations)
    bars = ["method", *[name for name in columns if name not in LABELS]]
    errors = {name: name + SPREAD for name in bars[1:]}
    grouped_bars(
        [_with_spread(row, bars[1:]) for row in table],
        bars,
        folder / "table.png",
        f"{data}: {sets} (n = {table[0]['n']})",
        "% of test images",
        errors=errors,
    )


def _with_spread(row: Mapping[str, Any], columns: Sequence[str]) -> dict[str, Any]:
    """Return a row with the lengths of an error bar beside each percentage.

    Of a single run it shows Wilson's interval of a share of n images; a mean of runs has its own.
    """
    spread = dict(row)
    for column in columns:
        low, high = proportion_interval(round(row[column] * row["n"] / 100), row["n"])
        lengths = max(0.0, row[column] - 100 * low), max(0.0, 100 * high - row[column])
        spread.setdefault(column + SPREAD, lengths)
    return spread
