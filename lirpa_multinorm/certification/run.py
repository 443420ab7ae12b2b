"""Union certification of a model, in memory or recorded as it goes.

A recorded one goes on after an interruption, and runs in one process or in shards.
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
from ..perturbations.described import AnySet
from ..utils import distributed
from ..utils.files import append_jsonl, ensure_writable, exclusive, writing
from ..utils.modes import sheltered
from .cascade import Cascade, batches_of
from .metrics import Certification
from .record_header import check_same_run, header_of
from .record_lines import is_run, line_of
from .records import RECORDS_FILE, Records, load_records, read_header, read_records, write_records
from .settings import CertifySettings

_SHARD = re.compile(r"records\.(\d+)-of-(\d+)\.jsonl")


@sheltered
def certify(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    perturbations: Sequence[AnySet],
    settings: CertifySettings = CertifySettings(),
    progress: bool | str = False,
) -> Certification:
    """Certify a classifier against every set, and so against their union.

    An image is certified for a set if it is classified correctly and all its margins have a
    positive lower bound on the whole set. A NaN certifies nothing: logits that are NaN count as
    wrong, and an image whose bounds are NaN gets the status "error". To keep records that survive
    an interruption, see :func:`~lirpa_multinorm.certification.certify_to`.

    Args:
        model: Classifier (B, ...) -> (B, K); put in eval mode meanwhile, and each layer back into
            its own.
        x: Images in [0, 1] (or whatever clip the sets have), shape (n, ...).
        y: Labels, shape (n,).
        perturbations: The sets.
        settings: Methods, attacks, batch size and time limits.
        progress: Whether to show a progress bar; a string is its title.

    Returns:
        The status of every (image, set) pair, and who decided it.

    Raises:
        InvalidArgumentError: No images, inputs and labels that do not fit, or weights that are NaN
            or infinite.
        NotEnoughMemoryError: Memory runs out even for one image.

    Source: union certified accuracy as in Jiang and Singh 2024 (CURE), section 5.

    Example:
        >>> import torch
        >>> from lirpa_multinorm import PerturbationLinf
        >>> model = nn.Sequential(nn.Linear(2, 2, bias=False))
        >>> _ = model[0].weight.data.copy_(torch.eye(2))
        >>> x, y = torch.tensor([[0.9, 0.1], [0.5, 0.45]]), torch.tensor([0, 0])
        >>> result = certify(model, x, y, [PerturbationLinf(eps=0.1)])
        >>> result.summary()["certified_union"], result.summary()["n"]
        (0.5, 2)
    """
    cascade = Cascade(model, x, y, perturbations, settings)
    results: list[Certification] = []
    cascade.run(
        batches_of(len(x), settings.batch_size), lambda _, result: results.append(result), progress
    )
    return Certification.concatenate(results, cascade.sets)


@sheltered
def certify_to(
    folder: str | Path,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    perturbations: Sequence[AnySet],
    settings: CertifySettings = CertifySettings(),
    *,
    shard: tuple[int, int] | None = None,
    resume: bool = False,
    progress: bool | str = False,
) -> Certification:
    """Certify as :func:`~lirpa_multinorm.certification.certify` does, and record each image.

    The records are JSON lines, one per image. Those of a batch are on disk before the next one
    starts. A run that was killed at any moment goes on with ``resume`` and ends with the records of
    an uninterrupted one, but for the seconds. Shards may run at once, on any machines that see the
    folder; the last one to finish merges all records.

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
        progress: Whether to show a progress bar; a string is its title.

    Returns:
        The recorded certification: of all images, or while other shards are at work of this one's
            (the rest is "not run").

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
        >>> result = certify_to(folder, model, x, y, [PerturbationLinf(0.1)])
        >>> read_records(folder).status == result.status
        True
    """
    index, count = _checked_shard(shard)
    cascade = Cascade(model, x, y, perturbations, settings)
    header = {**header_of(model, x, y, cascade.sets, settings), "rounding": cascade.rounding}
    name = RECORDS_FILE if count == 1 else f"records.{index}-of-{count}.jsonl"
    path = ensure_writable(folder) / name
    batches = batches_of(len(x), settings.batch_size)[index::count]
    with exclusive(path):
        _check_folder(path, header)
        lines = _opened(path, header, resume)
        batches = [
            batch for batch in batches if not all(image in lines for image in batch.tolist())
        ]
        cascade.run(
            batches, lambda images, result: _record(path, lines, images, result, y), progress
        )
        _tidy(path, header)
    if count > 1 and _all_shards_done(path.parent, count, len(x)):
        merge_records(path.parent)
        path = path.with_name(RECORDS_FILE)
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
    header: dict[str, Any] | None = None
    lines: dict[int, dict[str, Any]] = {}
    with exclusive(ensure_writable(folder) / RECORDS_FILE, wait=True):
        for path in _files(folder):
            records = load_records(path)
            if records.header is None:
                continue
            header = header or records.header
            check_same_run(path, records.header, header)
            for index, line in records.lines.items():
                if index not in lines or not is_run(lines[index]):
                    lines[index] = line
        if header is None:
            raise RecordsError(
                f"folder: {str(folder)!r} holds no records; give the folder that the shards"
                " wrote to"
            )
        missing = header["n"] - sum(map(is_run, lines.values()))
        if missing:
            warnings.warn(
                f"{folder / RECORDS_FILE}: {missing} of {header['n']} images have no record yet; go"
                " on with the shards that are not done, and merge again",
                stacklevel=2,
            )
        write_records(folder / RECORDS_FILE, header, lines)
    return folder / RECORDS_FILE


def _checked_shard(shard: tuple[int, int] | None) -> tuple[int, int]:
    """Return the shard's index and their number, this process's without an argument."""
    if shard is None:
        return distributed.rank(), distributed.world_size()
    index, count = shard
    if not 0 <= index < count:
        raise InvalidArgumentError(
            f"shard={index}/{count}: of {count} shards the numbers run from 0 to {count - 1}"
        )
    return index, count


def _files(folder: Path) -> list[Path]:
    """Return a folder's files of records, those of shards among them."""
    return sorted(
        path
        for path in folder.glob("records*.jsonl")
        if path.name == RECORDS_FILE or _SHARD.fullmatch(path.name)
    )


