"""Checks of one array of images or labels: refused with the remedy, or converted."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InvalidArgumentError

DARKEST = 16  # largest value of bytes that cannot be meant as 0..255
ROUNDING = 1e-6  # how far outside [0, 1] arithmetic may have put a value


def checked_images(name: str, images: Any, changes: list[str]) -> Tensor:
    """Return images as a tensor (N, C, H, W): uint8, or floats in [0, 1] of torch's default type.

    Args:
        name: What to call them in messages, such as "x_train".
        images: Tensor or numpy array.
        changes: Conversions are appended to it, in words.

    Raises:
        InvalidArgumentError: They cannot be used.

    Example:
        >>> changes = []
        >>> images = torch.zeros(2, 1, 4, 4, dtype=torch.float64)
        >>> checked_images("x", images, changes).dtype, changes
        (torch.float32, ['x from float64 to float32'])
    """
    images = _tensor(name, images, changes)
    if images.layout != torch.strided:
        raise InvalidArgumentError(f"{name}: a sparse tensor. Pass {name}.to_dense()")
    _check_layout(name, tuple(images.shape))
    if images.dtype == torch.uint8:
        return images
    if not images.is_floating_point():
        raise InvalidArgumentError(
            f"{name}: dtype {_dtype(images)} is neither uint8 nor floating point. Pass 0..255 "
            "as uint8, or [0, 1] as float32"
        )
    darkest, brightest = (float(value) for value in images.detach().aminmax())
    if not (np.isfinite(darkest) and np.isfinite(brightest)):
        bad = ~torch.isfinite(images).flatten(1).all(1)
        raise InvalidArgumentError(
            f"{name}: has NaN or infinite values in {int(bad.sum())} of {len(images)} images, "
            f"the first at index {int(bad.nonzero()[0])}. Remove or repair these images"
        )
    if darkest < -ROUNDING or brightest > 1 + ROUNDING:
        raise InvalidArgumentError(
            f"{name}: values from {darkest:.4g} to {brightest:.4g} leave [0, 1]"
            f"{_scale_remedy(name, images, darkest, brightest)}"
        )
    if darkest < 0 or brightest > 1:
        changes.append(f"{name} to [0, 1], which rounding had left")
        images = images.clamp(0, 1)
    default = torch.get_default_dtype()
    if images.dtype != default:
        changes.append(f"{name} from {_dtype(images)} to {str(default)[len('torch.') :]}")
        images = images.to(default)
    return images.detach()


def checked_labels(name: str, labels: Any, changes: list[str]) -> Tensor:
    """Return labels as int64 (N,), none negative; see :func:`checked_images` for the arguments."""
    labels = _tensor(name, labels, changes)
    if labels.ndim == 2 and labels.shape[1] > 1:
        raise InvalidArgumentError(
            f"{name}: dtype {_dtype(labels)} of shape {tuple(labels.shape)} is not one integer "
            f"per image. Pass class numbers (N,); of one-hot rows: {name}.argmax(1)"
        )
    if labels.dtype == torch.bool or labels.is_floating_point() or labels.is_complex():
        raise InvalidArgumentError(
            f"{name}: dtype {_dtype(labels)} is not one integer per image. Pass class numbers "
            f"from 0: {name}.long() if its values are that, not probabilities"
        )
    if labels.ndim == 2 and labels.shape[1] == 1:
        changes.append(f"{name} from shape {tuple(labels.shape)} to {(len(labels),)}")
        labels = labels[:, 0]
    if labels.ndim != 1:
        raise InvalidArgumentError(
            f"{name}: shape {tuple(labels.shape)} is not one integer per image. Pass class "
            "numbers (N,)"
        )
    if labels.dtype != torch.int64:
        changes.append(f"{name} from {_dtype(labels)} to int64")
        labels = labels.long()
    if len(labels) and int(labels.min()) < 0:
        bad = labels < 0
        raise InvalidArgumentError(
            f"{name}: label {int(labels.min())} is negative ({int(bad.sum())} labels are, the "
            f"first at index {int(bad.nonzero()[0])}). Number the classes from 0, and remove "
            "images without a class"
        )
    return labels


def check_classes(name: str, labels: Tensor, num_classes: int, source: str = "num_classes") -> None:
    """Raise InvalidArgumentError for labels above the classes, hinting where they count from 1."""
    if int(labels.max()) < num_classes:
        return
    if int(labels.min()) == 1 and int(labels.max()) == num_classes:
        raise InvalidArgumentError(
            f"{name}: labels 1..{num_classes}, but the classes are 0..{num_classes - 1} by "
            f"{source}. Number them from 0: {name} - 1"
        )
    bad = labels >= num_classes
    raise InvalidArgumentError(
        f"{name}: label {int(labels.max())}, but the classes are 0..{num_classes - 1} by "
        f"{source} ({int(bad.sum())} labels are above, the first at index "
        f"{int(bad.nonzero()[0])}). Correct the labels, or num_classes"
    )


def check_pairs(name: str, labels: Tensor, images: Tensor) -> None:
    """Raise InvalidArgumentError unless there is a label per image."""
    if len(labels) != len(images):
        raise InvalidArgumentError(
            f"{name}: {len(labels)} labels for the {len(images)} images of x{name[1:]}. Store "
            "one label per image"
        )


def check_bytes(name: str, images: Tensor) -> None:
    """Raise InvalidArgumentError for bytes that do not span 0..255.

    Dividing them by 255 would leave the images black.
    """
    if images.dtype != torch.uint8 or int(images.max()) > DARKEST:
        return
    brightest = int(images.max())
    raise InvalidArgumentError(
        f"{name}: uint8 images whose largest value is {brightest}; they would be divided by 255 "
        f"and be nearly black. Pass floats in [0, 1]: x.float() / {max(brightest, 1)}, or "
        "x.float() / 255 if they are that dark"
    )


def _tensor(name: str, values: Any, changes: list[str]) -> Tensor:
    """Return a tensor, or an array of real numbers as one."""
    if isinstance(values, Tensor):
        return values
    if not isinstance(values, np.ndarray) or isinstance(values, np.ma.MaskedArray):
        raise InvalidArgumentError(
            f"{name}: a {type(values).__name__} is neither a tensor nor a numpy array"
        )
    if values.dtype.kind not in "buif":
        raise InvalidArgumentError(
            f"{name}: dtype {values.dtype} holds no real numbers. Pass images as uint8 or "
            "float32, labels as int64"
        )
    # Torch knows the larger unsigned types by name only.
    if values.dtype.kind == "u" and values.dtype.itemsize > 1:
        changes.append(f"{name} from {values.dtype} to int64")
        values = values.astype(np.int64)
    if values.dtype.kind == "f" and values.dtype.itemsize > 8:
        values = values.astype(np.float64)
    changes.append(f"{name} from a numpy array to a tensor")
    return torch.from_numpy(np.ascontiguousarray(values, values.dtype.newbyteorder("=")))


def _check_layout(name: str, shape: tuple) -> None:
    """Raise InvalidArgumentError unless images have the shape (N, C, H, W)."""
    if len(shape) != 4 or 0 in shape:
        raise InvalidArgumentError(
            f"{name}: shape {shape} is not (N, C, H, W) with N >= 1. Reshape it; grey images "
            "need a channel axis: x[:, None]"
        )
    _, first, height, last = shape
    if last in (1, 2, 3, 4) and first > 4 and last < height:
        raise InvalidArgumentError(
            f"{name}: shape {shape} has its channels last. Pass x.permute(0, 3, 1, 2) (numpy: "
            "x.transpose(0, 3, 1, 2)) instead"
        )


def _scale_remedy(name: str, images: Tensor, darkest: float, brightest: float) -> str:
    """Say how images that leave [0, 1] come to lie in it."""
    bad = ((images < -ROUNDING) | (images > 1 + ROUNDING)).flatten(1).any(1)
    if int(bad.sum()) < 0.5 * len(images):
        return (
            f" in {int(bad.sum())} of {len(images)} images, the first at index"
            f" {int(bad.nonzero()[0])}. Repair these, or cut them: {name}.clamp(0, 1)"
        )
    if darkest < 0:
        return (
            f". Undo a normalisation ({name} * std + mean): the model normalises, by mean and std"
            " of the data"
        )
    return (
        f". If 0..255 is meant, divide by 255: {name} / 255"
        if DARKEST < brightest <= 255
        else f". Divide by the largest value: {name} / {brightest:.6g}"
    )


def _dtype(values: Tensor) -> str:
    """Return a tensor's type without "torch."."""
    return str(values.dtype)[len("torch.") :]
