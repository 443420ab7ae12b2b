"""Pictures in PNG: images with the ranges of their pixels, and the places where patches fail."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..errors import InvalidArgumentError
from ._figure import COLOURS, new_figure, save

_PANELS = ("image", "lower ends", "upper ends", "width")
_INCHES = 1.8  # width and height of a panel


def pixel_ranges_figure(
    images: Tensor, lower: Tensor, upper: Tensor, path: str | os.PathLike, names: Sequence[str] = ()
) -> Path:
    """Draw images beside the ranges of their pixels: lower ends, upper ends and widths.

    Args:
        images: (N, C, H, W) in [0, 1], of one channel or three, such as transformed images.
        lower: Lower ends of their pixels, such as those on a cell of transforms; same shape.
        upper: Upper ends.
        path: The PNG file; folders that are missing are made.
        names: What to write beside each image; empty: nothing.

    Returns:
        The path.

    Raises:
        InvalidArgumentError: The shapes differ or are none of images, or there are not as
            many names as images.

    Example:
        >>> import tempfile
        >>> path, x = Path(tempfile.mkdtemp()) / "ranges.png", torch.rand(2, 1, 4, 4)
        >>> pixel_ranges_figure(x, 0.9 * x, x, path, ["-5 degrees", "5 degrees"]).name
        'ranges.png'
    """
    for name, values in (("images", images), ("lower", lower), ("upper", upper)):
        if values.ndim != 4 or values.shape[1] not in (1, 3) or not len(values):
            raise InvalidArgumentError(
                f"{name} has the shape {tuple(values.shape)}; give (N, C, H, W) with one channel "
                "or three"
            )
        if values.shape != images.shape:
            raise InvalidArgumentError(
                f"{name} has the shape {tuple(values.shape)}, and images {tuple(images.shape)}; "
                "give the ranges of these images"
            )
    if names and len(names) != len(images):
        raise InvalidArgumentError(
            f"names: {len(names)} for {len(images)} images; give one each, or none"
        )
    count = len(images)
    figure, axes = new_figure(_INCHES * len(_PANELS), _INCHES * count, count, len(_PANELS))
    for index, row in enumerate(zip(images, lower, upper, upper - lower)):
        for panel, values in enumerate(row):
            spot = axes[index * len(_PANELS) + panel]
            _show(spot, values)
            if not index:
                spot.set_title(_PANELS[panel], fontsize=9)
        if names:
            axes[index * len(_PANELS)].set_ylabel(names[index], fontsize=9)
    return save(figure, path)


def patch_places_figure(
    image: Tensor, proved: Tensor, path: str | os.PathLike, title: str = ""
) -> Path:
    """Draw an image beside the map of the places where patches on it are proved, and where not.

    Args:
        image: (C, H, W) in [0, 1], of one channel or three.
        proved: Which places are proved, (rows, columns) of bool: a patch's upper left pixel. Of
            ``PatchResult.proved`` of a search with ``every_place``, the entry of the image.
        path: The PNG file; folders that are missing are made.
        title: Heading of the map, before how many places are proved.

    Returns:
        The path.

    Raises:
        InvalidArgumentError: A shape is none of an image or a map of places inside it.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "places.png"
        >>> patch_places_figure(torch.rand(1, 6, 6), torch.ones(4, 4).bool(), path).name
        'places.png'
    """
    if image.ndim != 3 or image.shape[0] not in (1, 3):
        raise InvalidArgumentError(
            f"image has the shape {tuple(image.shape)}; give (C, H, W) with one channel or three"
        )
    inside = proved.ndim == 2 and all(a <= b for a, b in zip(proved.shape, image.shape[1:]))
    if proved.dtype != torch.bool or not inside:
        raise InvalidArgumentError(
            f"proved has the shape {tuple(proved.shape)} and type {proved.dtype}; give bools, "
            f"(rows, columns), at most {tuple(image.shape[1:])}"
        )
    figure, (left, right) = new_figure(2.4 * _INCHES, 1.4 * _INCHES, 1, 2)
    _show(left, image)
    # Places stand where the middle of the patch is, over the image.
    down, across = ((a - b) / 2 for a, b in zip(image.shape[1:], proved.shape))
    _show(right, image)
    for marks, colour in ((proved, COLOURS[0]), (~proved, COLOURS[5])):
        rows, columns = marks.cpu().nonzero().T
        right.scatter(columns + across, rows + down, s=6, color=colour, linewidths=0)
    text = f"{int(proved.sum())} of {proved.numel()} places proved"
    right.set_title(f"{title}: {text}" if title else text, fontsize=9)
    return save(figure, path)


def _show(axes, values: Tensor) -> None:
    """Draw an image (C, H, W) with pixels in [0, 1], without ticks."""
    pixels = values.detach().float().cpu().permute(1, 2, 0).numpy()
    axes.imshow(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels, "gray", vmin=0, vmax=1)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(False)
