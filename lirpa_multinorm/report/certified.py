"""The report on recorded certifications: Markdown, JSON and figures."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..certification import CERTIFIED, STATUSES
from ..utils.files import ensure_writable, write_json, write_text, writing
from .bars import stacked_bars
from .comparison import ACCURACIES, cautions, facts_of, listed, radius_curves
from .curves import line_chart
from .margins import has_margins, margin_figure, margin_statistics, pairs_of_sets
from .runs import Run, Runs, comparable, load_runs
from .tables import markdown_table

_MOST_COLUMNS = 2  # models beside each other in a figure
_NOTE = (
    "Certified: proved for every point of the set. Attacked: correct, and not broken by the attack;"
    " an upper bound of what any verifier can certify, where all images were run. Shares of all n"
    " images in percent, with Wilson's 95 % interval."
)


def certification_report(runs: Runs, output: str | os.PathLike | None = None) -> str:
    """Report on recorded certifications, one or several.

    Args:
        runs: Folders with ``records.jsonl``, as ``certify_to`` writes it, or pairs of a name and a
            folder.
        output: Folder for ``report.md``, ``report.json`` and figures; None writes nothing.

    Returns:
        The report in Markdown; without ``output`` it shows no figures.

    Raises:
        InvalidArgumentError: There are no runs, or two of the same name.
        RecordsError: A folder holds no records, or they tell of no image.
        OutputFolderError: The output folder cannot be written.

    Example:
        >>> import tempfile, torch
        >>> from lirpa_multinorm import PerturbationLinf, certify_to
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2))
        >>> folder = Path(tempfile.mkdtemp()) / "linear"
        >>> x, y = torch.rand(4, 2), torch.tensor([0, 1, 0, 1])
        >>> _ = certify_to(folder, model, x, y, [PerturbationLinf(0.1)])
        >>> print(certification_report([folder]).splitlines()[2])
        - linear: l_inf ball of radius 0.1 within [0, 1]; ...
    """
    loaded = load_runs(runs)
    curves = radius_curves(loaded)
    pictures: dict[str, list[tuple[str, str]]] = {}
    if output is not None:
        output = ensure_writable(output)
        with writing(output):
            pictures = _draw(loaded, curves, output)
    text = _as_text(loaded, curves, pictures)
    if output is not None:
        content = {
            "cautions": cautions(loaded),
            "runs": [
                dict(facts_of(run), margins=margin_statistics(run), labels=run.labels)
                for run in loaded
            ],
            "comparable": [[run.name for run in group] for group in comparable(loaded)],
            "radius_curves": curves,
        }
        with writing(output):
            write_json(output / "report.json", content)
            write_text(output / "report.md", text + "\n")
    return text


# --- figures --------------------------------------------------------------------------------------


def _draw(
    runs: Sequence[Run], curves: Sequence[dict[str, Any]], output: Path
) -> dict[str, list[tuple[str, str]]]:
    """Write the figures; returns (title, file name) of each by section."""
    found: dict[str, list[tuple[str, str]]] = {"radius": [], "deciding": [], "margins": []}
    for norm in dict.fromkeys(curve["norm"] for curve in curves):
        series = {}
        for curve in curves:
            if curve["norm"] == norm and len(curve["points"]) > 1:
                radii = [point["eps"] for point in curve["points"]]
                for kind in ("certified", "attacked"):
                    series[f"{curve['name']}, {kind}"] = (
                        radii,
                        [100 * point[kind] for point in curve["points"]],
                    )
        if series:
            name, title = f"radius_{norm}.png", f"Accuracy against the {norm} radius"
            line_chart(series, output / name, title, f"{norm} radius", "share of images (%)")
            found["radius"].append((title, name))
    rows, parts = _bars(runs)
    stacked_bars(rows, "run", parts, output / "deciding.png", "What decided the images", "images")
    found["deciding"].append(("What decided the images", "deciding.png"))
    for number, (group, sets) in enumerate(_panels(runs), 1):
        if has_margins(group, sets):
            name = f"margins_{number}.png"
            margin_figure(group, sets, output / name)
            found["margins"].append(
                (f"Margin bounds by class: {', '.join(run.name for run in group)}", name)
            )
    return found


def _bars(runs: Sequence[Run]) -> tuple[list[dict[str, Any]], list[str]]:
    """Return one row per run and set, and the parts of it.

    Certified by each method, then the other statuses.
    """
    rows, order = [], {}
    for run in runs:
        order.update({_by(method): None for method in run.settings["methods"]})
        for name, statuses, methods in zip(run.names, run.found.status, run.found.method):
            parts = [
                _by(method) if status == CERTIFIED else status
                for status, method in zip(statuses, methods)
            ]
            rows.append({"run": f"{run.name}, {name}", **Counter(parts)})
    used = set().union(*rows)
    others = sorted(
        used - set(order) - set(STATUSES) - {"run"}
    )  # methods that no settings name: an import's
    return rows, [part for part in (*order, *others, *STATUSES) if part in used]


def _by(method: str) -> str:
    return f"certified by {method}"


def _panels(runs: Sequence[Run]) -> list[tuple[Sequence[Run], Sequence[int]]]:
    """Return which runs and sets stand in one figure of margins."""
    found = []
    for group in comparable(runs):
        pairs = pairs_of_sets(group[0]) or [tuple(range(len(group[0].names)))]
        for start in range(0, len(group), _MOST_COLUMNS):
            found += [(group[start : start + _MOST_COLUMNS], sets) for sets in pairs]
    return found


# --- text -----------------------------------------------------------------------------------------


def _as_text(
    runs: Sequence[Run],
    curves: Sequence[dict[str, Any]],
    pictures: dict[str, list[tuple[str, str]]],
) -> str:
    sections = ["# Certification report", "\n".join(map(_about, runs))]
    found = cautions(runs)
    if found:
        sections += ["## Read this first", "\n".join(f"- {one}" for one in found)]
    sections += ["## Accuracies", _NOTE]
    for group in comparable(runs):
        sections.append(f"{len(group[0].found)} images; {'; '.join(group[0].sets)}:")
        sections.append(markdown_table(*_accuracies(group)))
    sections += ["Statuses:", markdown_table(*_statuses(runs))]
    if any(len(curve["points"]) > 1 for curve in curves):
        sections += ["## Radii", markdown_table(*_radii(curves)), *_shown(pictures, "radius")]
    sections += ["## What decided", markdown_table(*_deciding(runs)), *_shown(pictures, "deciding")]
    sections += [
        "## Margin bounds",
        (
            "The best lower bound of each image's smallest margin, and the difference of two sets"
            " where both have one. A cascade stops at the first method that certifies, so a"
            " positive bound is seldom the tightest."
        ),
        markdown_table(*_margins(runs)),
        *_shown(pictures, "margins"),
    ]
    rows = [row for run in runs for row in _disagreement(run)]
    if rows:
        sections += ["## Where the norms disagree", markdown_table(rows, list(rows[0]))]
    return "\n\n".join(sections)


def _about(run: Run) -> str:
    return (
        f"- {run.name}: {'; '.join(run.sets)}; {len(run.found)} images (data"
        f" {run.header['data_sha256'][:12]}), model {run.model}, methods"
        f" {', '.join(run.settings['methods'])}, {float(run.found.seconds.sum()):.1f} s."
    )


def _shown(pictures: dict[str, list[tuple[str, str]]], section: str) -> list[str]:
    return [f"![{title}]({name})" for title, name in pictures.get(section, [])]


def _percent(share: float, interval: Sequence[float]) -> str:
    return f"{100 * share:.2f} ({100 * interval[0]:.1f} to {100 * interval[1]:.1f})"


def _accuracies(group: Sequence[Run]) -> tuple[list[dict[str, Any]], list[str]]:
    rows = []
    for run in group:
        summary = run.found.summary()
        row: dict[str, Any] = {"run": run.name, "model": run.model, "n": summary["n"]}
        for kind in ACCURACIES:
            shares, intervals, what = (
                summary[kind],
                summary["intervals"][kind],
                kind.replace("_", " "),
            )
            if isinstance(shares, list):
                row.update(
                    {
                        f"{what} {name}": _percent(*pair)
                        for name, *pair in zip(run.names, shares, intervals)
                    }
                )
            elif len(run.names) > 1 or kind == "clean":  # one set has no union
                row[what] = _percent(shares, intervals)
        rows.append(row)
    return rows, list(rows[0])


def _statuses(runs: Sequence[Run]) -> tuple[list[dict[str, Any]], list[str]]:
    rows = [
        {"run": run.name, "set": name, **counts}
        for run in runs
        for name, counts in zip(run.names, run.found.summary()["counts"])
    ]
    return rows, ["run", "set", *STATUSES]


def _radii(curves: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[str]]:
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


def _deciding(runs: Sequence[Run]) -> tuple[list[dict[str, Any]], list[str]]:
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


def _margins(runs: Sequence[Run]) -> tuple[list[dict[str, Any]], list[str]]:
    names = ("25 %", "median", "75 %")
    rows = [
        {
            "run": run.name,
            "what": entry["name"],
            "bounded": entry["all"]["bounded"],
            "negative": entry["all"]["negative"],
            **dict(zip(names, [f"{one:.4g}" for one in entry["all"].get("quartiles", [])])),
        }
        for run in runs
        for entry in margin_statistics(run)
    ]
    return rows, [
        one
        for one in ("run", "what", "bounded", "negative", *names)
        if any(one in row for row in rows)
    ]


def _disagreement(run: Run) -> list[dict[str, Any]]:
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
