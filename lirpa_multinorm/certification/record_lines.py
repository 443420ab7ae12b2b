"""The lines of a file of records: what a certification found about each image."""

from __future__ import annotations

import base64
import json
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .metrics import CERTIFIED, ERROR, FALSIFIED, NOT_RUN, STATUSES, Certification

#: The complete verifier whose results may be imported: it proves a margin positive without a bound
#: but 0.
PROVER = "alpha-beta-CROWN"


def line_of(certification: Certification, image: int, index: int, label: int) -> dict[str, Any]:
    """Return the record of one image of a certification.

    Args:
        certification: The certification.
        image: The image's index in it.
        index: The image's number in the whole data.
        label: Its true class.
    """
    per_set = []
    for set_index in range(len(certification.perturbations)):
        point = certification.adversarial.get((set_index, image))
        per_set.append(
            {
                "status": certification.status[set_index][image],
                "method": certification.method[set_index][image],
                "margin": float(certification.margin[set_index, image]),
                "adversarial": None if point is None else packed(point),
            }
        )
    return {
        "index": index,
        "label": label,
        "prediction": int(certification.prediction[image]),
        "clean": bool(certification.correct[image]),
        "sets": per_set,
        "seconds": round(float(certification.seconds[image]), 6),
        "error": certification.errors.get(image),
    }


def is_run(line: dict[str, Any]) -> bool:
    """Whether an image's record is final: the total time limit has not cut it short."""
    return all(entry["status"] != NOT_RUN for entry in line["sets"])


def packed(point: Tensor) -> dict[str, Any]:
    """Return an adversarial example as plain data, exactly."""
    if point.dtype != torch.float64:
        point = point.float()
    return {
        "shape": list(point.shape),
        "dtype": str(point.dtype).replace("torch.", ""),
        "data": base64.b64encode(point.numpy().tobytes()).decode(),
    }


def unpacked(packed: dict[str, Any]) -> Tensor:
    """Return the adversarial example that :func:`packed` has made plain data of.

    Raises:
        ValueError: The data is not of such an example (or LookupError, TypeError).
    """
    if packed["dtype"] not in ("float32", "float64"):
        raise ValueError(packed["dtype"])
    array = np.frombuffer(base64.b64decode(packed["data"], validate=True), packed["dtype"])
    return torch.from_numpy(array.reshape(packed["shape"]).copy())


def parsed_line(raw: bytes, header: dict[str, Any]) -> dict[str, Any] | None:
    """Return the record that a line of a file holds, or None if the header does not allow it."""
    try:
        line = json.loads(raw)
        _check_line(line, header)
    # UnicodeDecodeError and binascii.Error are ValueErrors.
    except (ValueError, LookupError, TypeError):
        return None
    return line


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
    for entry in line["sets"]:
        _check_entry(entry, line["clean"])
    failed = any(entry["status"] == ERROR for entry in line["sets"])
    if failed and not isinstance(line["error"], str):
        raise ValueError("an error without a message")


def _check_entry(entry: dict[str, Any], clean: bool) -> None:
    """Raise like :func:`_check_line` unless what a line says of a set is possible."""
    if (
        entry["status"] not in STATUSES
        or math.isnan(float(entry["margin"]))
        or not isinstance(entry["method"], str)
    ):
        raise ValueError("status, margin or method")
    margin = float(entry["margin"])
    proved = margin > 0 or (entry["method"] == PROVER and margin == 0)
    if entry["status"] == CERTIFIED and not (proved and clean):
        raise ValueError("a certificate without a margin")
    if entry["status"] == FALSIFIED:
        unpacked(entry["adversarial"])
