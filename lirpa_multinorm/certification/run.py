"""A certification that is recorded as it goes, and goes on after an interruption.

It runs in one process or in shards.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..errors import InvalidArgumentError, RecordsError
from ..perturbations import PerturbationLpBox
from ..utils import distributed
from ..utils.files import append_jsonl, ensure_writable, exclusive, writing
from ..utils.modes import sheltered
from .cascade import Cascade, batches_of
from .metrics import Certification
from .records import (
    Records,
    check_same_run,
    header_of,
    is_run,
    line_of,
    load_records,
    read_header,
    read_records,
    write_records,
)
from .settings import CertifySettings

WHOLE = "records.jsonl"
_SHARD = re.compile(r"records\.(\d+)-of-(\d+)\.jsonl")


@sheltered
def certify_to(
    folder: str | Path,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    perturbations: Sequence[PerturbationLpBox],
    settings: CertifySettings = CertifySettings(),
    *,
    shard: tuple[int, int] | None = None,
    resume: bool = False,
    progress: bool = False,
) -> Certification:
    """Certify as :func:`~lirpa_multinorm.certification.certify` does, and record each image.

    The records are JSON lines, one per image, written as they come.

    The records of a batch are on disk before the next one starts. A run that was killed at any
    moment goes on with ``resume`` and ends with the records of an uninterrupted one, but for the
    seconds. Shards may run at once, on any machines that see the folder; the last one to finish
    merges all records.

    Args:
        folder: Where ``records.jsonl`` is written (a shard's is ``records.0-of-4.jsonl``).
        model: Classifier (B, ...) -> (B, K).
        x: Images, shape (n, ...).
        y: Labels, shape (n,).
        perturbations: The sets.
        settings: Methods, attacks, batch size and time limits.
        shard: (i, m): do the batches b with b mod m = i only. None: all, or the share of a
            ``torchrun`` process.
        resume: Whether to go on with what the folder holds; images without a final record are done.
        progress: Whether to show a progress bar.

    Returns:
        What is recorded: of all images, or while other shards are at work of this one's (the rest
            is "not run").

    Raises:
        InvalidArgumentError: An argument cannot be used.
        OutputFolderError: The folder cannot be written, or another process is writing the same
            file.
        RecordsError: The folder holds records already, or those of another model, data, sets or
            settings.
        NotEnoughMemoryError: Memory runs out even for one image; what was recorded is kept.

    Example:
        >>> import tempfile, torch
        >>> from lirpa_multinorm import PerturbationLinf
        >>> model, folder = nn.Sequential(nn.Linear(2, 2)), tempfile.mkdtemp()
        >>> x, y = torch.rand(4, 2), torch.tensor([0, 1, 0, 1])
        >>> found = certify_to(folder, model, x, y, [PerturbationLinf(0.1)])
        >>> read_records(folder).status == found.status
        True
    """
    place, count = _checked_shard(shard)
    cascade = Cascade(model, x, y, perturbations, settings)
    header = {**header_of(model, x, y, cascade.sets, settings), "rounding": cascade.rounding}
    path = ensure_writable(folder) / (WHOLE if count == 1 else f"records.{place}-of-{count}.jsonl")
    own = batches_of(len(x), settings.batch_size)[place::count]
    with exclusive(path):
        _check_folder(path, header)
        known = _opened(path, header, resume)
        left = [batch for batch in own if not all(index in known for index in batch.tolist())]
        cascade.run(left, lambda images, part: _record(path, known, images, part, y), progress)
        _tidied(path)
    if count > 1 and _all_shards_done(path.parent, count, len(x)):
        merge_records(path.parent)
        path = path.with_name(WHOLE)
    return read_records(path)


def merge_records(folder: str | Path) -> Path:
    """Merge the records of a folder's shards, and what was merged before, into ``records.jsonl``.

    Args:
        folder: Where the shards have written.

    Returns:
        The merged file: sorted by index, each image once, as an unsharded run writes it. A warning
        says how many images have no record yet.

    Raises:
        RecordsError: There are no records, or they are of different certifications.
        OutputFolderError: The folder cannot be written.
    """
    folder = Path(folder)
    header, lines = None, {}
    with exclusive(ensure_writable(folder) / WHOLE, wait=True):
        for path in _files(folder):
            found = load_records(path)
            if found.header is None:
                continue
            header = header or found.header
            check_same_run(path, found.header, header)
            lines.update(
                {
                    index: line
                    for index, line in found.lines.items()
                    if index not in lines or not is_run(lines[index])
                }
            )
        if header is None:
            raise RecordsError(
                f"folder: {str(folder)!r} holds no records; give the folder that the shards"
                " wrote to"
            )
        missing = header["n"] - sum(map(is_run, lines.values()))
        if missing:
            warnings.warn(
                f"{folder / WHOLE}: {missing} of {header['n']} images have no record yet; go on"
                " with the shards that are not done, and merge again",
                stacklevel=2,
            )
        write_records(folder / WHOLE, header, lines)
    return folder / WHOLE


def _checked_shard(shard: tuple[int, int] | None) -> tuple[int, int]:
    if shard is None:
        return distributed.rank(), distributed.world_size()
    place, count = shard
    if not 0 <= place < count:
        raise InvalidArgumentError(
            f"shard={place}/{count}: of {count} shards the numbers run from 0 to {count - 1}"
        )
    return place, count


def _files(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.glob("records*.jsonl")
        if path.name == WHOLE or _SHARD.fullmatch(path.name)
    )


def _check_folder(own: Path, header: dict[str, Any]) -> None:
    """Refuse a folder in which another certification has written."""
    for path in _files(own.parent):
        found = read_header(path)
        if found is not None:
            check_same_run(path, found, header)


def _opened(path: Path, header: dict[str, Any], resume: bool) -> dict[int, dict[str, Any]]:
    """Return the final records of a file, which then holds a header and whole lines only."""
    for leftover in path.parent.glob(
        f".{path.name}.*.tmp"
    ):  # of a process killed while it wrote the file anew
        leftover.unlink(missing_ok=True)
    found = load_records(path) if path.exists() else Records(None, {}, 0, False)
    if found.lines and not resume:
        raise RecordsError(
            f"output: {str(path)!r} holds records of {len(found.lines)} images; go on with --resume"
            " (resume=True), or give another folder"
        )
    if found.header is None and found.dropped:  # nothing tells whose records these were
        os.replace(path, path.with_name(path.name + ".damaged"))
    if not found.tidy or found.header is None:
        write_records(path, found.header or header, found.lines)
    return {index: line for index, line in found.lines.items() if is_run(line)}


def _record(
    path: Path, known: dict[int, dict[str, Any]], images: Tensor, part: Certification, y: Tensor
) -> None:
    """Write the records of a batch, but for those that are there."""
    lines = [
        line_of(part, place, index, label)
        for place, (index, label) in enumerate(zip(images.tolist(), y[images].tolist()))
        if index not in known
    ]
    with writing(path):
        append_jsonl(path, *lines)


def _tidied(path: Path) -> None:
    """Bring a file whose images came out of order, or again after a time limit, in rising order."""
    found = load_records(path)
    if not found.tidy:
        write_records(path, found.header, found.lines)


def _all_shards_done(folder: Path, count: int, n: int) -> bool:
    """Whether the shards together have a final record of every image."""
    done = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # another shard may be half-way through a line
        for path in _files(folder):
            if path.name.endswith(f"-of-{count}.jsonl"):
                done += sum(map(is_run, load_records(path).lines.values()))
    return done == n
