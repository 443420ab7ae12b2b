"""Random flips, shifts and crops of whole batches, by name.

Public through :mod:`lirpa_multinorm.data`.
"""

from __future__ import annotations

from typing import Callable, Optional

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InvalidArgumentError
from ..utils.hints import did_you_mean

Augment = Callable[[Tensor, Optional[torch.Generator]], Tensor]

PAD_CIFAR = 2
PAD_SHIFT = 1
CROP_TINYIMAGENET = 56


def augment_cifar(images: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Flip at random, then crop at random from the image padded by 2 pixels of its edge.

    Args:
        images: Images (B, C, H, W), floating point.
        generator: Source of randomness; ``None`` means torch's own.

    Returns:
        Images of the same shape, each with its own flip and shift.

    Source: "fast" augmentation of SABR's released code.

    Example:
        >>> augment_cifar(torch.rand(4, 3, 32, 32)).shape
        torch.Size([4, 3, 32, 32])
    """
    height, width = images.shape[2:]
    padded = F.pad(_flipped(images, generator), (PAD_CIFAR,) * 4, mode="replicate")
    return _cropped(padded, height, width, generator)


def augment_shift(images: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Shift images at random by up to one pixel each way.

    It suits images that have a right way round, such as digits.

    Args:
        images: Images (B, C, H, W), floating point.
        generator: Source of randomness; ``None`` means torch's own.

    Returns:
        Images of the same shape; what a shift uncovers repeats the edge.

    Example:
        >>> augment_shift(torch.rand(4, 1, 28, 28)).shape
        torch.Size([4, 1, 28, 28])
    """
    height, width = images.shape[2:]
    return _cropped(F.pad(images, (PAD_SHIFT,) * 4, mode="replicate"), height, width, generator)


def augment_tinyimagenet(images: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Flip horizontally at random, then crop 56x56 pixels at random.

    Args:
        images: Images (B, C, H, W), floating point, of at least 56x56; TinyImageNet has 64x64.
        generator: Source of randomness; ``None`` means torch's own.

    Returns:
        Images (B, C, 56, 56), each with its own flip and position.

    Raises:
        InvalidArgumentError: If the images are smaller.

    Source: SABR's released code, for TinyImageNet.

    Example:
        >>> augment_tinyimagenet(torch.rand(4, 3, 64, 64)).shape
        torch.Size([4, 3, 56, 56])
    """
    size = CROP_TINYIMAGENET
    if min(images.shape[2:]) < size:
        raise InvalidArgumentError(
            f"images: {images.shape[2]}x{images.shape[3]} pixels, but the augmentation"
            f" 'tinyimagenet' crops {size}x{size} out of them. Choose another augmentation, such as"
            " 'cifar'."
        )
    return _cropped(_flipped(images, generator), size, size, generator)


#: Augmentations by name; ``None`` leaves the images as they are.
AUGMENTATIONS: dict[str, Augment | None] = {
    "none": None,
    "cifar": augment_cifar,
    "shift": augment_shift,
    "tinyimagenet": augment_tinyimagenet,
}


def augmentation(name: str) -> Augment | None:
    """Look up an augmentation by name.

    Args:
        name: A key of ``AUGMENTATIONS``.

    Returns:
        A function for :func:`lirpa_multinorm.data.batches`, or ``None`` for ``"none"``.

    Raises:
        InvalidArgumentError: If there is none of that name.

    Example:
        >>> augmentation("cifar").__name__
        'augment_cifar'
    """
    if name not in AUGMENTATIONS:
        hint = did_you_mean(name, AUGMENTATIONS)
        raise InvalidArgumentError(
            f"name: no augmentation {name!r}.{hint} Known: {', '.join(AUGMENTATIONS)}."
        )
    return AUGMENTATIONS[name]


def center_crop(images: Tensor, height: int, width: int) -> Tensor:
    """Cut the middle out of images.

    Args:
        images: Images (N, C, H, W).
        height: Rows to keep, at most H.
        width: Columns to keep, at most W.

    Returns:
        Images (N, C, height, width), sharing memory with ``images``.

    Example:
        >>> center_crop(torch.arange(16.0).view(1, 1, 4, 4), 2, 2).flatten()
        tensor([ 5.,  6.,  9., 10.])
    """
    row, column = (images.shape[2] - height) // 2, (images.shape[3] - width) // 2
    return images[:, :, row : row + height, column : column + width]


def _draw(limit: int, images: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draw a whole number below ``limit`` per image, on the generator's device."""
    device = images.device if generator is None else generator.device
    drawn = torch.randint(limit, (len(images),), generator=generator, device=device)
    return drawn.to(images.device)


def _flipped(images: Tensor, generator: torch.Generator | None) -> Tensor:
    """Return each image as it is or mirrored."""
    mirrored = _draw(2, images, generator).bool()[:, None, None, None]
    return torch.where(mirrored, images.flip(-1), images)


def _cropped(images: Tensor, height: int, width: int, generator: torch.Generator | None) -> Tensor:
    """Cut a rectangle out of each image, at its own random position."""
    count, channels, *sizes = images.shape
    device = images.device
    first_row = _draw(sizes[0] - height + 1, images, generator)[:, None]
    rows = first_row + torch.arange(height, device=device)
    first_column = _draw(sizes[1] - width + 1, images, generator)[:, None]
    columns = first_column + torch.arange(width, device=device)
    image = torch.arange(count, device=device)[:, None, None, None]
    channel = torch.arange(channels, device=device)[None, :, None, None]
    return images[image, channel, rows[:, None, :, None], columns[:, None, None, :]]
