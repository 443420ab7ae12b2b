"""Transformed images, differentiable in the parameters."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from .coordinates import Frame, coordinates
from .parameters import BRIGHTNESS, CONTRAST, parameter


def transformed(images: Tensor, parameters: Tensor) -> Tensor:
    """Return images under transforms: ``clamp(contrast I(q) + brightness, 0, 1)``.

    I is interpolated bilinearly and zero outside; q is where the transform samples it
    (:mod:`~lirpa_multinorm.transforms.coordinates`). Single parameters give torchvision's
    ``affine``.

    Args:
        images: In [0, 1], shape (B, C, H, W).
        parameters: One transform per image, (B, 7); see
            :data:`~lirpa_multinorm.transforms.PARAMETERS`.

    Returns:
        Shape of images.

    Example:
        >>> import torch
        >>> image = torch.tensor([[[[0.0, 1.0, 0.0]]]])
        >>> half_a_pixel = torch.tensor([[0.0, 0.5, 0.0, 1.0, 0.0, 1.0, 0.0]])
        >>> transformed(image, half_a_pixel)
        tensor([[[[0.0000, 0.5000, 0.5000]]]])
    """
    frame = Frame.of(images)
    values = sampled(images, *coordinates(parameters.to(images), frame))
    contrast = parameter(parameters, CONTRAST).unsqueeze(2).to(images)
    brightness = parameter(parameters, BRIGHTNESS).unsqueeze(2).to(images)
    return (contrast * values + brightness).clamp(0, 1).view_as(images)


def sampled(images: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Return images at coordinates, by bilinear interpolation with zeros outside.

    Args:
        images: (S, C, H, W).
        x: Indices of columns, not whole ones, (S, n).
        y: Indices of rows, (S, n).

    Returns:
        (S, C, n).
    """
    return grid_sampled(images, sampling_grid(images, x, y))


def sampling_grid(images: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Return coordinates (S, n) as :func:`grid_sampled` takes them, (S, n, 1, 2)."""
    height, width = images.shape[-2:]
    grid = x.new_empty(*x.shape, 1, 2)
    # Written in place, which is many times faster than stacking along the last dimension.
    grid[..., 0, 0] = (2 * x + 1) / width - 1
    grid[..., 0, 1] = (2 * y + 1) / height - 1
    return grid


def grid_sampled(images: Tensor, grid: Tensor) -> Tensor:
    """Return images (S, C, H, W) at coordinates, (S, C, n); see :func:`sampled`."""
    return functional.grid_sample(
        images, grid, mode="bilinear", padding_mode="zeros", align_corners=False
    ).squeeze(3)
