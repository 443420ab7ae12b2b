"""l_2 operator norms, proved: nearly exact for matrices, bounds for convolutions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .. import network
from .singular_values import largest_singular_value

_FREQUENCIES = 64  # in each direction
_UNIT = torch.finfo(torch.float64).eps / 2


def spectral_norm(matrix: Tensor) -> float:
    """Return an upper bound of the singular values of a matrix (m, n), nearly the largest one.

    The value is NaN unless the matrix is finite. See :func:`.largest_singular_value`.

    Example:
        >>> round(spectral_norm(torch.tensor([[3., 0., 0.], [0., 0., 4.]])), 5)
        4.0
    """
    return largest_singular_value(matrix.double())


class KernelOptions(NamedTuple):
    """The options of a convolution, as of images.

    Args:
        stride: (height, width), as for the others.
        dilation: Steps between the kernel's elements.
        groups: Number of groups.
        padding: Zeros at each border; None where it is not the same at both.
    """

    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    padding: tuple[int, int] | None = None


_PLAIN = KernelOptions()


def convolution_norm(
    kernel: Tensor, options: KernelOptions = _PLAIN, image: Sequence[int] | None = None
) -> float:
    """Return an upper bound of a convolution's operator norm with zero padding.

    On a torus the norm is the largest ``||K(w)||`` over its frequencies w; a stride s makes s^2
    channels of each (its phases). An image is part of a torus that is larger than it by the
    padding, so that its convolution is part of that on the torus. On the infinite grid, for images
    of any size, frequencies fill a square. There ``||K(w)||^2`` of a direction is a trigonometric
    polynomial of degree d, the kernel's side less one, so that its maximum is at most that of n
    samples divided by ``cos(pi d / n)`` (M. Riesz), for each direction.

    Args:
        kernel: (O, C / groups, kh, kw).
        options: Stride, dilation, groups; padding where there is an image.
        image: The sides of the image, if it has a fixed size.

    Returns:
        The bound; NaN unless the kernel is finite.

    Source: Sedghi et al. 2019 (frequencies); Araujo et al. 2021 (bound from samples); phases as
        usual for strides.

    Example:
        >>> round(convolution_norm(torch.ones(1, 1, 2, 2)), 2)  # 4, at frequency zero
        4.0
    """
    if not bool(torch.isfinite(kernel).all()):
        return math.nan
    phases = _phases(_dilated(kernel.double(), options.dilation), options.stride)
    degrees = [side - 1 for side in phases.shape[2:]]  # of (O, C s s / groups, h, w)
    sides = [max(_FREQUENCIES, 8 * max(degrees))] * 2
    factor = math.prod(math.cos(math.pi * d / n) for d, n in zip(degrees, sides)) ** -0.5
    if image is not None and options.padding is not None:
        torus = [
            max(-(-(side + padding) // step), degree + 1)
            for side, padding, step, degree in zip(image, options.padding, options.stride, degrees)
        ]
        if math.prod(torus) <= math.prod(sides):
            sides, factor = torus, 1.0
    return _torus_norm(phases, sides, options.groups) * factor


def _torus_norm(phases: Tensor, sides: Sequence[int], groups: int) -> float:
    """Return the norm of a convolution without stride on a torus of such sides."""
    symbol = torch.fft.rfft2(phases, s=sides).permute(2, 3, 0, 1).flatten(0, 1)
    symbol = symbol.unflatten(1, (groups, -1)).flatten(0, 1)  # a block per group
    count = math.prod(sides)
    # The transform is off by some units of log(n) times the l_2 norm of what is transformed.
    rounding = 64 * (1 + math.log2(count)) * _UNIT * math.sqrt(count)
    return largest_singular_value(symbol) + rounding * float(phases.norm())


def _dilated(kernel: Tensor, dilation: tuple[int, int]) -> Tensor:
    sides = [(side - 1) * step + 1 for side, step in zip(kernel.shape[2:], dilation)]
    spread = kernel.new_zeros(*kernel.shape[:2], *sides)
    spread[:, :, :: dilation[0], :: dilation[1]] = kernel
    return spread


def _phases(kernel: Tensor, stride: tuple[int, int]) -> Tensor:
    missing = [-side % step for side, step in zip(kernel.shape[2:], stride)]
    kernel = torch.nn.functional.pad(kernel, (0, missing[1], 0, missing[0]))
    split = kernel.unflatten(3, (-1, stride[1])).unflatten(2, (-1, stride[0]))  # (O, C, h, s, w, s)
    return split.permute(0, 1, 3, 5, 2, 4).flatten(1, 3)


def layer_weight(step: network.Step) -> Tensor | None:
    """Return the kernel (O, C / groups, kh, kw) or matrix (out, in) of a step in float64.

    Its rows are those of outputs. Other steps, transposed convolutions among them, have None.
    """
    weight = step.arguments.get("weight")
    if step.operator in ("linear", "conv1d", "conv2d"):
        return weight.double() if weight is not None and weight.ndim > 1 else None
    return None


def layer_norm(graph: network.ModelGraph, index: int, weight: Tensor) -> float:
    """Return the norm of a step of a graph with such a weight."""
    step = graph.steps[index]
    if step.operator == "linear":
        return spectral_norm(weight)
    sides = graph.steps[step.sources[0]].shape[2:]
    image = [*[1] * (2 - len(sides)), *sides]
    return convolution_norm(_image_kernel(weight), kernel_options(step), image)


def column_norm(step: network.Step, weight: Tensor) -> float:
    """Return the largest l_2 norm of a column of a step with such a weight.

    This is its norm from l_1 to l_2. The columns of a convolution are those inside a large image;
    a column at the image's border holds some of their entries.

    Args:
        step: A Linear step or a convolution.
        weight: The result of :func:`layer_weight`, or that with a scale on its rows.
    """
    if not bool(torch.isfinite(weight).all()):
        return math.nan
    if step.operator == "linear":
        return float(torch.linalg.vector_norm(weight, dim=0).max())
    stride, dilation, groups, _ = kernel_options(step)
    phases = _phases(_dilated(_image_kernel(weight), dilation), stride).unflatten(0, (groups, -1))
    return float(torch.linalg.vector_norm(phases.movedim(2, 1).flatten(2), dim=2).max())


def step_norm(graph: network.ModelGraph, index: int, source: int) -> float:
    """Return a bound of how much an affine step or ReLU lengthens l_2 distances of one source.

    Args:
        graph: The graph.
        index: The index of the step.
        source: The index of the source among the step's sources.
    """
    step = graph.steps[index]
    weight = layer_weight(step)
    if weight is not None:
        return layer_norm(graph, index, weight)
    if step.operator in ("conv_transpose1d", "conv_transpose2d"):
        # The adjoint of a convolution has its norm.
        kernel = _image_kernel(step.arguments["weight"].double())
        return convolution_norm(kernel, kernel_options(step))
    like = [graph.like.new_empty(graph.steps[before].shape) for before in step.sources]
    return network.schur_norm(step, like, source)


def _image_kernel(weight: Tensor) -> Tensor:
    return weight.unsqueeze(2) if weight.ndim == 3 else weight


def kernel_options(step: network.Step) -> KernelOptions:
    """Return the options of a convolution; a padding that is named has no number."""
    given, dims = step.arguments, step.arguments["weight"].ndim - 2

    def of_image(name: str, other: int, default: int) -> tuple[int, int]:
        """Return an option for both sides of an image, of which a signal is one row."""
        value = [int(number) for number in given.get(name, [default])]
        sides = [other] * (2 - dims) + value * (dims // len(value))
        return sides[0], sides[1]

    padding = None if isinstance(given.get("padding", 0), str) else of_image("padding", 0, 0)
    return KernelOptions(
        of_image("stride", 1, 1), of_image("dilation", 1, 1), given.get("groups", 1), padding
    )
