"""The files of pretrained networks: where they lie, and that they are the ones released."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, InvalidArgumentError
from ..utils.hints import nearest

#: What a network's folder holds that is checked: weights, settings and certificates.
NETWORK_FILES = ("checkpoint.pt", "config.json", "certified.json")
_HERE = Path(__file__).resolve().parent
#: Written by ``python -m benchmarks.manifest``: per network the SHA-256 of its files, and whether
#: it is in the wheel.
MANIFEST = _HERE / "manifest.json"
#: Folders that networks lie in: of an installed package, and of a checkout.
_FOLDERS = (_HERE, _HERE.parents[1] / "networks")


def manifest() -> dict[str, dict[str, Any]]:
    """Return the released networks: by name "sha256" of each file, and "wheel"."""
    return json.loads(MANIFEST.read_text(encoding="utf-8"))


def pretrained_names() -> list[str]:
    """Return the names of the pretrained networks that are here, sorted.

    Example:
        >>> "digits-union-0.1-0.4" in pretrained_names()
        True
    """
    return sorted(name for name in manifest() if _folder(name) is not None)


def network_folder(name: str) -> Path:
    """Return the folder of a pretrained network.

    Args:
        name: One of :func:`pretrained_names`.

    Raises:
        InvalidArgumentError: There is no such network, or it is not in this installation.
    """
    if name not in manifest():
        names = pretrained_names()
        near = [other for other in names if name and str(name).lower() in other]
        near = list(dict.fromkeys(near + nearest(str(name).lower(), names, 3, cutoff=0.4))) or names
        raise InvalidArgumentError(
            f"name={name!r} is no pretrained network; nearest: {', '.join(near)}. "
            "`lirpa-multinorm pretrained` or pretrained_names() lists all"
        )
    folder = _folder(name)
    if folder is None:
        raise InvalidArgumentError(
            f"name={name!r}: this network does not come with the installed package; take "
            f"networks/{name}/checkpoint.pt from the repository and give that file instead"
        )
    return folder


def checked_files(name: str, folder: Path) -> dict[str, bytes]:
    """Return the content of a network's files, each of which is the one released.

    Args:
        name: The network's name.
        folder: Where its files are.

    Raises:
        CheckpointError: A file is missing, damaged, or another one.
    """
    contents = {}
    for file, expected in manifest()[name]["sha256"].items():
        try:
            contents[file] = (folder / file).read_bytes()
        except OSError as error:
            raise CheckpointError(
                f"pretrained network {name!r}: {folder / file} cannot be read "
                f"({error.strerror or error}); install lirpa-multinorm again"
            ) from error
        actual = hashlib.sha256(contents[file]).hexdigest()
        if actual != expected:
            raise CheckpointError(
                f"pretrained network {name!r}: {folder / file} has the SHA-256 {actual[:12]}..., "
                f"the one released has {expected[:12]}...; it is damaged or another file. Install "
                "lirpa-multinorm again, or load a checkpoint of your own by its path"
            )
    return contents


def _folder(name: str) -> Path | None:
    """Return the folder that holds a network's weights; None where none does."""
    folders = (folder / name for folder in _FOLDERS if (folder / name / NETWORK_FILES[0]).is_file())
    return next(folders, None)
