"""Verdicts by image, read from what alpha-beta-CROWN writes about its instances."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import RecordsError
from .metrics import CERTIFIED, FALSIFIED, TIMEOUT, UNKNOWN


class Verdict(NamedTuple):
    """The verifier's result for an image.

    Args:
        status: "certified", "falsified" (a claim, until the point is checked), "timeout" or
            "unknown".
        seconds: Time that it took; 0 where the results do not tell it.
        point: Its counterexample, flat; None without one.
    """

    status: str
    seconds: float = 0.0
    point: Tensor | None = None


_IMAGE = re.compile(r"image_(\d+)")
_INSTANCE = re.compile(r"idx: \d+, vnnlib ID: (\d+)")
_RESULT = re.compile(r"^Result: (.+?) in ([0-9.eE+-]+) seconds")
_TIME_OUT = re.compile(r"^Time out!")  # what branch and bound says before its "Result: unknown"
_PIXEL = re.compile(r"\(\s*X_(\d+)\s+([^\s()]+)\s*\)")
_REMEDY = "give the log that the verifier prints, a CSV file, or a folder of its result files"
_DECIDED = (CERTIFIED, FALSIFIED)


def status_of(word: str) -> str | None:
    """Return the status that a word of the verifier or of VNN-COMP stands for.

    It is None for any other word.

    Example:
        >>> words = ("safe-incomplete", "unsat", "unsafe-pgd",
        ...          "unsat (timed out)", "error_exit_code_1", "yes")
        >>> [status_of(word) for word in words]
        ['certified', 'certified', 'falsified', 'timeout', 'unknown', None]
    """
    word = word.strip().lower()
    if "timeout" in word or "timed out" in word:
        return TIMEOUT
    failed = word.startswith(("error", "prepare_instance_error"))
    if failed or word.startswith("unknown") or word == "no_result_in_file":
        return UNKNOWN
    if word.startswith("unsafe") or word in ("sat", "violated"):
        return FALSIFIED
    return CERTIFIED if re.match(r"safe\b", word) or word in ("unsat", "holds") else None


def read_verdicts(path: str | Path, images: Sequence[int]) -> dict[int, Verdict]:
    """Read the verifier's results.

    Args:
        path: The log that it prints for a whole problem; or a CSV file whose lines name an image
            (its VNNLIB file, or its number) and a status, and end with the seconds if they say
            them; or a folder with one result file per image, such as ``image_00003.txt``, where a
            counterexample may follow the status.
        images: Numbers of the problem's images, in order.

    Returns:
        One verdict per image that has a result.

    Raises:
        RecordsError: There is no such file, a line cannot be read, or an image is not of the
            problem.
    """
    path = Path(path)
    if path.is_dir():
        results = _folder_results(path)
    elif path.is_file():
        text = _text(path)
        is_log = _INSTANCE.search(text)
        results = _log_results(path, text, images) if is_log else _csv_results(path, text)
    else:
        raise RecordsError(f"results: there is no file or folder {str(path)!r}; {_REMEDY}")
    verdicts: dict[int, Verdict] = {}
    for where, image, verdict in results:
        if image not in images:
            raise RecordsError(
                f"results: {where} is about image {image}, which the problem does not have; give"
                " the results of this problem"
            )
        old = verdicts.get(image)
        if old and {old.status, verdict.status} == set(_DECIDED):
            raise RecordsError(
                f"results: {where} contradicts what stands before about image {image}; trust"
                " neither"
            )
        if not (old and old.status in _DECIDED):
            verdicts[image] = verdict
    if not verdicts:
        raise RecordsError(f"results: {str(path)!r} holds no result; {_REMEDY}")
    return verdicts


def _text(path: Path) -> str:
    """Return the text of a file, or raise RecordsError if it holds none."""
    content = path.read_bytes()
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        raise RecordsError(
            f"results: {str(path)!r} is no text; if it is the pickle that the verifier writes, it"
            " is not read, for that could run code: give the log that the verifier prints"
        ) from None


def _checked_status(word: str, where: str) -> str:
    """Return the status of a word, or raise RecordsError if it stands for none."""
    status = status_of(word)
    if status is None:
        raise RecordsError(
            f"results: {where} says {word.strip()[:60]!r}, which is no status; use safe, unsat,"
            " unsafe, sat, timeout or unknown"
        )
    return status


def _log_results(
    path: Path, text: str, images: Sequence[int]
) -> Iterator[tuple[str, int, Verdict]]:
    """Yield the results of a log: each follows the line that says which instance is next."""
    row, late = None, False
    for number, line in enumerate(text.splitlines(), 1):
        instance, result = _INSTANCE.search(line), _RESULT.match(line)
        where = f"{path}, line {number},"
        late = not instance and (late or bool(_TIME_OUT.match(line)))
        if instance:
            row = int(instance[1])
        elif result and row is not None:
            if row >= len(images):
                raise RecordsError(
                    f"results: {where} is of instance {row}; the problem has {len(images)}"
                )
            status = _checked_status(result[1], where)
            if late and status == UNKNOWN:
                status = TIMEOUT
            yield where, images[row], Verdict(status, _seconds(result[2]))
            row = None


def _csv_results(path: Path, text: str) -> Iterator[tuple[str, int, Verdict]]:
    """Yield the results of a CSV file.

    Its lines are VNN-COMP's (.., .., vnnlib, .., result, seconds), or shorter ones.
    """
    for number, row in enumerate(csv.reader(io.StringIO(text)), 1):
        cells, where = [cell.strip() for cell in row if cell.strip()], f"{path}, line {number},"
        if not cells:
            continue
        images = [match for cell in cells if (match := _IMAGE.search(cell))]
        if not images and not cells[0].isdigit():
            if number == 1:
                continue  # the headings
            raise RecordsError(
                f"results: {where} names no image; begin it with the image's number or its VNNLIB"
                " file"
            )
        image = int(images[-1][1] if images else cells[0])
        words = [cell for cell in cells[1:] if status_of(cell)] or [" ".join(cells[1:])]
        yield where, image, Verdict(_checked_status(words[0], where), _seconds(cells[-1]))


def _folder_results(folder: Path) -> Iterator[tuple[str, int, Verdict]]:
    """Yield the results of single runs: a status, and where it is sat perhaps the point."""
    for path in sorted(folder.glob("*.txt")):
        name = _IMAGE.search(path.stem)
        if name is None:
            continue  # the verifier's own files, in a problem's folder, which need not be text
        text = _text(path).strip()
        if text:  # an empty file is of a run that was killed
            word, _, rest = text.partition("\n")
            status = _checked_status(word, str(path))
            yield str(path), int(name[1]), Verdict(status, 0.0, _point(rest))


def _point(text: str) -> Tensor | None:
    """Return the counterexample X_0, X_1, .. that a text holds; None unless it is complete."""
    pixels: list[tuple[int, str]] = [(int(index), value) for index, value in _PIXEL.findall(text)]
    if not pixels or [index for index, _ in pixels] != list(range(len(pixels))):
        return None
    try:
        return torch.tensor(
            [float(value) for _, value in pixels], dtype=torch.float32, device="cpu"
        )
    except ValueError:
        return None


def _seconds(text: str) -> float:
    """Return a text's number of seconds, 0 if it is none."""
    try:
        seconds = float(text)
    except ValueError:
        return 0.0
    return seconds if 0 <= seconds < float("inf") else 0.0
