"""Read a data set from an ``.npz`` file, checked before anything is computed with it."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .errors import DatasetNotFoundError, InvalidArgumentError

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
    tensors = {key: (_images if key[0] == "x" else _labels)(key, arrays[key]) for key in KEYS}
    for part in ("train", "test"):
        x, y = tensors[f"x_{part}"], tensors[f"y_{part}"]
        if len(x) != len(y):
            raise InvalidArgumentError(
                f"y_{part}: {len(y)} labels for the {len(x)} images of x_{part}. Store one label per image."
            )
    shapes = [tuple(tensors[key].shape[1:]) for key in ("x_train", "x_test")]
    if shapes[0] != shapes[1]:
        raise InvalidArgumentError(
            f"x_test: images of shape {shapes[1]}, but those of x_train have {shapes[0]}. Store one shape."
        )
    return _num_classes(arrays, tensors), tensors


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise DatasetNotFoundError(
            f"name: there is no file {str(path)!r}. Check the path; it is taken relative to the working folder."
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
    except (OSError, EOFError, ValueError, KeyError, RuntimeError, zlib.error, zipfile.BadZipFile) as error:
        raise InvalidArgumentError(
            f"name: {str(path)!r} is not a readable .npz file of plain arrays ({error}). "
            "It may be cut short: copy or write it again with numpy.savez."
        ) from error


def _check_keys(path: Path, found: list[str]) -> None:
    for key in KEYS:
        if key not in found:
            raise InvalidArgumentError(
                f"{key}: this key is missing in {path.name!r}, which has {', '.join(found) or 'none'}. "
                f"Save it with numpy.savez(file, {', '.join(f'{key}=...' for key in KEYS)})."
            )


def _images(key: str, array: np.ndarray) -> Tensor:
    if array.ndim != 4 or 0 in array.shape:
        raise InvalidArgumentError(
            f"{key}: shape {array.shape} is not (N, C, H, W) with N >= 1. "
            "Reshape it; grey images need a channel axis: x[:, None]."
        )
    if array.shape[3] in (1, 3, 4) and array.shape[1] > 4:
        raise InvalidArgumentError(
            f"{key}: shape {array.shape} has its channels last. Store x.transpose(0, 3, 1, 2) instead."
        )
    if array.dtype == np.uint8:
        return torch.from_numpy(array)
    if array.dtype.kind != "f":
        raise InvalidArgumentError(
            f"{key}: dtype {array.dtype} is neither uint8 nor floating point. "
            "Store 0..255 as uint8 or [0, 1] as float32."
        )
    if not np.isfinite(array).all():
        raise InvalidArgumentError(f"{key}: has NaN or infinite values. Remove those images.")
    low, high = float(array.min()), float(array.max())
    if low < 0 or high > 1:
        raise InvalidArgumentError(
            f"{key}: values from {low:.4g} to {high:.4g} leave [0, 1]. Undo a normalisation, or divide 0..255 by 255."
        )
    return torch.from_numpy(array.astype(np.float32))


def _labels(key: str, array: np.ndarray) -> Tensor:
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise InvalidArgumentError(
            f"{key}: dtype {array.dtype} of shape {array.shape} is not one integer per image. "
            "Store y.reshape(-1).astype('int64'), class numbers and not one-hot rows."
        )
    labels = torch.from_numpy(array.astype(np.int64))
    if len(labels) and labels.min() < 0:
        raise InvalidArgumentError(f"{key}: label {int(labels.min())} is negative. Number the classes from 0.")
    return labels


def _num_classes(arrays: dict[str, np.ndarray], tensors: dict[str, Tensor]) -> int:
    """Number of classes that every label must stay below."""
    stored = "num_classes" in arrays
    try:
        count = int(arrays["num_classes"]) if stored else int(tensors["y_train"].max()) + 1
    except (TypeError, ValueError) as error:
        raise InvalidArgumentError(f"num_classes: {arrays['num_classes']!r} is not one integer.") from error
    for key in ("y_train", "y_test"):
        largest = int(tensors[key].max())
        if largest >= count:
            source = "num_classes" if stored else "y_train"
            raise InvalidArgumentError(
                f"{key}: label {largest}, but the classes are 0..{count - 1} by {source}. "
                "Correct the labels, or store the number of classes under num_classes."
            )
    return count
