"""Margin bounds per class, for two sets and their difference.

How far one norm's certificates follow the other's.
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
    norms = [one.norm for one in run.found.perturbations]
    return [
        (one, other)
        for one, other in itertools.combinations(range(len(norms)), 2)
        if norms[one] != norms[other]
    ]


def margin_statistics(run: Run) -> list[dict[str, Any]]:
    """Return each set's best margin bounds by class, and the differences between two sets' bounds.

    A bound is that of the method that was tried last on the image: the cascade stops where an image
    is certified. Images without a bound of every class (misclassified, broken by the attack, never
    bounded) are left out of a distribution and counted.

    Returns:
        One entry per set, and one per pair of sets of different norms: ``name``; ``sets``, the
        places; ``values``, one per image, None where there is none; ``all``, with ``n``,
        ``bounded``, ``negative`` and of the bounded ones ``min``, ``quartiles`` and ``max``;
        ``per_class``, the same by label.
    """
    each = [
        [value if math.isfinite(value) else None for value in row]
        for row in run.found.margin.tolist()
    ]
    entries = [
        {"name": f"margin, {name}", "sets": [place], "values": each[place]}
        for place, name in enumerate(run.names)
    ]
    for one, other in pairs_of_sets(run):
        values = [
            None if None in both else both[0] - both[1] for both in zip(each[one], each[other])
        ]
        entries.append(
            {
                "name": f"margin {run.names[one]} - margin {run.names[other]}",
                "sets": [one, other],
                "values": values,
            }
        )
    for entry in entries:
        entry["all"] = _statistics(entry["values"])
        entry["per_class"] = {
            label: _statistics(
                [value for value, own in zip(entry["values"], run.labels) if own == label]
            )
            for label in sorted(set(run.labels) - {-1})
        }
    return entries


def _statistics(values: Sequence[float | None]) -> dict[str, Any]:
    known = [value for value in values if value is not None]
    found = {"n": len(values), "bounded": len(known), "negative": sum(value < 0 for value in known)}
    if known:
        found.update(
            min=min(known),
            max=max(known),
            quartiles=quantiles(known, n=4, method="inclusive") if len(known) > 1 else known * 3,
        )
    return found


def margin_figure(runs: Sequence[Run], sets: Sequence[int], path: str | os.PathLike) -> Path:
    """Draw margin bounds by class, one column per run, negative ones in another colour.

    Args:
        runs: Runs against the same sets, beside each other.
        sets: Places of the sets, a row each; below them the difference of any two of different
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
    rows = list(
        zip(
            *(
                [entry for entry in margin_statistics(run) if set(entry["sets"]) <= set(sets)]
                for run in runs
            )
        )
    )
    figure, axes = new_figure(
        max(7.0, 5.2 * len(runs)), 0.8 + 2.3 * len(rows), len(rows), len(runs)
    )
    for place, entries in enumerate(rows):
        line = axes[place * len(runs) : (place + 1) * len(runs)]
        _scale(
            line[0], [value for entry in entries for value in entry["values"] if value is not None]
        )
        for one, run, entry in zip(line, runs, entries):
            _strip(one, run, entry)
        line[0].set_ylabel(entries[0]["name"].replace(" - ", "\n- "), fontsize=8)
    for one, run in zip(axes, runs):
        one.set_title(run.name, loc="left", fontsize=11, fontweight="bold")
    for one in axes[-len(runs) :]:
        one.set_xlabel("class")
    for colour, name in ((POSITIVE, "at least 0"), (NEGATIVE, "negative")):
        axes[0].scatter([], [], color=colour, label=name)
    axes[0].plot([], [], color=INK, linewidth=2, label="median of the class")
    legend_below(figure, 3)
    return save(figure, path)


def has_margins(runs: Sequence[Run], sets: Sequence[int]) -> bool:
    """Whether :func:`margin_figure` has anything to draw."""
    return any(bool(run.found.margin[list(sets)].isfinite().any()) for run in runs)


def _strip(axes, run: Run, entry: dict[str, Any]) -> None:
    """Draw the values of one run by class, spread sideways so that they can be told apart."""
    labels = sorted(entry["per_class"])
    axes.set_xticks(range(len(labels)), [str(label) for label in labels])
    axes.axhline(0, color=INK, linewidth=1)
    for at, label in enumerate(labels):
        values = sorted(
            value
            for value, own in zip(entry["values"], run.labels)
            if own == label and value is not None
        )
        if not values:
            continue
        across = [at + 0.6 * ((place * 0.618034) % 1 - 0.5) for place in range(len(values))]
        axes.scatter(
            across,
            values,
            s=7,
            linewidths=0,
            alpha=0.7,
            color=[NEGATIVE if value < 0 else POSITIVE for value in values],
        )
        axes.plot([at - 0.36, at + 0.36], [median(values)] * 2, color=INK, linewidth=2)
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
    """A logarithmic scale, linear around 0, where a few values would press the others flat."""
    sizes = [abs(value) for value in values]
    if sizes and max(sizes) > 20 * median(sizes):
        axes.set_yscale("symlog", linthresh=max(median(sizes), 1e-6))
