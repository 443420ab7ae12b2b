"""Recorded certifications as runs of a report, and which of them may be compared."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Union

from torch import Tensor

from ..certification import NOT_RUN, Certification
from ..certification.record_header import IDENTITY
from ..certification.records import RECORDS_FILE, certification_of, load_records
from ..errors import InvalidArgumentError, RecordsError

Folder = Union[str, os.PathLike]
Runs = Sequence[Union[Folder, tuple[str, Folder]]]


class Run(NamedTuple):
    """A recorded certification.

    Args:
        name: Its name in the report.
        folder: Where its records lie.
        header: The first line of its records.
        certification: Its result; images without a record are "not run".
        labels: True class of each image, -1 where there is no record.
        dropped: How many damaged lines were left out.
    """

    name: str
    folder: Path
    header: dict[str, Any]
    certification: Certification
    labels: list[int]
    dropped: int

    @property
    def sets(self) -> list[str]:
        """The sets in words."""
        return [perturbation.title() for perturbation in self.certification.perturbations]

    @property
    def names(self) -> list[str]:
        """A short name per set: norm and radius, or the title where they do not tell it apart."""
        short = [
            title if isinstance(getattr(perturbation, "eps", 0.0), Tensor) else perturbation.label
            for perturbation, title in zip(self.certification.perturbations, self.sets)
        ]
        return [title if short.count(name) > 1 else name for name, title in zip(short, self.sets)]

    @property
    def model(self) -> str:
        """The first digits of the model's SHA-256."""
        return self.header["model_sha256"][:12]

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that make a difference to what is found."""
        return {
            name: value for name, value in self.header["settings"].items() if name != "batch_size"
        }

    @property
    def question(self) -> tuple:
        """The images and the sets, in which runs must agree for their accuracies to be compared."""
        sets = [
            tuple(sorted((key, str(part)) for key, part in described.items() if key != "title"))
            for described in self.header["sets"]
        ]
        return (self.header["data_sha256"], self.header["n"], *sets)

    def not_run(self) -> list[int]:
        """Return the images that are not run for some set."""
        return self.certification.is_status(NOT_RUN).any(0).nonzero().squeeze(1).tolist()


def load_runs(runs: Runs) -> list[Run]:
    """Read the records of some runs.

    Args:
        runs: Their folders, each named after its path's last name, or pairs of a name and a folder.

    Returns:
        The runs in order. Damaged lines are left out, with a warning.

    Raises:
        InvalidArgumentError: There are no runs, or two of the same name.
        RecordsError: A folder holds no records, or they tell of no image.
    """
    if isinstance(runs, (str, os.PathLike)):
        raise InvalidArgumentError(
            f"runs={str(runs)!r} must be a list, for example [{str(runs)!r}]"
        )
    named = [run if isinstance(run, tuple) else (_name_of(run), run) for run in runs]
    if not named:
        raise InvalidArgumentError("runs: none given; give at least one folder with records")
    for name, count in Counter(name for name, _ in named).items():
        if count > 1:
            folders = ", ".join(str(folder) for other, folder in named if other == name)
            raise InvalidArgumentError(
                f"runs: {count} of them have the name {name!r} ({folders}); name them apart, "
                "by NAME=FOLDER on the command line or (name, folder) in code"
            )
    return [_load(name, Path(folder)) for name, folder in named]


def comparable(runs: Sequence[Run]) -> list[list[Run]]:
    """Return the runs in groups of the same images and sets, in order of appearance."""
    groups: dict[tuple, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.question, []).append(run)
    return list(groups.values())


def _name_of(folder: Folder) -> str:
    """Return the name of a folder of records, also if the file in it is given."""
    path = Path(folder)
    path = path.parent if path.name == RECORDS_FILE else path
    return path.name or path.resolve().name


def _load(name: str, folder: Path) -> Run:
    """Read the records of a run, or raise RecordsError."""
    path = folder / RECORDS_FILE if folder.is_dir() else folder
    if not path.is_file():
        shards = folder.is_dir() and any(folder.glob("records.*-of-*.jsonl"))
        remedy = (
            "it holds those of shards: merge them with merge_records(folder)"
            if shards
            else "give a folder written by lirpa-multinorm certify --output or by certify_to"
        )
        raise RecordsError(f"runs: {str(folder)!r} holds no {RECORDS_FILE}; {remedy}")
    header, lines, dropped, _ = load_records(path)
    if header is None or not all(name in header for name in IDENTITY):
        raise RecordsError(
            f"runs: {str(path)!r} does not start with the header of a file of records; certify"
            " again"
        )
    if not (header["n"] and header["sets"] and lines):
        raise RecordsError(
            f"runs: {str(path)!r} has no record of any image (of {header['n']}, against "
            f"{len(header['sets'])} sets); go on with certify --resume, or leave the run out"
        )
    labels = [lines[index]["label"] if index in lines else -1 for index in range(header["n"])]
    certification = certification_of(header, lines.values())
    return Run(name, path.parent, header, certification, labels, dropped)
