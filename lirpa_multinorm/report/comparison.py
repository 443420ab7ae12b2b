"""The results of recorded certifications, alone and beside each other, as plain data."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Sequence
from typing import Any, cast

from ..certification import CERTIFIED, ERROR, FALSIFIED, STATUSES
from ..perturbations import PerturbationLpBox
from ..perturbations.described import has_radius
from .runs import Run, comparable

#: Kinds of accuracy of a certification, as in its summary.
ACCURACIES = ("clean", "certified", "certified_union", "attacked", "attacked_union")


def facts_of(run: Run) -> dict[str, Any]:
    """Return the results of a run.

    Returns:
        The summary's values, and what the run is of; ``deciding``, counts by set, status and
        method; ``disagreement``, one entry per ordered pair of sets.
    """
    return {
        "name": run.name,
        "folder": run.folder,
        "model_sha256": run.header["model_sha256"],
        "data_sha256": run.header["data_sha256"],
        "settings": run.settings,
        "environment": run.header.get("environment"),
        "names": run.names,
        **run.certification.summary(),
        "damaged_lines": run.dropped,
        "errors": run.certification.errors,
        "seconds": float(run.certification.seconds.sum()),
        "deciding": deciding(run),
        "disagreement": disagreement(run),
    }


def deciding(run: Run) -> list[dict[str, Any]]:
    """Return how many (image, set) pairs have each status by each method, per set and status."""
    rows = []
    result = run.certification
    for name, statuses, methods in zip(run.names, result.status, result.method):
        for status in STATUSES:
            counts: dict[str, int] = {}
            for entry, method in zip(statuses, methods):
                if entry == status:
                    counts[method] = counts.get(method, 0) + 1
            if counts:
                rows.append({"set": name, "status": status, "by": dict(sorted(counts.items()))})
    return rows


def disagreement(run: Run) -> list[dict[str, Any]]:
    """Return the images certified for one set and not another, for every ordered pair of sets."""
    statuses, rows = run.certification.status, []
    for first, second in itertools.permutations(range(len(run.names)), 2):
        images = [
            image
            for image, status in enumerate(statuses[first])
            if status == CERTIFIED and statuses[second][image] != CERTIFIED
        ]
        there = [statuses[second][image] for image in images]
        rows.append(
            {
                "certified": run.names[first],
                "not_certified": run.names[second],
                "count": len(images),
                "there": {status: there.count(status) for status in STATUSES if status in there},
                "images": images,
            }
        )
    return rows


# --- one model at several radii -------------------------------------------------------------------


def radius_curves(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return each model's accuracies against the radius.

    There is one entry per model, norm and way to certify.

    Only runs on the same images, with the same settings (but for the batch size) and the same range
    of pixels stand in one curve. Sets with a radius per image are left out.
    """
    groups: dict[str, dict[str, Any]] = {}
    for run, set_index, key in _single_radii(runs):
        perturbation, summary = _ball(run, set_index), run.certification.summary()
        curve = groups.setdefault(
            key,
            {
                "norm": perturbation.name,
                "model_sha256": run.header["model_sha256"],
                "n": summary["n"],
                "clip": perturbation.clip,
                "runs": [],
                "points": {},
            },
        )
        if run.name not in curve["runs"]:
            curve["runs"].append(run.name)
        point = {"eps": perturbation.eps, "run": run.name}
        kinds = ("certified", "attacked")
        point.update({kind: summary[kind][set_index] for kind in kinds})
        point.update({f"{kind}_interval": summary["intervals"][kind][set_index] for kind in kinds})
        curve["points"].setdefault(perturbation.eps, point)
    curves = list(groups.values())
    for curve in curves:
        curve["points"] = [curve["points"][eps] for eps in sorted(curve["points"])]
    _name_curves(curves)
    return curves


def _name_curves(curves: Sequence[dict[str, Any]]) -> None:
    """Name each curve after its run or its model, and after all its runs where that is taken."""
    for curve in curves:
        curve["name"] = (
            curve["runs"][0] if len(curve["runs"]) == 1 else f"model {curve['model_sha256'][:12]}"
        )
    for curve in curves:  # models of the same name, with other settings or images
        title = (curve["name"], curve["norm"])
        if sum((other["name"], other["norm"]) == title for other in curves) > 1:
            curve["name"] += f" ({', '.join(curve['runs'])})"


def _ball(run: Run, set_index: int) -> PerturbationLpBox:
    """Return a set of a run that is a ball."""
    return cast(PerturbationLpBox, run.certification.perturbations[set_index])


