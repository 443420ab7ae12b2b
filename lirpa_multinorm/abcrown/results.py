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
from ..certification.record_header import digest, sets_of
from ..certification.record_lines import PROVER, packed
from ..certification.records import RECORDS_FILE, Records, load_records, read_records, write_records
from ..certification.verdicts import Verdict, read_verdicts
from ..errors import RecordsError
from ..perturbations import PerturbationLpBox
from ..utils.files import exclusive
from ..utils.modes import evaluating
from .export import PROBLEM

#: Statuses of images that a point in the set breaks.
BROKEN = (FALSIFIED, MISCLASSIFIED)
_DOUBTFUL = (
    "are falsified without a counterexample that breaks the model here, and count as not falsified"
    " (a log holds none; result files of single images do)"
)


class _Certified(NamedTuple):
    """The certification that verdicts are checked against.

    It is a network, images, and the set with its index in the records.
    """

    model: nn.Module
    x: Tensor
    y: Tensor
    perturbation: PerturbationLpBox
    set_index: int


def import_results(
    folder: str | Path,
    problem: str | Path,
    results: str | Path,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
) -> Certification:
    """Take results of alpha-beta-CROWN into records; only pairs that are still open change.

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
    folder, described = Path(folder), _read_problem(Path(problem))
    if not (folder / RECORDS_FILE).is_file():
        raise RecordsError(
            f"folder: {str(folder)!r} holds no {RECORDS_FILE}; certify first, with certify_to or "
            "lirpa-multinorm certify --output"
        )
    # Also the files of shards: a later merge must find the same there.
    files = sorted(folder.glob("records*.jsonl"))
    with contextlib.ExitStack() as stack:
        for path in files:
            stack.enter_context(exclusive(path))
        records = load_records(folder / RECORDS_FILE)
        certified = _certified(folder, records, described, model, x, y)
        verdicts = read_verdicts(results, described["images"])
        changed = _changes(records.lines, verdicts, certified)
        for path in files:
            old = load_records(path)
            lines = {index: line for index, line in changed.items() if index in old.lines}
            if lines:
                assert old.header is not None  # a file without a header has no usable line
                write_records(path, old.header, {**old.lines, **lines})
    return read_records(folder)


def _read_problem(folder: Path) -> dict[str, Any]:
    """Return what an exported folder says of its certification, or raise RecordsError."""
    path = folder / PROBLEM
    try:
        problem = json.loads(path.read_text(encoding="utf-8"))
        keys = ("model_sha256", "data_sha256", "n", "set")
        usable = all(name in problem for name in keys) and all(
            isinstance(image, int) for image in problem["images"]
        )
    except (OSError, ValueError, LookupError, TypeError):
        usable = False
    if not usable:
        raise RecordsError(
            f"problem: {str(folder)!r} holds no {PROBLEM} that can be read; give one of the folders"
            " that the export has written, one per set"
        )
    return problem


def _certified(
    folder: Path, records: Records, problem: dict[str, Any], model: nn.Module, x: Tensor, y: Tensor
) -> _Certified:
    """Return what results are checked against.

    Raises:
        RecordsError: Not everything is of the same certification.
    """
    if records.header is None:
        raise RecordsError(
            f"folder: {str(folder / RECORDS_FILE)!r} does not start with the header of a file of"
            " records; certify again"
        )
    here = {
        "model_sha256": digest(sorted(model.state_dict().items())),
        "data_sha256": digest([("x", x), ("y", y.long())]),
        "n": len(x),
    }
    for name, value in here.items():
        for source, header in (("problem", problem), ("folder", records.header)):
            if header.get(name) != value:
                raise RecordsError(
                    f"{source}: its {name} is {header.get(name)!r}, that of the model and images"
                    f" given is {value!r}; give the checkpoint and images that were certified and"
                    " exported"
                )
    sets = records.header["sets"]
    if problem["set"] not in sets:
        titles = "; ".join(described["title"] for described in sets)
        raise RecordsError(
            f"problem: it is about the {problem['set'].get('title')}; the records are against"
            f" {titles}"
        )
    set_index = sets.index(problem["set"])
    return _Certified(model, x, y, sets_of(records.header)[set_index], set_index)


def _changes(
    lines: dict[int, dict[str, Any]], verdicts: dict[int, Verdict], certified: _Certified
) -> dict[int, dict[str, Any]]:
    """Return the records that change, or raise RecordsError where verdicts contradict them."""
    changed: dict[int, dict[str, Any]] = {}
    contradictions, doubts, missing = [], [], []
    for image, verdict in sorted(verdicts.items()):
        line = lines.get(image)
        if line is None or line["prediction"] < 0:
            missing.append(image)
            continue
        status, claim = line["sets"][certified.set_index]["status"], verdict.status
        point = _breaking_point(image, verdict, certified) if claim == FALSIFIED else None
        if (claim == CERTIFIED and status in BROKEN) or (point is not None and status == CERTIFIED):
            contradictions.append(
                f"image {image} is {status} in the records and {claim} in the results"
            )
        elif claim == FALSIFIED and point is None and status not in BROKEN:
            doubts.append(image)
            claim = UNKNOWN
        if status not in (CERTIFIED, *BROKEN):
            accepted = verdict._replace(status=claim, point=point)
            changed[image] = _changed(line, certified.set_index, accepted)
    if contradictions:
        raise RecordsError(
            "results: they contradict the records:"
            f" {'; '.join(contradictions[:5])}{' and more' * (len(contradictions) > 5)}. Nothing is"
            " taken over; check that network and images are the same, and trust neither until then"
        )
    _warn_of(doubts, len(verdicts), _DOUBTFUL)
    _warn_of(missing, len(verdicts), "have no record yet and are left out; certify them first")
    return changed


def _warn_of(images: list[int], count: int, words: str) -> None:
    """Warn of the images, if there are any among ``count``, whose results are not taken over."""
    if images:
        shown = ", ".join(map(str, images[:10])) + " and more" * (len(images) > 10)
        warnings.warn(f"results: {len(images)} of {count} images {words}: {shown}", stacklevel=4)


def _breaking_point(image: int, verdict: Verdict, certified: _Certified) -> Tensor | None:
    """Return the counterexample if it lies in the set and breaks the model."""
    x, y = certified.x[image : image + 1], certified.y[image : image + 1].long()
    if verdict.point is None or verdict.point.numel() != x.numel():
        return None
    point = verdict.point.to(x).view_as(x)
    perturbation = certified.perturbation.of_images(
        torch.tensor([image], device=x.device), certified.x
    )
    with evaluating(certified.model), torch.no_grad():
        breaks = margin_loss(certified.model(point), y) >= 0
    return point[0] if bool(breaks & perturbation.contains(point, x)) else None


def _changed(line: dict[str, Any], set_index: int, verdict: Verdict) -> dict[str, Any]:
    """Return an open pair's record with a verdict."""
    pair = dict(line["sets"][set_index], status=verdict.status)
    if verdict.status == CERTIFIED:
        pair.update(method=PROVER, margin=max(float(pair["margin"]), 0.0))
    elif verdict.status == FALSIFIED:
        assert verdict.point is not None  # a claim without a point is no longer "falsified"
        pair.update(method=PROVER, adversarial=packed(verdict.point.cpu()))
    pairs = [*line["sets"][:set_index], pair, *line["sets"][set_index + 1 :]]
    # Other verdicts may be imported again.
    spent = verdict.seconds if verdict.status in (CERTIFIED, FALSIFIED) else 0.0
    failed = any(entry["status"] == ERROR for entry in pairs)
    return {
        **line,
        "sets": pairs,
        "seconds": round(line["seconds"] + spent, 6),
        "error": line["error"] if failed else None,
    }
