"""The header of a file of records: what determines a certification's results."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import RecordsError
from ..perturbations.described import AnySet, describe_set, set_from
from ..utils.environment import environment
from ..utils.files import plain
from .settings import CertifySettings

FORMAT = 1
#: What two files must agree in to be records of the same certification.
IDENTITY = ("format", "model_sha256", "data_sha256", "n", "sets", "settings")


def header_of(
    model: nn.Module, x: Tensor, y: Tensor, sets: list[AnySet], settings: CertifySettings
) -> dict[str, Any]:
    """Return all that determines the results, and the environment, which is only for reading.

    The total time limit is left out: it says how far a run comes, not what it finds.
    """
    chosen = {
        field.name: getattr(settings, field.name)
        for field in dataclasses.fields(settings)
        if field.name not in ("attack", "total_time_limit")
    }
    described = [
        dict(describe_set(perturbation), title=perturbation.title()) for perturbation in sets
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


def sets_of(header: dict[str, Any]) -> list[AnySet]:
    """Return the sets that a header describes."""
    return [
        set_from({name: part for name, part in described.items() if name != "title"})
        for described in header["sets"]
    ]


def parsed_header(raw: bytes) -> dict[str, Any] | None:
    """Return the header that the first line of a file holds, or None if it is none."""
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


def check_same_run(path: Path, recorded: dict[str, Any], current: dict[str, Any]) -> None:
    """Raise RecordsError with all differences unless two headers are of the same certification.

    Args:
        path: The file whose header is ``recorded``.
        recorded: That header.
        current: The header of this run.
    """
    there, here = (
        _flat({name: header.get(name) for name in IDENTITY}) for header in (recorded, current)
    )
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
    items: list[tuple[Any, Any]]
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list):
        items = list(enumerate(value))
    else:
        return {name: value}
    flat = {} if value else {name: "nothing"}
    for key, entry in items:
        flat.update(_flat(entry, f"{name}.{key}" if name else str(key)))
    return flat
