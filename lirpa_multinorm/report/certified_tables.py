"""The tables of the report on recorded certifications."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..certification import STATUSES
from .comparison import ACCURACIES, facts_of, listed
from .margins import margin_statistics
from .runs import Run

#: Rows, and the columns to show in order.
Table = tuple[list[dict[str, Any]], list[str]]


def _percent(share: float, interval: Sequence[float]) -> str:
    """Return a share and its interval in percent."""
    return f"{100 * share:.2f} ({100 * interval[0]:.1f} to {100 * interval[1]:.1f})"


def accuracy_table(group: Sequence[Run]) -> Table:
    """Return one row of accuracies per run, for runs on the same images and sets."""
    rows = []
    for run in group:
        summary = run.certification.summary()
        row: dict[str, Any] = {"run": run.name, "model": run.model, "n": summary["n"]}
        for kind in ACCURACIES:
            shares, intervals = summary[kind], summary["intervals"][kind]
            column = kind.replace("_", " ")
            if isinstance(shares, list):
                for name, share, interval in zip(run.names, shares, intervals):
                    row[f"{column} {name}"] = _percent(share, interval)
            elif len(run.names) > 1 or kind == "clean":  # a single set has no union
                row[column] = _percent(shares, intervals)
        rows.append(row)
    return rows, list(rows[0])


def status_table(runs: Sequence[Run]) -> Table:
    """Return how many images have each status, one row per run and set."""
    rows = [
        {"run": run.name, "set": name, **counts}
        for run in runs
        for name, counts in zip(run.names, run.certification.summary()["counts"])
    ]
    return rows, ["run", "set", *STATUSES]


def radius_table(curves: Sequence[dict[str, Any]]) -> Table:
    """Return one row per point of the curves that have several."""
    rows = [
        {
            "model": curve["name"],
            "norm": curve["norm"],
            "radius": f"{point['eps']:g}",
            "n": curve["n"],
            "certified": _percent(point["certified"], point["certified_interval"]),
            "attacked": _percent(point["attacked"], point["attacked_interval"]),
            "run": point["run"],
        }
        for curve in curves
        if len(curve["points"]) > 1
        for point in curve["points"]
    ]
    return rows, list(rows[0])


def deciding_table(runs: Sequence[Run]) -> Table:
    """Return how many images each method has decided, by run, set and status."""
    rows = []
    for run in runs:
        for row in facts_of(run)["deciding"]:
            rows += [
                {
                    "run": run.name,
                    "set": row["set"],
                    "status": row["status"],
                    "by": method or "–",
                    "images": count,
                }
                for method, count in row["by"].items()
            ]
    return rows, list(rows[0])


def margin_table(runs: Sequence[Run]) -> Table:
    """Return counts and quartiles of margin bounds, one row per entry of the statistics."""
    names = ("25 %", "median", "75 %")
    rows = [
        {
            "run": run.name,
            "what": entry["name"],
            "bounded": entry["all"]["bounded"],
            "negative": entry["all"]["negative"],
            **dict(zip(names, [f"{value:.4g}" for value in entry["all"].get("quartiles", [])])),
        }
        for run in runs
        for entry in margin_statistics(run)
    ]
    columns = ("run", "what", "bounded", "negative", *names)
    return rows, [column for column in columns if any(column in row for row in rows)]


def disagreement_rows(run: Run) -> list[dict[str, Any]]:
    """Return one row per ordered pair of a run's sets."""
    return [
        {
            "run": run.name,
            "certified for": row["certified"],
            "not for": row["not_certified"],
            "images": row["count"],
            "there they are": (
                ", ".join(f"{count} {status}" for status, count in row["there"].items()) or None
            ),
            "which": listed(row["images"]) or None,
        }
        for row in facts_of(run)["disagreement"]
    ]
