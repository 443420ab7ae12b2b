"""l_2 operator norms: exact for matrices, bounds for convolutions of any image size."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .. import network

_FREQUENCIES = 64  # in each direction
_MAX_GRAMS = 1 << 27  # elements of all Gram matrices of a convolution at once


def spectral_norm(matrix: Tensor) -> float:
    """Return the largest singular value of a matrix (m, n) from its smaller Gram matrix.

    The value is NaN unless the matrix is finite.

    Example:
        >>> spectral_norm(torch.tensor([[3., 0., 0.], [0., 0., 4.]], dtype=torch.float64))
        4.0
    """
    if not bool(torch.isfinite(matrix).all()):
        return math.nan
    gram = matrix @ matrix.mT if matrix.shape[-2] < matrix.shape[-1] else matrix.mT @ matrix
    return float(torch.linalg.eigvalsh(gram)[..., -1].max().clamp(min=0).sqrt())


def convolution_norm(
    kernel: Tensor,
    stride: tuple[int, int] = (1, 1),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
) -> float:
    """Return an upper bound of a convolution's operator norm for any image size and zero padding.

    On the infinite grid the norm is the largest ``||K(w)||`` over frequencies w; a stride s makes
    s^2 channels of each (its phases). ``||K(w)||^2`` of a direction is a trigonometric polynomial
    of degree d, the kernel's side less one, so that its maximum is at most that of n samples
    divided by ``cos(pi d / n)`` (M. Riesz), for each direction.

    Args:
        kernel: (O, C / groups, kh, kw).
        stride: (height, width), as for ``dilation``.
        dilation: Steps between the kernel's elements.
        groups: Number of groups.

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
    phases = _phases(_dilated(kernel.double(), dilation), stride)  # (O, C s s / groups, h, w)
    degrees = [side - 1 for side in phases.shape[2:]]
    frequencies = max(_FREQUENCIES, 8 * max(degrees))
    symbol = torch.fft.rfft2(phases, s=(frequencies, frequencies)).permute(2, 3, 0, 1).flatten(0, 1)
    symbol = symbol.unflatten(1, (groups, -1)).flatten(0, 1)  # a block per group
    side = min(symbol.shape[1:])
    largest = max(_largest(chunk) for chunk in symbol.split(max(1, _MAX_GRAMS // side**2)))
    return largest / math.sqrt(
        math.prod(math.cos(math.pi * degree / frequencies) for degree in degrees)
    )


def _largest(matrices: Tensor) -> float:
    gram = (
        matrices @ matrices.mH if matrices.shape[1] < matrices.shape[2] else matrices.mH @ matrices
    )
    return float(torch.linalg.eigvalsh(gram)[..., -1].max().clamp(min=0).sqrt())


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


def layer_norm(step: network.Step, weight: Tensor) -> float:
    """Return the norm of a step with such a weight."""
    if step.operator == "linear":
        return spectral_norm(weight)
    return convolution_norm(_image_kernel(weight), *_kernel_options(step))


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
    stride, dilation, groups = _kernel_options(step)
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
        return layer_norm(step, weight)
    if step.operator in ("conv_transpose1d", "conv_transpose2d"):
        # The adjoint of a convolution has its norm.
        kernel = _image_kernel(step.arguments["weight"].double())
        return convolution_norm(kernel, *_kernel_options(step))
    like = [graph.like.new_empty(graph.steps[before].shape) for before in step.sources]
    return network.schur_norm(step, like, source)


def _image_kernel(weight: Tensor) -> Tensor:
    return weight.unsqueeze(2) if weight.ndim == 3 else weight


def _kernel_options(step: network.Step) -> tuple[tuple[int, int], tuple[int, int], int]:
    """Return stride, dilation and groups of a convolution, as of images."""
    pairs = [list(step.arguments.get(name, [1])) for name in ("stride", "dilation")]
    dims = step.arguments["weight"].ndim - 2
    stride, dilation = ((*[1] * (2 - dims), *(pair * (dims // len(pair)))) for pair in pairs)
    return stride, dilation, step.arguments.get("groups", 1)
