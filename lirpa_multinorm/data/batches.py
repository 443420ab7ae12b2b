"""Shuffled batches of images; public through :mod:`lirpa_multinorm.data`."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..errors import InvalidArgumentError
from .augment import Augment


def to_unit(x: Tensor) -> Tensor:
    """Return images in [0, 1]: uint8 is divided by 255, floats pass through.

    Args:
        x: Images of any shape, uint8 or floating point.

    Returns:
        Images of the same shape, floating point.

    Raises:
        InvalidArgumentError: If the dtype is neither.

    Example:
        >>> to_unit(torch.tensor([0, 51, 255], dtype=torch.uint8))
        tensor([0.0000, 0.2000, 1.0000])
    """
    if x.dtype == torch.uint8:
        return x.float() / 255
    if x.is_floating_point():
        return x
    raise InvalidArgumentError(
        f"x: dtype {x.dtype} is neither uint8 nor floating point. Convert the images first."
    )


def batches(
    x: Tensor,
    y: Tensor,
    batch_size: int,
    *,
    generator: torch.Generator | None = None,
    augment: Augment | None = None,
    drop_last: bool = False,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Walk once over a data set in batches.

    Args:
        x: Images (N, C, H, W), uint8, or float in [0, 1].
        y: Labels (N,).
        batch_size: Images per batch.
        generator: Source of randomness; if given, the order is shuffled.
        augment: Called with the images in [0, 1] and ``generator``, such as ``augment_cifar``.
        drop_last: Whether to leave out a last batch that is not full.

    Returns:
        An iterator of images (B, C, H, W), float in [0, 1], and labels (B,).

    Raises:
        InvalidArgumentError: If lengths differ, ``batch_size`` is below one, or no batch would
            remain.

    Example:
        >>> x, y = torch.rand(5, 1, 2, 2), torch.arange(5)
        >>> [labels.tolist() for _, labels in batches(x, y, 2)]
        [[0, 1], [2, 3], [4]]
    """
    if len(x) != len(y):
        raise InvalidArgumentError(
            f"y: {len(y)} labels for {len(x)} images. Pass one label per image."
        )
    if batch_size < 1:
        raise InvalidArgumentError(f"batch_size: {batch_size}. Pass at least 1.")
    if drop_last and batch_size > len(x):
        raise InvalidArgumentError(
            f"batch_size: {batch_size} with drop_last leaves no batch of {len(x)} images. Pass at"
            f" most {len(x)}."
        )
    return _batches(x, y, batch_size, generator, augment, drop_last)


def _batches(
    x: Tensor,
    y: Tensor,
    batch_size: int,
    generator: torch.Generator | None,
    augment: Augment | None,
    drop_last: bool,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the batches; apart, so that :func:`batches` checks when it is called."""
    order = None
    if generator is not None:
        order = torch.randperm(len(x), generator=generator, device=generator.device).to(x.device)
    end = len(x) - len(x) % batch_size if drop_last else len(x)
    for start in range(0, end, batch_size):
        chosen = (
            slice(start, start + batch_size) if order is None else order[start : start + batch_size]
        )
        images = to_unit(x[chosen])
        yield images if augment is None else augment(images, generator), y[chosen]
