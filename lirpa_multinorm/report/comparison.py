"""What recorded certifications say, alone and beside each other, as plain data."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Sequence
from typing import Any

from ..certification import CERTIFIED, ERROR, FALSIFIED, STATUSES
from .runs import Run, comparable

#: Kinds of accuracy of a certification, as in its summary.
ACCURACIES = ("clean", "certified", "certified_union", "attacked", "attacked_union")


def facts_of(run: Run) -> dict[str, Any]:
    """Return what one run found.

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
        **run.found.summary(),
        "damaged_lines": run.dropped,
        "errors": run.found.errors,
        "seconds": float(run.found.seconds.sum()),
        "deciding": deciding(run),
        "disagreement": disagreement(run),
    }


def deciding(run: Run) -> list[dict[str, Any]]:
    """Return how many (image, set) pairs have each status by each method, per set and status."""
    rows = []
    for name, statuses, methods in zip(run.names, run.found.status, run.found.method):
        for status in STATUSES:
            counts: dict[str, int] = {}
            for one, method in zip(statuses, methods):
                if one == status:
                    counts[method] = counts.get(method, 0) + 1
            if counts:
                rows.append({"set": name, "status": status, "by": dict(sorted(counts.items()))})
    return rows


def disagreement(run: Run) -> list[dict[str, Any]]:
    """Return the images certified for one set and not another, for every ordered pair of sets."""
    rows = []
    for one, other in itertools.permutations(range(len(run.names)), 2):
        images = [
            image
            for image, status in enumerate(run.found.status[one])
            if status == CERTIFIED and run.found.status[other][image] != CERTIFIED
        ]
        there = [run.found.status[other][image] for image in images]
        rows.append(
            {
                "certified": run.names[one],
                "not_certified": run.names[other],
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
    of pixels stand in one curve. Sets with a radius per image have no place on it.
    """
    groups: dict[str, dict[str, Any]] = {}
    for run, place, key in _single_radii(runs):
        one, summary = run.found.perturbations[place], run.found.summary()
        curve = groups.setdefault(
            key,
            {
                "norm": f"l_{one.norm}",
                "model_sha256": run.header["model_sha256"],
                "n": summary["n"],
                "clip": one.clip,
                "runs": [],
                "points": {},
            },
        )
        if run.name not in curve["runs"]:
            curve["runs"].append(run.name)
        point = {kind: summary[kind][place] for kind in ("certified", "attacked")}
        point.update(
            {
                f"{kind}_interval": summary["intervals"][kind][place]
                for kind in ("certified", "attacked")
            }
        )
        curve["points"].setdefault(one.eps, {"eps": one.eps, "run": run.name, **point})
    curves = list(groups.values())
    for curve in curves:
        curve["points"] = [curve["points"][eps] for eps in sorted(curve["points"])]
        curve["name"] = (
            curve["runs"][0] if len(curve["runs"]) == 1 else f"model {curve['model_sha256'][:12]}"
        )
    for curve in curves:  # models of the same name, with other settings or images
        if (
            sum(
                (other["name"], other["norm"]) == (curve["name"], curve["norm"]) for other in curves
            )
            > 1
        ):
            curve["name"] += f" ({', '.join(curve['runs'])})"
    return curves


def _single_radii(runs: Sequence[Run]) -> Iterable[tuple[Run, int, str]]:
    """Yield (run, place of a set, what its curve is of) for sets with one radius."""
    for run in runs:
        for place, (one, described) in enumerate(zip(run.found.perturbations, run.header["sets"])):
            if isinstance(one.eps, float):
                yield (
                    run,
                    place,
                    json.dumps(
                        [run.header[name] for name in ("model_sha256", "data_sha256", "n")]
                        + [described["norm"], described["clip"], run.settings],
                        sort_keys=True,
                    ),
                )


# --- what a reader must know ----------------------------------------------------------------------


def cautions(runs: Sequence[Run]) -> list[str]:
    """Return what limits the runs, and what forbids to compare them, one sentence each."""
    found = contradictions(runs)
    for run in runs:
        for what, images in (("not run", run.not_run()), (ERROR, sorted(run.found.errors))):
            if images:
                found.append(
                    f'{run.name}: {len(images)} of {len(run.found)} images are "{what}" for some'
                    f" set and count as not certified there: {listed(images)}."
                )
        if run.dropped:
            found.append(
                f"{run.name}: {run.dropped} damaged line{'s' * (run.dropped > 1)} of its records"
                " left out."
            )
        if not run.settings["attacks"]:
            found.append(
                f"{run.name}: nothing was attacked, so the attacked accuracy is the clean one."
            )
    groups = comparable(runs)
    if len(groups) > 1:
        found.append(
            "The runs answer different questions, and each question has a table of its own;"
            " accuracies of different tables must not be compared. " + _differences(groups)
        )
    for group in groups:
        if len({json.dumps(run.settings, sort_keys=True) for run in group}) > 1:
            found.append(
                f"{', '.join(run.name for run in group)}: certified with different settings"
                " (methods, attacks or limits); their accuracies differ for that reason too."
            )
    return found


def contradictions(runs: Sequence[Run]) -> list[str]:
    """Return where one run certifies what another has broken.

    The same model, image and range, no larger radius.
    """
    by_key: dict[tuple, list[tuple[Run, int]]] = {}
    for run in runs:
        for place, (one, described) in enumerate(zip(run.found.perturbations, run.header["sets"])):
            if isinstance(one.eps, float):
                key = (
                    *(run.header[name] for name in ("model_sha256", "data_sha256")),
                    described["norm"],
                    str(described["clip"]),
                )
                by_key.setdefault(key, []).append((run, place))
    found = []
    for members in by_key.values():
        for (sure, place), (broken, there) in itertools.permutations(members, 2):
            if sure.found.perturbations[place].eps < broken.found.perturbations[there].eps:
                continue
            images = [
                image
                for image, status in enumerate(sure.found.status[place])
                if status == CERTIFIED and broken.found.status[there][image] == FALSIFIED
            ]
            if images:
                found.append(
                    f"CONTRADICTION: {sure.name} certifies for {sure.sets[place]} what"
                    f" {broken.name} has broken for {broken.sets[there]}: {listed(images)}. One of"
                    " them is wrong; trust neither."
                )
    return found


def _differences(groups: Sequence[Sequence[Run]]) -> str:
    """Say in which of images, their number and sets the groups differ."""
    parts = []
    for what, of in (
        ("images (data digest)", lambda run: run.header["data_sha256"][:12]),
        ("n", lambda run: str(run.header["n"])),
        ("sets", lambda run: "; ".join(run.sets)),
    ):
        values: dict[str, list[str]] = {}
        for group in groups:
            values.setdefault(of(group[0]), []).extend(run.name for run in group)
        if len(values) > 1:
            parts.append(
                f"Different {what}: "
                + ", ".join(f"{value} ({', '.join(names)})" for value, names in values.items())
                + "."
            )
    return " ".join(parts)


def listed(images: Sequence[int], most: int = 20) -> str:
    """Return image numbers as text, the first ones where there are many."""
    return ", ".join(map(str, images[:most])) + f" and {len(images) - most} more" * (
        len(images) > most
    )