def _check_folder(file: Path, header: dict[str, Any]) -> None:
    """Raise RecordsError if another certification has written in the folder of a file."""
    for path in _files(file.parent):
        recorded = read_header(path)
        if recorded is not None:
            check_same_run(path, recorded, header)


def _opened(path: Path, header: dict[str, Any], resume: bool) -> dict[int, dict[str, Any]]:
    """Return the final records of a file, which then holds a header and whole lines only."""
    # A process that was killed while it wrote the file anew leaves these.
    for leftover in path.parent.glob(f".{path.name}.*.tmp"):
        leftover.unlink(missing_ok=True)
    records = load_records(path) if path.exists() else Records(None, {}, 0, False)
    if records.lines and not resume:
        raise RecordsError(
            f"output: {str(path)!r} holds records of {len(records.lines)} images; go on with"
            " --resume (resume=True), or give another folder"
        )
    if records.header is None and records.dropped:  # nothing tells whose records these were
        os.replace(path, path.with_name(path.name + ".damaged"))
    if not records.tidy or records.header is None:
        write_records(path, records.header or header, records.lines)
    return {index: line for index, line in records.lines.items() if is_run(line)}


def _record(
    path: Path,
    recorded: dict[int, dict[str, Any]],
    images: Tensor,
    result: Certification,
    y: Tensor,
) -> None:
    """Write the records of a batch, but for those that the file holds already."""
    lines = [
        line_of(result, row, index, label)
        for row, (index, label) in enumerate(zip(images.tolist(), y[images].tolist()))
        if index not in recorded
    ]
    with writing(path):
        append_jsonl(path, *lines)


def _tidy(path: Path, header: dict[str, Any]) -> None:
    """Sort the file of a run whose images came out of order, or again after a time limit."""
    records = load_records(path)
    if not records.tidy:
        write_records(path, records.header or header, records.lines)


def _all_shards_done(folder: Path, count: int, n: int) -> bool:
    """Whether the shards together have a final record of every image."""
    done = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # another shard may be half-way through a line
        for path in _files(folder):
            if path.name.endswith(f"-of-{count}.jsonl"):
                done += sum(map(is_run, load_records(path).lines.values()))
    return done == n
