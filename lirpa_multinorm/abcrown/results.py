"""Results of alpha-beta-CROWN, taken into the records of a certification."""

from __future__ import annotations

import contextlib
import json
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..attacks import margin_loss
from ..certification.metrics import (
    CERTIFIED,
    ERROR,
    FALSIFIED,
    MISCLASSIFIED,
    UNKNOWN,
    Certification,
)
from ..certification.records import (
    PROVER,
    Records,
    digest,
    load_records,
    packed,
    read_records,
    sets_of,
    write_records,
)
from ..certification.run import WHOLE
from ..certification.verdicts import Verdict, read_verdicts
from ..errors import RecordsError
from ..perturbations import PerturbationLpBox
from ..utils.files import exclusive
from ..utils.modes import evaluating
from .export import PROBLEM

#: Statuses of images that a point in the set breaks.
BROKEN = (FALSIFIED, MISCLASSIFIED)


class _Known(NamedTuple):
    """What verdicts are checked against.

    The network, the images, and the set with its place in the records.
    """

    model: nn.Module
    x: Tensor
    y: Tensor
    one: PerturbationLpBox
    place: int


def import_results(
    folder: str | Path,
    problem: str | Path,
    results: str | Path,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
) -> Certification:
    """Take what alpha-beta-CROWN found into records; only pairs that are still open change.

    An image proved gets the status "certified" by "alpha-beta-CROWN", with a margin of at least 0.
    A counterexample counts only if it lies in the set and breaks the model here; a claim without
    one leaves the pair "unknown". Images that have no record yet stay without. Nothing is written
    if a result contradicts the records.

    Args:
        folder: Folder of ``certify_to`` with ``records.jsonl``.
        problem: A folder that :func:`~lirpa_multinorm.abcrown.export_problems` has returned.
        results: See :func:`~lirpa_multinorm.certification.verdicts.read_verdicts`.
        model: The classifier that was certified.
        x: Its images, shape (n, ...).
        y: Their labels, shape (n,).

    Returns:
        What is recorded now.

    Raises:
        RecordsError: Records, problem, model and images do not belong together, results cannot be
            read, or they contradict the records: proved where a point is known that breaks the
            model, or the other way round.
        OutputFolderError: The records cannot be written, or another process is writing them.
    """
    folder, told = Path(folder), _read_problem(Path(problem))
    if not (folder / WHOLE).is_file():
        raise RecordsError(
            f"folder: {str(folder)!r} holds no {WHOLE}; certify first, with certify_to or "
            "lirpa-multinorm certify --output"
        )
    files = sorted(
        folder.glob("records*.jsonl")
    )  # also those of shards, for a later merge must find the same there
    with contextlib.ExitStack() as stack:
        for path in files:
            stack.enter_context(exclusive(path))
        found = load_records(folder / WHOLE)
        known = _known(folder, found, told, model, x, y)
        changed = _changes(found.lines, read_verdicts(results, told["images"]), known)
        for path in files:
            own = load_records(path)
            lines = {index: line for index, line in changed.items() if index in own.lines}
            if lines:
                write_records(path, own.header, {**own.lines, **lines})
    return read_records(folder)


def _read_problem(folder: Path) -> dict[str, Any]:
    path = folder / PROBLEM
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        usable = all(name in told for name in ("model_sha256", "data_sha256", "n", "set")) and all(
            isinstance(image, int) for image in told["images"]
        )
    except (OSError, ValueError, LookupError, TypeError):
        usable = False
    if not usable:
        raise RecordsError(
            f"problem: {str(folder)!r} holds no {PROBLEM} that can be read; give one of the folders"
            " that the export has written, one per set"
        )
    return told


