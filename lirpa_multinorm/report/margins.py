"""Margin bounds per class, for two sets and their difference.

They show how far one norm's certificates follow the other's.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Sequence
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from ..errors import InvalidArgumentError
from ._figure import COLOURS, INK, legend_below, new_figure, save
from .runs import Run

POSITIVE, NEGATIVE = COLOURS[0], COLOURS[5]


def pairs_of_sets(run: Run) -> list[tuple[int, int]]:
    """Return the pairs of sets whose norms differ."""
    norms = [perturbation.name for perturbation in run.certification.perturbations]
    return [
        (first, second)
        for first, second in itertools.combinations(range(len(norms)), 2)
        if norms[first] != norms[second]
    ]


def margin_statistics(run: Run) -> list[dict[str, Any]]:
    """Return each set's best margin bounds by class, and the differences between two sets' bounds.

    A bound is that of the method that was tried last on the image: the cascade stops where an image
    is certified. Images without a bound of every class (misclassified, broken by the attack, never
    bounded) are left out of a distribution and counted.

    Returns:
        One entry per set, and one per pair of sets of different norms: ``name``; ``sets``, their
        indices; ``values``, one per image, None where there is none; ``all``, with ``n``,
        ``bounded``, ``negative`` and of the bounded ones ``min``, ``quartiles`` and ``max``;
        ``per_class``, the same by label.
    """
    bounds = [
        [value if math.isfinite(value) else None for value in row]
        for row in run.certification.margin.tolist()
    ]
    entries = [
        _entry(f"margin, {name}", [set_index], bounds[set_index], run.labels)
        for set_index, name in enumerate(run.names)
    ]
    for first, second in pairs_of_sets(run):
        values = [
            None if minuend is None or subtrahend is None else minuend - subtrahend
            for minuend, subtrahend in zip(bounds[first], bounds[second])
        ]
        name = f"margin {run.names[first]} - margin {run.names[second]}"
        entries.append(_entry(name, [first, second], values, run.labels))
    return entries


def _entry(
    name: str, sets: list[int], values: list[float | None], labels: Sequence[int]
) -> dict[str, Any]:
    """Return an entry of :func:`margin_statistics`."""
    return {
        "name": name,
        "sets": sets,
        "values": values,
        "all": _statistics(values),
        "per_class": {
            label: _statistics([value for value, true in zip(values, labels) if true == label])
            for label in sorted(set(labels) - {-1})
        },
    }


def _statistics(values: Sequence[float | None]) -> dict[str, Any]:
    """Return counts of some images' bounds, and their distribution if there are any."""
    bounds = [value for value in values if value is not None]
    statistics: dict[str, Any] = {
        "n": len(values),
        "bounded": len(bounds),
        "negative": sum(value < 0 for value in bounds),
    }
    if bounds:
        several = len(bounds) > 1
        statistics.update(
            min=min(bounds),
            max=max(bounds),
            quartiles=quantiles(bounds, n=4, method="inclusive") if several else bounds * 3,
        )
    return statistics


def margin_figure(runs: Sequence[Run], sets: Sequence[int], path: str | os.PathLike) -> Path:
    """Draw margin bounds by class, one column per run, negative ones in another colour.

    Args:
        runs: Runs against the same sets, beside each other.
        sets: Indices of the sets, a row each; below them the difference of any two of different
            norms.
        path: The PNG file; folders that are missing are made.

    Returns:
        The path.

    Raises:
        InvalidArgumentError: No image of any run has a bound.

    Source: after the bound differences of Jiang and Singh 2024 (CURE), with one margin per image,
        the smallest.
    """
    if not has_margins(runs, sets):
        raise InvalidArgumentError(
            "runs: no image of them has a margin bound to draw; certify with at least one method"
        )
    entries = [
        [entry for entry in margin_statistics(run) if set(entry["sets"]) <= set(sets)]
        for run in runs
    ]
    rows = list(zip(*entries))
    figure, axes = new_figure(
        max(7.0, 5.2 * len(runs)), 0.8 + 2.3 * len(rows), len(rows), len(runs)
    )
    for index, row in enumerate(rows):
        panels = axes[index * len(runs) : (index + 1) * len(runs)]
        values = [value for entry in row for value in entry["values"] if value is not None]
        _scale(panels[0], values)
        for panel, run, entry in zip(panels, runs, row):
            _strip(panel, run, entry)
        panels[0].set_ylabel(row[0]["name"].replace(" - ", "\n- "), fontsize=8)
    for panel, run in zip(axes, runs):
        panel.set_title(run.name, loc="left", fontsize=11, fontweight="bold")
    for panel in axes[-len(runs) :]:
        panel.set_xlabel("class")
    for colour, name in ((POSITIVE, "at least 0"), (NEGATIVE, "negative")):
        axes[0].scatter([], [], color=colour, label=name)
    axes[0].plot([], [], color=INK, linewidth=2, label="median of the class")
    legend_below(figure)
    return save(figure, path)


def has_margins(runs: Sequence[Run], sets: Sequence[int]) -> bool:
    """Whether :func:`margin_figure` has anything to draw."""
    return any(bool(run.certification.margin[list(sets)].isfinite().any()) for run in runs)


def _strip(axes, run: Run, entry: dict[str, Any]) -> None:
    """Draw the values of one run by class, spread sideways so that they can be told apart."""
    labels = sorted(entry["per_class"])
    axes.set_xticks(range(len(labels)), [str(label) for label in labels])
    axes.axhline(0, color=INK, linewidth=1)
    for center, label in enumerate(labels):
        values = sorted(
            value
            for value, true in zip(entry["values"], run.labels)
            if true == label and value is not None
        )
        if not values:
            continue
        across = [center + 0.6 * ((i * 0.618034) % 1 - 0.5) for i in range(len(values))]
        axes.scatter(
            across,
            values,
            s=7,
            linewidths=0,
            alpha=0.7,
            color=[NEGATIVE if value < 0 else POSITIVE for value in values],
        )
        axes.plot([center - 0.36, center + 0.36], [median(values)] * 2, color=INK, linewidth=2)
    n, bounded, negative = (entry["all"][name] for name in ("n", "bounded", "negative"))
    axes.text(
        0.995,
        1.01,
        f"{negative} of {bounded} negative; {n - bounded} without a bound",
        transform=axes.transAxes,
        ha="right",
        va="bottom",
        fontsize=7,
        color=INK,
    )


def _scale(axes, values: Sequence[float]) -> None:
    """Set a logarithmic scale, linear around 0, where a few values would press the others flat."""
    sizes = [abs(value) for value in values]
    if sizes and max(sizes) > 20 * median(sizes):
        axes.set_yscale("symlog", linthresh=max(median(sizes), 1e-6))
