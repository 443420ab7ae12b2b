"""Records of a certification.

A file of JSON lines, one per image, behind a header that says what they are of.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import math
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import RecordsError
from ..perturbations import PerturbationLpBox
from ..utils.environment import environment
from ..utils.files import jsonl, plain, write_text, writing
from .metrics import CERTIFIED, ERROR, FALSIFIED, NOT_RUN, STATUSES, Certification
from .settings import CertifySettings

FORMAT = 1
#: What two files must agree in to be records of the same certification.
IDENTITY = ("format", "model_sha256", "data_sha256", "n", "sets", "settings")
#: The complete verifier whose results may be imported: it proves a margin positive without a bound
#: but 0.
PROVER = "alpha-beta-CROWN"


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


# --- header ---------------------------------------------------------------------------------------


def header_of(
    model: nn.Module, x: Tensor, y: Tensor, sets: list[PerturbationLpBox], settings: CertifySettings
) -> dict[str, Any]:
    """Return all that determines the results, and the environment, which is only for reading.

    The total time limit is left out: it says how far a run comes, not what it finds.
    """
    chosen = {
        one.name: getattr(settings, one.name)
        for one in dataclasses.fields(settings)
        if one.name not in ("attack", "total_time_limit")
    }
    described = [
        {"norm": str(one.norm), "eps": one.eps, "clip": one.clip, "title": one.title()}
        for one in sets
    ]
    header = {
        "format": FORMAT,
        "model_sha256": digest(sorted(model.state_dict().items())),
        "data_sha256": digest([("x", x), ("y", y.long())]),
        "n": len(x),
        "sets": described,
        "settings": dict(chosen, attacks=settings.attacks),
        "environment": environment(x.device),
    }
    return json.loads(json.dumps(plain(header)))  # as it will be read


def digest(tensors: Iterable[tuple[str, Any]]) -> str:
    """Return the SHA-256 of named tensors: their names, types, shapes and bytes.

    Example:
        >>> digest([("w", torch.zeros(2))]) == digest([("w", torch.zeros(2, dtype=torch.float64))])
        False
    """
    sha = hashlib.sha256()
    for name, tensor in tensors:
        if isinstance(tensor, Tensor):
            sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
            sha.update(
                tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
            )
        else:  # extra state of a layer
            sha.update(f"{name} {tensor!r};".encode())
    return sha.hexdigest()


def check_same_run(path: Path, found: dict[str, Any], own: dict[str, Any]) -> None:
    """Raise RecordsError with all differences unless two headers are of the same certification."""
    there, here = (_flat({name: header.get(name) for name in IDENTITY}) for header in (found, own))
    differences = [
        f"{name}: {there.get(name)!r} there, {here.get(name)!r} now"
        for name in dict.fromkeys([*there, *here])
        if there.get(name) != here.get(name)
    ]
    if differences:
        raise RecordsError(
            f"output: {str(path)!r} holds records of another certification"
            f" ({'; '.join(differences)}); give another folder, or the same checkpoint, data, sets"
            " and settings"
        )


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """Return nested dictionaries and lists as one dictionary with dotted names."""
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else None
    )
    if items is None:
        return {name: value}
    found = {name: "nothing"} if not value else {}
    for key, one in items:
        found.update(_flat(one, f"{name}.{key}" if name else str(key)))
    return found


# --- lines ----------------------------------------------------------------------------------------


def line_of(found: Certification, image: int, index: int, label: int) -> dict[str, Any]:
    """Return the record of one image of a certification.

    Args:
        found: The certification.
        image: The image's place in it.
        index: The image's number in the whole data.
        label: Its true class.
    """
    per_set = []
    for place in range(len(found.perturbations)):
        point = found.adversarial.get((place, image))
        per_set.append(
            {
                "status": found.status[place][image],
                "method": found.method[place][image],
                "margin": float(found.margin[place, image]),
                "adversarial": None if point is None else packed(point),
            }
        )
    return {
        "index": index,
        "label": label,
        "prediction": int(found.prediction[image]),
        "clean": bool(found.correct[image]),
        "sets": per_set,
        "seconds": round(float(found.seconds[image]), 6),
        "error": found.errors.get(image),
    }


def is_run(line: dict[str, Any]) -> bool:
    """Whether an image's record is final: the total time limit has not cut it short."""
    return all(one["status"] != NOT_RUN for one in line["sets"])


