"""Norms of matrices and convolutions: exact, never too small, and nearly exact for large images."""

import math

import pytest
import torch
import torch.nn.functional as F

from lirpa_multinorm.verifier.lipschitz.operator_norms import convolution_norm, spectral_norm

#: Kernel, stride, padding, dilation, groups.
KERNELS = {
    "plain": ((4, 3, 3, 3), 1, 1, 1, 1),
    "strided": ((4, 3, 4, 4), 2, 1, 1, 1),
    "odd_stride": ((3, 2, 3, 3), 2, 1, 1, 1),
    "dilated": ((2, 2, 3, 3), 1, 2, 2, 1),
    "grouped": ((4, 2, 3, 3), 1, 1, 1, 2),
    "point": ((5, 3, 1, 1), 1, 0, 1, 1),
    "unequal": ((3, 2, 1, 5), 1, (0, 2), 1, 1),
    "wide": ((2, 1, 7, 7), 3, 3, 1, 1),
    "no_padding": ((3, 2, 3, 3), 1, 0, 1, 1),
}


def pair(value):
    return value if isinstance(value, tuple) else (value, value)


def matrix(kernel, side, stride, padding, dilation, groups):
    """The convolution written out."""
    channels = kernel.shape[1] * groups
    images = torch.eye(channels * side * side, dtype=kernel.dtype).view(-1, channels, side, side)
    return F.conv2d(images, kernel, None, stride, padding, dilation, groups).flatten(1).T


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("side", [5, 12])
def test_no_image_size_has_a_larger_norm(name, side):
    shape, stride, padding, dilation, groups = KERNELS[name]
    kernel = torch.randn(shape, dtype=torch.float64)
    if side < (shape[2] - 1) * dilation + 1 - 2 * pair(padding)[0]:
        return
    bound = convolution_norm(kernel, pair(stride), pair(dilation), groups)
    true = spectral_norm(matrix(kernel, side, stride, padding, dilation, groups))
    assert true <= bound * (1 + 1e-9)
    assert side == 5 or bound < 1.3 * true


def test_it_is_nearly_exact_for_large_images():
    kernel = torch.randn(2, 2, 3, 3, dtype=torch.float64)
    assert convolution_norm(kernel) < 1.03 * spectral_norm(matrix(kernel, 24, 1, 1, 1, 1))


@pytest.mark.parametrize("shift", [0.3, 1.0, 2.2])
def test_samples_between_which_the_maximum_lies_do_not_deceive(shift):
    """A difference kernel has its maximum at a frequency of its own, between the samples."""
    wave = torch.cos(shift * torch.arange(9, dtype=torch.float64))
    kernel = wave.view(1, 1, 1, 9) * wave.view(1, 1, 9, 1)
    fine = torch.fft.fft2(kernel[0, 0], s=(4096, 64)).abs().max()
    rows = torch.fft.fft(wave, n=1 << 16).abs().max() ** 2  # the kernel is a product
    assert convolution_norm(kernel) >= float(rows) * (1 - 1e-9) and float(fine) <= float(rows) * (
        1 + 1e-9
    )


@pytest.mark.parametrize("shape", [(3, 7), (7, 3), (4, 4), (1, 5)])
def test_spectral_norm_is_the_largest_singular_value(shape):
    values = torch.randn(shape, dtype=torch.float64)
    assert spectral_norm(values) == pytest.approx(
        float(torch.linalg.matrix_norm(values, 2)), rel=1e-9
    )


def test_nan_has_no_norm():
    assert math.isnan(spectral_norm(torch.full((2, 2), math.nan)))
    assert math.isnan(convolution_norm(torch.full((1, 1, 2, 2), math.inf)))