def _known(
    folder: Path, found: Records, told: dict[str, Any], model: nn.Module, x: Tensor, y: Tensor
) -> _Known:
    """Return what results are checked against.

    Raises:
        RecordsError: Not everything is of the same certification.
    """
    if found.header is None:
        raise RecordsError(
            f"folder: {str(folder / WHOLE)!r} does not start with the header of a file of records; "
            "certify again"
        )
    here = {
        "model_sha256": digest(sorted(model.state_dict().items())),
        "data_sha256": digest([("x", x), ("y", y.long())]),
        "n": len(x),
    }
    for name, value in here.items():
        for what, other in (("problem", told), ("folder", found.header)):
            if other.get(name) != value:
                raise RecordsError(
                    f"{what}: its {name} is {other.get(name)!r}, that of the model and images given"
                    f" is {value!r}; give the checkpoint and images that were certified and"
                    " exported"
                )
    if told["set"] not in found.header["sets"]:
        titles = "; ".join(one["title"] for one in found.header["sets"])
        raise RecordsError(
            f"problem: it is about the {told['set'].get('title')}; the records are against {titles}"
        )
    place = found.header["sets"].index(told["set"])
    return _Known(model, x, y, sets_of(found.header)[place], place)


def _changes(
    lines: dict[int, dict[str, Any]], verdicts: dict[int, Verdict], known: _Known
) -> dict[int, dict]:
    """Return the records that change, or raise RecordsError where verdicts contradict them."""
    changed, contradictions, doubts, missing = {}, [], [], []
    for image, verdict in sorted(verdicts.items()):
        line = lines.get(image)
        if line is None or line["prediction"] < 0:
            missing.append(image)
            continue
        status, claim = line["sets"][known.place]["status"], verdict.status
        point = _breaking_point(image, verdict, known) if claim == FALSIFIED else None
        if (claim == CERTIFIED and status in BROKEN) or (point is not None and status == CERTIFIED):
            contradictions.append(
                f"image {image} is {status} in the records and {claim} in the results"
            )
        elif claim == FALSIFIED and point is None and status not in BROKEN:
            doubts.append(image)
            claim = UNKNOWN
        if status not in (CERTIFIED, *BROKEN):
            changed[image] = _changed(
                line, known.place, verdict._replace(status=claim, point=point)
            )
    if contradictions:
        raise RecordsError(
            "results: they contradict the records:"
            f" {'; '.join(contradictions[:5])}{' and more' * (len(contradictions) > 5)}. Nothing is"
            " taken over; check that network and images are the same, and trust neither until then"
        )
    for images, words in (
        (
            doubts,
            (
                "are falsified without a counterexample that breaks the model here, and count as "
                "not falsified (a log holds none; result files of single images do)"
            ),
        ),
        (missing, "have no record yet and are left out; certify them first"),
    ):
        if images:
            shown = ", ".join(map(str, images[:10])) + " and more" * (len(images) > 10)
            warnings.warn(
                f"results: {len(images)} of {len(verdicts)} images {words}: {shown}", stacklevel=3
            )
    return changed


def _breaking_point(image: int, verdict: Verdict, known: _Known) -> Tensor | None:
    """Return the counterexample if it lies in the set and breaks the model."""
    x, y = known.x[image : image + 1], known.y[image : image + 1].long()
    if verdict.point is None or verdict.point.numel() != x.numel():
        return None
    point = verdict.point.to(x).view_as(x)
    one = known.one.of_images(torch.tensor([image]), known.x)
    with evaluating(known.model), torch.no_grad():
        breaks = margin_loss(known.model(point), y) >= 0
    return point[0] if bool(breaks & one.contains(point, x)) else None


def _changed(line: dict[str, Any], place: int, verdict: Verdict) -> dict[str, Any]:
    """Return an open pair's record with a verdict."""
    pair = dict(line["sets"][place], status=verdict.status)
    if verdict.status == CERTIFIED:
        pair.update(method=PROVER, margin=max(float(pair["margin"]), 0.0))
    elif verdict.status == FALSIFIED:
        pair.update(method=PROVER, adversarial=packed(verdict.point.cpu()))
    pairs = [*line["sets"][:place], pair, *line["sets"][place + 1 :]]
    spent = (
        verdict.seconds if verdict.status in (CERTIFIED, FALSIFIED) else 0.0
    )  # others may be imported again
    failed = any(one["status"] == ERROR for one in pairs)
    return {
        **line,
        "sets": pairs,
        "seconds": round(line["seconds"] + spent, 6),
        "error": line["error"] if failed else None,
    }