def packed(point: Tensor) -> dict[str, Any]:
    """Return an adversarial example as plain data, exactly."""
    if point.dtype != torch.float64:
        point = point.float()
    return {
        "shape": list(point.shape),
        "dtype": str(point.dtype).replace("torch.", ""),
        "data": base64.b64encode(point.numpy().tobytes()).decode(),
    }


def _unpacked(packed: dict[str, Any]) -> Tensor:
    if packed["dtype"] not in ("float32", "float64"):
        raise ValueError(packed["dtype"])
    array = np.frombuffer(base64.b64decode(packed["data"], validate=True), packed["dtype"])
    return torch.from_numpy(array.reshape(packed["shape"]).copy())


def _check_line(line: dict[str, Any], header: dict[str, Any]) -> None:
    """Raise ValueError, LookupError or TypeError unless a line is a record its header allows."""
    if not isinstance(line["index"], int) or not 0 <= line["index"] < header["n"]:
        raise ValueError("index")
    if len(line["sets"]) != len(header["sets"]):
        raise ValueError("sets")
    if not (
        math.isfinite(line["seconds"])
        and isinstance(line["clean"], bool)
        and line["prediction"] >= -1
    ):
        raise ValueError("seconds, clean or prediction")
    for one in line["sets"]:
        if (
            one["status"] not in STATUSES
            or math.isnan(float(one["margin"]))
            or not isinstance(one["method"], str)
        ):
            raise ValueError("status, margin or method")
        proved = float(one["margin"]) > 0 or (one["method"] == PROVER and float(one["margin"]) == 0)
        if one["status"] == CERTIFIED and not (proved and line["clean"]):
            raise ValueError("a certificate without a margin")
        if one["status"] == FALSIFIED:
            _unpacked(one["adversarial"])
    if any(one["status"] == ERROR for one in line["sets"]) and not isinstance(line["error"], str):
        raise ValueError("an error without a message")


# --- files ----------------------------------------------------------------------------------------


def load_records(path: str | Path) -> Records:
    """Return what can be used of a file of records.

    Args:
        path: The file; may be damaged, cut short, or hold an image twice.

    Returns:
        Every whole and sensible line; a warning names the file and the number of lines that are
        none.
    """
    path, lines, dropped, repeated = Path(path), {}, 0, False
    content = path.read_bytes()
    raw = content.split(b"\n")
    header = _header(raw[0])
    if header is None:
        dropped = sum(bool(one.strip()) for one in raw)
    else:
        for one in filter(None, raw[1:]):
            line = _line(one, header)
            if line is None:
                dropped += 1
            else:
                repeated |= line["index"] in lines
                if line["index"] not in lines or not is_run(lines[line["index"]]):
                    lines[line["index"]] = line
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
        return _header(file.readline())


def _header(raw: bytes) -> dict[str, Any] | None:
    try:
        header = json.loads(raw)
        usable = (
            header["format"] == FORMAT
            and isinstance(header["n"], int)
            and isinstance(header["sets"], list)
        )
        sets_of(header)
    except (ValueError, LookupError, TypeError):
        return None
    return header if usable else None


def _line(raw: bytes, header: dict[str, Any]) -> dict[str, Any] | None:
    try:
        line = json.loads(raw)
        _check_line(line, header)
    except (
        ValueError,
        LookupError,
        TypeError,
    ):  # UnicodeDecodeError and binascii.Error are ValueErrors
        return None
    return line


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
    path = path / "records.jsonl" if path.is_dir() else path
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
    found = Certification.not_run(sets_of(header), header["n"])
    for line in lines:
        index = line["index"]
        found.prediction[index], found.correct[index] = line["prediction"], line["clean"]
        found.seconds[index] = line["seconds"]
        if line["error"] is not None:
            found.errors[index] = line["error"]
        for place, one in enumerate(line["sets"]):
            found.status[place][index], found.method[place][index] = one["status"], one["method"]
            found.margin[place, index] = float(one["margin"])
            if one["adversarial"] is not None:
                found.adversarial[place, index] = _unpacked(one["adversarial"])
    return found


def sets_of(header: dict[str, Any]) -> list[PerturbationLpBox]:
    """Return the sets that a header describes."""
    return [
        PerturbationLpBox(
            one["norm"],
            torch.tensor(one["eps"]) if isinstance(one["eps"], list) else one["eps"],
            one["clip"],
        )
        for one in header["sets"]
    ]
