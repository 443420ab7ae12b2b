"""Read a data set from an ``.npz`` file, checked before anything is computed with it."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np
from torch import Tensor

from ..errors import DatasetNotFoundError, InvalidArgumentError
from .arrays import check_classes, checked_images, checked_labels

KEYS = ("x_train", "y_train", "x_test", "y_test")


def read_npz(path: Path) -> tuple[int, dict[str, Tensor]]:
    """Read and check the four arrays of a data set.

    Args:
        path: The file. Keys other than the four and ``num_classes`` are not read.

    Returns:
        The number of classes (``num_classes`` of the file, else the largest training label plus
        one), and the four tensors by key: images (N, C, H, W) uint8 or float32, labels (N,) int64.

    Raises:
        DatasetNotFoundError: If there is no such file.
        InvalidArgumentError: If the file is damaged or an array cannot be used.
    """
    arrays = _read_arrays(path)
    changes: list[str] = []
    tensors = {
        key: (checked_images if key[0] == "x" else checked_labels)(key, arrays[key], changes)
        for key in KEYS
    }
    shapes = [tuple(tensors[key].shape[1:]) for key in ("x_train", "x_test")]
    if shapes[0] != shapes[1]:
        raise InvalidArgumentError(
            f"x_test: images of shape {shapes[1]}, but those of x_train have {shapes[0]}. Store one"
            " shape."
        )
    return _num_classes(arrays, tensors), tensors


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of a data set's file, by key; none is a pickled object."""
    if not path.is_file():
        raise DatasetNotFoundError(
            f"name: there is no file {str(path)!r}. Check the path; it is taken relative to the"
            " working folder."
        )
    try:
        file = np.load(path, allow_pickle=False)
        if not hasattr(file, "files"):
            raise ValueError("it holds a single array")
        with file:
            _check_keys(path, file.files)
            return {key: file[key] for key in (*KEYS, "num_classes") if key in file.files}
    except InvalidArgumentError:
        raise
    # A cut or altered archive shows as any of these, an array of objects as ValueError.
    except (
        OSError,
        EOFError,
        ValueError,
        KeyError,
        RuntimeError,
        zlib.error,
        zipfile.BadZipFile,
    ) as error:
        raise InvalidArgumentError(
            f"name: {str(path)!r} is not a readable .npz file of plain arrays ({error}). "
            "It may be cut short: copy or write it again with numpy.savez."
        ) from error


def _check_keys(path: Path, stored: list[str]) -> None:
    """Raise InvalidArgumentError where a file lacks one of the four arrays."""
    for key in KEYS:
        if key not in stored:
            raise InvalidArgumentError(
                f"{key}: this key is missing in {path.name!r}, which has"
                f" {', '.join(stored) or 'none'}. Save it with numpy.savez(file,"
                f" {', '.join(f'{key}=...' for key in KEYS)})."
            )


def _num_classes(arrays: dict[str, np.ndarray], tensors: dict[str, Tensor]) -> int:
    """Return the number of classes, which is above every label."""
    stored = "num_classes" in arrays
    if not len(tensors["y_train"]):
        raise InvalidArgumentError("y_train: no labels. Store one label per image.")
    try:
        count = int(arrays["num_classes"]) if stored else int(tensors["y_train"].max()) + 1
    except (TypeError, ValueError) as error:
        raise InvalidArgumentError(
            f"num_classes: {arrays['num_classes']!r} is not one integer."
        ) from error
    if not stored and int(tensors["y_train"].min()) == 1:
        raise InvalidArgumentError(
            f"y_train: labels 1..{count - 1}. Number the classes from 0: y - 1, or store"
            f" num_classes={count}."
        )
    for key in ("y_train", "y_test"):
        check_classes(key, tensors[key], count, "num_classes" if stored else "y_train")
    return count
