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
from .certified_tables import (
    accuracy_table,
    deciding_table,
    disagreement_rows,
    margin_table,
    radius_table,
    status_table,
)
from .comparison import cautions, facts_of, radius_curves
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
_MARGIN_NOTE = (
    "The best lower bound of each image's smallest margin, and the difference of two sets where"
    " both have one. A cascade stops at the first method that certifies, so a positive bound is"
    " seldom the tightest."
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
    title, name = "What decided the images", "deciding.png"
    radius = _draw_radii(curves, output)
    rows, columns = _bars(runs)
    stacked_bars(rows, "run", columns, output / name, title, "images")
    return {"radius": radius, "deciding": [(title, name)], "margins": _draw_margins(runs, output)}


def _draw_radii(curves: Sequence[dict[str, Any]], output: Path) -> list[tuple[str, str]]:
    """Write a figure of accuracies against the radius for each norm that has a curve."""
    pictures = []
    for norm in dict.fromkeys(curve["norm"] for curve in curves):
        series = {}
        for curve in curves:
            if curve["norm"] == norm and len(curve["points"]) > 1:
                radii = [point["eps"] for point in curve["points"]]
                for kind in ("certified", "attacked"):
                    shares = [100 * point[kind] for point in curve["points"]]
                    series[f"{curve['name']}, {kind}"] = (radii, shares)
        if series:
            name, title = f"radius_{norm}.png", f"Accuracy against the {norm} radius"
            line_chart(series, output / name, title, f"{norm} radius", "share of images (%)")
            pictures.append((title, name))
    return pictures


def _draw_margins(runs: Sequence[Run], output: Path) -> list[tuple[str, str]]:
    """Write the figures of margin bounds."""
    pictures = []
    for number, (group, sets) in enumerate(_panels(runs), 1):
        if has_margins(group, sets):
            name = f"margins_{number}.png"
            margin_figure(group, sets, output / name)
            names = ", ".join(run.name for run in group)
            pictures.append((f"Margin bounds by class: {names}", name))
    return pictures


def _bars(runs: Sequence[Run]) -> tuple[list[dict[str, Any]], list[str]]:
    """Return one row of counts per run and set, and its columns in order.

    The columns are "certified by" each method, then the other statuses.
    """
    rows: list[dict[str, Any]] = []
    order: dict[str, None] = {}
    for run in runs:
        order.update({_by(method): None for method in run.settings["methods"]})
        result = run.certification
        for name, statuses, methods in zip(run.names, result.status, result.method):
            columns = [
                _by(method) if status == CERTIFIED else status
                for status, method in zip(statuses, methods)
            ]
            rows.append({"run": f"{run.name}, {name}", **Counter(columns)})
    used = set().union(*rows)
    # Methods that no settings name: an import's.
    others = sorted(used - set(order) - set(STATUSES) - {"run"})
    return rows, [column for column in (*order, *others, *STATUSES) if column in used]


def _by(method: str) -> str:
    """Return the column of the images that a method has certified."""
    return f"certified by {method}"


def _panels(runs: Sequence[Run]) -> list[tuple[Sequence[Run], Sequence[int]]]:
    """Return which runs and sets stand in one figure of margins."""
    panels: list[tuple[Sequence[Run], Sequence[int]]] = []
    for group in comparable(runs):
        pairs: list[Sequence[int]] = list(pairs_of_sets(group[0]))
        for start in range(0, len(group), _MOST_COLUMNS):
            columns = group[start : start + _MOST_COLUMNS]
            panels += [(columns, sets) for sets in pairs or [tuple(range(len(group[0].names)))]]
    return panels


# --- text -----------------------------------------------------------------------------------------


def _as_text(
    runs: Sequence[Run],
    curves: Sequence[dict[str, Any]],
    pictures: dict[str, list[tuple[str, str]]],
) -> str:
    """Return the report in Markdown."""
    sections = ["# Certification report", "\n".join(map(_about, runs))]
    warnings = cautions(runs)
    if warnings:
        sections += ["## Read this first", "\n".join(f"- {sentence}" for sentence in warnings)]
    sections += ["## Accuracies", _NOTE]
    for group in comparable(runs):
        run = group[0]
        sections.append(f"{len(run.certification)} images; {'; '.join(run.sets)}:")
        sections.append(markdown_table(*accuracy_table(group)))
    sections += ["Statuses:", markdown_table(*status_table(runs))]
    if any(len(curve["points"]) > 1 for curve in curves):
        sections += ["## Radii", markdown_table(*radius_table(curves)), *_shown(pictures, "radius")]
    sections += [
        "## What decided",
        markdown_table(*deciding_table(runs)),
        *_shown(pictures, "deciding"),
    ]
    sections += [
        "## Margin bounds",
        _MARGIN_NOTE,
        markdown_table(*margin_table(runs)),
        *_shown(pictures, "margins"),
    ]
    rows = [row for run in runs for row in disagreement_rows(run)]
    if rows:
        sections += ["## Where the norms disagree", markdown_table(rows, list(rows[0]))]
    return "\n\n".join(sections)


def _about(run: Run) -> str:
    """Return the line of the report's list of runs."""
    result = run.certification
    return (
        f"- {run.name}: {'; '.join(run.sets)}; {len(result)} images (data"
        f" {run.header['data_sha256'][:12]}), model {run.model}, methods"
        f" {', '.join(run.settings['methods'])}, {float(result.seconds.sum()):.1f} s."
    )


def _shown(pictures: dict[str, list[tuple[str, str]]], section: str) -> list[str]:
    """Return the Markdown of a section's figures."""
    return [f"![{title}]({name})" for title, name in pictures.get(section, [])]
