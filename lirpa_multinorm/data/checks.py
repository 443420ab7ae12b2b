"""The check of a whole data set before it is used; public through ``data.checked_data``."""

from __future__ import annotations

import warnings
from dataclasses import replace
from numbers import Integral

import torch
from torch import Tensor

from ..errors import InvalidArgumentError
from .arrays import DARKEST, check_bytes, check_classes, check_pairs, checked_images, checked_labels
from .image_data import ImageData


def checked_data(data: ImageData) -> ImageData:
    """Check a data set made by hand, as every run does before its first step.

    The table of checks is in ``docs/data.md``.

    Args:
        data: The data set; images and labels may be numpy arrays, labels of any integer type, (N,)
            or (N, 1).

    Returns:
        The data set with images (N, C, H, W), uint8 or floating point, and labels (N,), int64. What
        was converted is said in one warning; a class without a training example is another.

    Raises:
        InvalidArgumentError: Images or labels cannot be used; the message says which, why, and the
            remedy.

    Example:
        >>> from lirpa_multinorm.data import ImageData
        >>> x, y = torch.rand(6, 1, 2, 2), torch.arange(6) % 2
        >>> checked_data(ImageData("tiny", 2, (0.0,), (1.0,), x, y, x, y)).y_train.dtype
        torch.int64
    """
    changes: list[str] = []
    tensors = {
        key: (checked_images if key[0] == "x" else checked_labels)(key, getattr(data, key), changes)
        for key in ("x_train", "x_test", "y_train", "y_test")
    }
    for key in ("x_train", "x_test"):
        check_bytes(key, tensors[key])
    classes = data.num_classes
    if isinstance(classes, bool) or not isinstance(classes, Integral) or classes < 2:
        raise InvalidArgumentError(f"num_classes={classes!r} must be a whole number of at least 2.")
    for key in ("y_train", "y_test"):
        check_pairs(key, tensors[key], tensors[f"x{key[1:]}"])
        check_classes(key, tensors[key], classes)
    if tensors["x_train"].shape[1] != tensors["x_test"].shape[1]:
        raise InvalidArgumentError(
            f"x_test: images of shape {tuple(tensors['x_test'].shape[1:])}, but those of x_train "
            f"have {tuple(tensors['x_train'].shape[1:])}. Pass images with the same channels."
        )
    _check_constants(data, tensors["x_train"].shape[1])
    if changes:
        warnings.warn(f"data {data.name!r}: converted {', '.join(changes)}", stacklevel=2)
    for key in ("x_train", "x_test"):
        brightest = float(tensors[key].max())
        if tensors[key].is_floating_point() and brightest <= DARKEST / 255:
            warnings.warn(
                f"data {data.name!r}: the largest value of {key} is {brightest:.3g}, so its images"
                " are nearly black; were they divided by 255 twice?",
                stacklevel=2,
            )
    _warn_of_classes(data.name, tensors["y_train"], classes)
    return replace(data, **tensors)


def _check_constants(data: ImageData, channels: int) -> None:
    """Raise InvalidArgumentError unless mean and std are usable numbers, one per channel."""
    for name in ("mean", "std"):
        try:
            values = torch.as_tensor(getattr(data, name), dtype=torch.float64, device="cpu")
        except (TypeError, ValueError, RuntimeError) as error:
            raise InvalidArgumentError(
                f"{name}={getattr(data, name)!r} must be one number per channel ({channels})."
            ) from error
        if (
            values.ndim != 1
            or len(values) not in (1, channels)
            or not bool(torch.isfinite(values).all())
            or (name == "std" and bool((values <= 0).any()))
        ):
            raise InvalidArgumentError(
                f"{name}={getattr(data, name)!r} must be one number per channel ({channels})"
                f"{', above 0' if name == 'std' else ''}."
            )


def _warn_of_classes(name: str, labels: Tensor, num_classes: int) -> None:
    """Warn of classes that no training image has."""
    counts = labels.bincount(minlength=num_classes)
    missing = (counts == 0).nonzero().flatten().tolist()
    if len(missing) == num_classes - 1:
        warnings.warn(
            f"data {name!r}: all training images are of class {int(labels[0])}; nothing can be"
            " learned. Shuffle the images before taking the first ones",
            stacklevel=3,
        )
    elif missing:
        warnings.warn(
            f"data {name!r}: no training image of class"
            f" {', '.join(map(str, missing[:10]))}{' and others' if len(missing) > 10 else ''} of"
            f" 0..{num_classes - 1}; do the labels count from 0, and are there enough images?",
            stacklevel=3,
        )