def _with_one_radius(run: Run) -> list[int]:
    """Return which sets of a run are balls of one radius."""
    return [
        set_index
        for set_index, perturbation in enumerate(run.certification.perturbations)
        if has_radius(perturbation) and isinstance(perturbation.eps, float)
    ]


def _single_radii(runs: Sequence[Run]) -> Iterable[tuple[Run, int, str]]:
    """Yield (run, index of a set, what its curve is of) for sets with one radius."""
    for run in runs:
        for set_index in _with_one_radius(run):
            described = run.header["sets"][set_index]
            data = [run.header[name] for name in ("model_sha256", "data_sha256", "n")]
            key = [*data, described["norm"], described["clip"], run.settings]
            yield run, set_index, json.dumps(key, sort_keys=True)


# --- what a reader must know ----------------------------------------------------------------------


def cautions(runs: Sequence[Run]) -> list[str]:
    """Return what limits the runs, and what forbids to compare them, one sentence each."""
    sentences = contradictions(runs)
    for run in runs:
        sentences += _limits(run)
    groups = comparable(runs)
    if len(groups) > 1:
        sentences.append(
            "The runs answer different questions, and each question has a table of its own;"
            " accuracies of different tables must not be compared. " + _differences(groups)
        )
    for group in groups:
        if len({json.dumps(run.settings, sort_keys=True) for run in group}) > 1:
            sentences.append(
                f"{', '.join(run.name for run in group)}: certified with different settings"
                " (methods, attacks or limits); their accuracies differ for that reason too."
            )
    return sentences


def _limits(run: Run) -> list[str]:
    """Return what limits a run, one sentence each."""
    sentences, result = [], run.certification
    for status, images in (("not run", run.not_run()), (ERROR, sorted(result.errors))):
        if images:
            sentences.append(
                f'{run.name}: {len(images)} of {len(result)} images are "{status}" for some'
                f" set and count as not certified there: {listed(images)}."
            )
    if run.dropped:
        sentences.append(
            f"{run.name}: {run.dropped} damaged line{'s' * (run.dropped > 1)} of its records"
            " left out."
        )
    if not run.settings["attacks"]:
        sentences.append(
            f"{run.name}: nothing was attacked, so the attacked accuracy is the clean one."
        )
    return sentences


def contradictions(runs: Sequence[Run]) -> list[str]:
    """Return where a run certifies what another has broken.

    The two are of the same model, image and pixel range, and the radius proved is no smaller.
    """
    by_key: dict[tuple, list[tuple[Run, int]]] = {}
    for run in runs:
        for set_index in _with_one_radius(run):
            described = run.header["sets"][set_index]
            key = (
                *(run.header[name] for name in ("model_sha256", "data_sha256")),
                described["norm"],
                str(described["clip"]),
            )
            by_key.setdefault(key, []).append((run, set_index))
    sentences = []
    for members in by_key.values():
        for (sure, i), (broken, j) in itertools.permutations(members, 2):
            proved, attacked = sure.certification, broken.certification
            if _ball(sure, i).eps < _ball(broken, j).eps:
                continue
            images = [
                image
                for image, status in enumerate(proved.status[i])
                if status == CERTIFIED and attacked.status[j][image] == FALSIFIED
            ]
            if images:
                sentences.append(
                    f"CONTRADICTION: {sure.name} certifies for {sure.sets[i]} what"
                    f" {broken.name} has broken for {broken.sets[j]}: {listed(images)}. One of"
                    " them is wrong; trust neither."
                )
    return sentences


def _differences(groups: Sequence[Sequence[Run]]) -> str:
    """Say in which of images, their number and sets the groups differ."""
    sentences = []
    for name, value_of in (
        ("images (data digest)", lambda run: run.header["data_sha256"][:12]),
        ("n", lambda run: str(run.header["n"])),
        ("sets", lambda run: "; ".join(run.sets)),
    ):
        values: dict[str, list[str]] = {}
        for group in groups:
            values.setdefault(value_of(group[0]), []).extend(run.name for run in group)
        if len(values) > 1:
            shown = ", ".join(f"{value} ({', '.join(names)})" for value, names in values.items())
            sentences.append(f"Different {name}: {shown}.")
    return " ".join(sentences)


def listed(images: Sequence[int], most: int = 20) -> str:
    """Return image numbers as text, the first ones where there are many."""
    return ", ".join(map(str, images[:most])) + f" and {len(images) - most} more" * (
        len(images) > most
    )
