"""Files that survive a crash half-way."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import math
import os
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock

from ..errors import InvalidArgumentError, OutputFolderError


def write_text(path: str | os.PathLike, text: str) -> Path:
    """Write a text file so that readers see the old file or the new one, never a part.

    Args:
        path: The file; folders that are missing are made.
        text: Its whole content, written as UTF-8.

    Returns:
        The path.

    Raises:
        OSError: If the folder cannot be written; an older file is then left as it was.

    Example:
        >>> import tempfile
        >>> path = write_text(Path(tempfile.mkdtemp()) / "notes.txt", "eps = 8/255")
        >>> path.read_text()
        'eps = 8/255'
    """
    return write_bytes(path, text.encode("utf-8"))


def write_bytes(path: str | os.PathLike, content: bytes) -> Path:
    """Write a file so that readers see the old content or the new one; see :func:`write_text`."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(path)
    try:
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


@contextlib.contextmanager
def writing(path: str | os.PathLike) -> Iterator[None]:
    """Turn system errors while a file is written into one that names the file and the remedy.

    Raises:
        OutputFolderError: The file cannot be written, for example on a full disk.
    """
    try:
        yield
    except OutputFolderError:
        raise
    except OSError as error:
        raise OutputFolderError(
            f"output: {str(path)!r} cannot be written ({error.strerror or error}). Free some space "
            "or make the folder writable, then start again with --resume"
        ) from error


def temporary_beside(path: Path) -> Path:
    """Return a new hidden name in the same folder, from where ``os.replace`` is atomic."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")


def remove_leftovers(folder: Path) -> None:
    """Delete the temporary files that a process killed while writing has left in a folder."""
    for path in folder.glob(".*.tmp"):
        # Another process may be probing the folder just now.
        if not path.name.startswith(".write-test"):
            path.unlink(missing_ok=True)


def write_json(path: str | os.PathLike, obj: Any) -> Path:
    """Write an object as indented JSON, atomically.

    Tensors, arrays, paths and dataclasses are turned into plain lists, strings and
    dictionaries. JSON has no NaN or infinity: they become the strings ``"NaN"``,
    ``"Infinity"`` and ``"-Infinity"``, which ``float()`` reads back.

    Args:
        path: The file; folders that are missing are made.
        obj: What to write.

    Returns:
        The path.

    Raises:
        InvalidArgumentError: If ``obj`` holds something that JSON cannot express.

    Example:
        >>> import tempfile
        >>> path = write_json(Path(tempfile.mkdtemp()) / "r.json", {"eps": torch.tensor(0.5)})
        >>> json.loads(path.read_text())
        {'eps': 0.5}
    """
    return write_text(path, json.dumps(plain(obj), indent=2, allow_nan=False) + "\n")


def append_jsonl(path: str | os.PathLike, *objects: Any) -> Path:
    """Append objects to a file of JSON lines, flushed to disk together before returning.

    Args:
        path: The file; it and its folders are made if missing.
        *objects: What to write, one line each, converted as by :func:`write_json`.

    Returns:
        The path.

    Raises:
        InvalidArgumentError: If an object holds something that JSON cannot express.
        OSError: If the file cannot be written, or only in part.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "log.jsonl"
        >>> for epoch in (1, 2):
        ...     _ = append_jsonl(path, {"epoch": epoch})
        >>> print(path.read_text(), end="")
        {"epoch": 1}
        {"epoch": 2}
    """
    lines = jsonl(objects).encode()
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab+", buffering=0) as file:
        # A run killed while writing leaves half a line; do not glue this one to it.
        if file.seek(0, os.SEEK_END) > 0:
            file.seek(-1, os.SEEK_END)
            lines = lines if file.read(1) == b"\n" else b"\n" + lines
        if file.write(lines) != len(lines):  # a disk that fills up takes a part, without an error
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        os.fsync(file.fileno())
    return path


def jsonl(objects: Iterable[Any]) -> str:
    """Return objects as JSON lines, each ended by a line break; see :func:`append_jsonl`."""
    return "".join(json.dumps(plain(obj), allow_nan=False) + "\n" for obj in objects)


@contextlib.contextmanager
def exclusive(path: str | os.PathLike, wait: bool = False) -> Iterator[None]:
    """Keep other processes from the block for the same file until it ends or this process dies.

    The system itself holds the lock, on a hidden file beside, so none is left behind by a process
    that was killed. A forked child does not share it.

    Args:
        path: The file that one process at a time may write; its folder must exist.
        wait: Whether to wait until another process has left the block.

    Raises:
        OutputFolderError: Another process is in the block.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "records.jsonl"
        >>> with exclusive(path):
        ...     _ = write_text(path, "mine")
    """
    path = Path(path)
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        lock.acquire(timeout=-1 if wait else 0)
    except OSError as error:  # also filelock.Timeout: another process has it
        raise OutputFolderError(
            f"output: another process is writing {str(path)!r}, or it cannot be locked "
            f"({error.strerror or error}); wait for it, or give another folder"
        ) from error
    try:
        yield
    finally:
        lock.release()


def ensure_writable(folder: str | os.PathLike) -> Path:
    """Make an output folder and prove that it can be written, before any work starts.

    Args:
        folder: The folder; its parents are made as well.

    Returns:
        The folder as a path.

    Raises:
        OutputFolderError: If it cannot be made or written.

    Example:
        >>> import tempfile
        >>> ensure_writable(Path(tempfile.mkdtemp()) / "runs" / "first").is_dir()
        True
    """
    folder = Path(folder).expanduser()
    probe = temporary_beside(folder / "write-test")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_text("ok", encoding="utf-8")
        probe.unlink()
    except OSError as error:
        raise OutputFolderError(
            f"output: cannot write to the folder {str(folder)!r} ({error.strerror or error}). Give"
            " a folder that you may write to, for example --output runs/mine, or free some space."
        ) from error
    return folder


def plain(obj: Any) -> Any:
    """Return the same value, of the types that JSON knows; see :func:`write_json`."""
    if isinstance(obj, dict):
        return {str(key): plain(value) for key, value in obj.items()}
    if isinstance(obj, (list, tuple)):
        return [plain(value) for value in obj]
    if isinstance(obj, (torch.Tensor, np.ndarray, np.generic)):
        return plain(obj.tolist())
    if dataclasses.is_dataclass(obj) and not isinstance(obj, type):
        return {f.name: plain(getattr(obj, f.name)) for f in dataclasses.fields(obj)}
    if isinstance(obj, (os.PathLike, torch.device, torch.dtype)):
        return str(obj)
    if isinstance(obj, float) and not math.isfinite(obj):
        return "NaN" if math.isnan(obj) else ("Infinity" if obj > 0 else "-Infinity")
    if obj is None or isinstance(obj, (str, bool, int, float)):
        return obj
    raise InvalidArgumentError(
        f"obj: {obj!r} of type {type(obj).__name__} cannot be written as JSON. "
        "Pass numbers, strings, lists, dictionaries, tensors or dataclasses."
    )
