"""Records of a certification.

They are a file of JSON lines, one per image, below a header that says what they are of.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import RecordsError
from ..utils.files import jsonl, write_text, writing
from .metrics import Certification
from .record_header import parsed_header, sets_of
from .record_lines import is_run, parsed_line, unpacked

#: Name of the file of all images in a folder of records.
RECORDS_FILE = "records.jsonl"


class Records(NamedTuple):
    """The content of a file of records.

    Args:
        header: Its first line; None where there is none, or none that can be read.
        lines: The first good record of each image, by index.
        dropped: How many lines could not be used.
        tidy: Whether the file holds nothing but these lines, in rising order.
    """

    header: dict[str, Any] | None
    lines: dict[int, dict[str, Any]]
    dropped: int
    tidy: bool


def load_records(path: str | Path) -> Records:
    """Return what can be used of a file of records.

    Args:
        path: The file; may be damaged, cut short, or hold an image twice.

    Returns:
        Every whole and sensible line; a warning names the file and the number of lines that are
        none.
    """
    path = Path(path)
    content = path.read_bytes()
    header_line, *raw_lines = content.split(b"\n")
    header = parsed_header(header_line)
    lines: dict[int, dict[str, Any]] = {}
    dropped, repeated = 0, False
    if header is None:
        dropped = sum(bool(raw.strip()) for raw in (header_line, *raw_lines))
    else:
        for raw in filter(None, raw_lines):
            line = parsed_line(raw, header)
            if line is None:
                dropped += 1
                continue
            index = line["index"]
            repeated |= index in lines
            if index not in lines or not is_run(lines[index]):
                lines[index] = line
    if dropped:
        warnings.warn(
            f"{path}: {dropped} damaged line{'s' * (dropped > 1)} left out, "
            f"{len(lines)} whole record{'s' * (len(lines) != 1)} kept",
            stacklevel=2,
        )
    tidy = not dropped and not repeated and content.endswith(b"\n") and list(lines) == sorted(lines)
    return Records(header, lines, dropped, tidy)


def read_header(path: str | Path) -> dict[str, Any] | None:
    """Return the header of a file of records, or None where it has none that can be read."""
    with open(path, "rb") as file:
        return parsed_header(file.readline())


def write_records(
    path: str | Path, header: dict[str, Any], lines: dict[int, dict[str, Any]]
) -> None:
    """Write header and records in rising order, so that readers see the old or the new file."""
    with writing(path):
        write_text(path, jsonl([header, *(lines[index] for index in sorted(lines))]))


def read_records(path: str | Path) -> Certification:
    """Return the certification that a file of records tells of.

    Images without a record are "not run".

    Args:
        path: The file, or a folder with ``records.jsonl`` in it.

    Raises:
        RecordsError: There is no such file, or its header cannot be read.
    """
    path = Path(path)
    path = path / RECORDS_FILE if path.is_dir() else path
    if not path.is_file():
        raise RecordsError(
            f"path: there is no file {str(path)!r}; give a folder written by certify_to or by "
            "lirpa-multinorm certify --output"
        )
    header, lines, _, _ = load_records(path)
    if header is None:
        raise RecordsError(
            f"path: {str(path)!r} does not start with the header of a file of records; certify"
            " again"
        )
    return certification_of(header, lines.values())


def certification_of(header: dict[str, Any], lines: Iterable[dict[str, Any]]) -> Certification:
    """Return the certification of a header and its records."""
    result = Certification.not_run(sets_of(header), header["n"])
    for line in lines:
        index = line["index"]
        result.prediction[index], result.correct[index] = line["prediction"], line["clean"]
        result.seconds[index] = line["seconds"]
        if line["error"] is not None:
            result.errors[index] = line["error"]
        for set_index, entry in enumerate(line["sets"]):
            result.status[set_index][index] = entry["status"]
            result.method[set_index][index] = entry["method"]
            result.margin[set_index, index] = float(entry["margin"])
            if entry["adversarial"] is not None:
                result.adversarial[set_index, index] = unpacked(entry["adversarial"])
    return result
