"""Norms of matrices and convolutions: exact, never too small, and nearly exact for large images."""

import math

import pytest
import torch
import torch.nn.functional as F

from lirpa_multinorm.verifier.lipschitz.operator_norms import (
    KernelOptions,
    convolution_norm,
    spectral_norm,
)
from lirpa_multinorm.verifier.lipschitz.singular_values import largest_singular_value

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


def norm_of(matrix):
    """The largest singular value by LAPACK."""
    return float(torch.linalg.svdvals(matrix)[0])


def options_of(name, image=True):
    _, stride, padding, dilation, groups = KERNELS[name]
    return KernelOptions(pair(stride), pair(dilation), groups, pair(padding) if image else None)


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("side", [5, 12])
def test_no_image_size_has_a_larger_norm(name, side):
    shape, stride, padding, dilation, groups = KERNELS[name]
    kernel = torch.randn(shape, dtype=torch.float64)
    if side < (shape[2] - 1) * dilation + 1 - 2 * pair(padding)[0]:
        return
    true = norm_of(matrix(kernel, side, stride, padding, dilation, groups))
    bound = convolution_norm(kernel, options_of(name))
    assert true <= bound
    assert side == 5 or bound < 1.3 * true
    of_this_size = convolution_norm(kernel, options_of(name), (side, side))
    assert true <= of_this_size <= bound * 1.0001


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("kernel", [1, 2, 3, 5])
@pytest.mark.parametrize("padding", [0, 1, 2, 4])
def test_a_torus_holds_every_image(stride, kernel, padding):
    """Also where the kernel is larger than the image, or the padding larger than the kernel."""
    for side in (3, 4, 7, 10):
        if side + 2 * padding < kernel:
            continue
        weight = torch.randn(3, 2, kernel, kernel, dtype=torch.float64)
        true = norm_of(matrix(weight, side, stride, padding, 1, 1))
        options = KernelOptions(pair(stride), (1, 1), 1, pair(padding))
        assert true <= convolution_norm(weight, options, (side, side))


def test_a_torus_is_nearly_exact():
    kernel = torch.randn(4, 4, 3, 3, dtype=torch.float64)
    bound = convolution_norm(kernel, KernelOptions(padding=(1, 1)), (14, 14))
    assert bound < 1.05 * norm_of(matrix(kernel, 14, 1, 1, 1, 1))


def test_it_is_nearly_exact_for_large_images():
    kernel = torch.randn(2, 2, 3, 3, dtype=torch.float64)
    assert convolution_norm(kernel) < 1.03 * norm_of(matrix(kernel, 24, 1, 1, 1, 1))


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


@pytest.mark.parametrize("shape", [(3, 7), (7, 3), (4, 4), (1, 5), (40, 60)])
def test_spectral_norm_is_the_largest_singular_value_rounded_up(shape):
    for seed in range(20):
        values = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).double()
        assert norm_of(values) < spectral_norm(values) < norm_of(values) * 1.001


def hard(name, side=60):
    """Matrices of which power iteration finds too little, or rounding makes too little."""
    basis = torch.linalg.qr(torch.randn(side, side, dtype=torch.float64))[0]
    values = {
        "close together": 1 - torch.linspace(0, 1e-5, side),
        "all the same": torch.ones(side),
        "one large": torch.cat([torch.ones(1), torch.full((side - 1,), 1e-9)]),
        "huge": torch.linspace(1e100, 1e99, side, dtype=torch.float64),
        "tiny": torch.linspace(1e-100, 1e-99, side, dtype=torch.float64),
    }[name].double()
    return basis @ torch.diag(values) @ torch.linalg.qr(torch.randn_like(basis))[0]


@pytest.mark.parametrize("name", ["close together", "all the same", "one large", "huge", "tiny"])
def test_no_matrix_is_too_hard(name):
    values = hard(name)
    assert norm_of(values) * (1 - 1e-12) < largest_singular_value(values)
    assert largest_singular_value(values) < norm_of(values) * 1.001


def test_an_iteration_that_starts_wrong_proves_nothing():
    """Its start, the longest columns, is orthogonal to the vector that is lengthened most."""
    values = torch.zeros(40, 40, dtype=torch.float64)
    values[:30, :30] = torch.eye(30) * 2  # the longest columns
    values[30:, 30:] = 0.5  # a norm of 5
    assert 5 <= spectral_norm(values) < 5.01
    assert 5 <= largest_singular_value(torch.stack([values, values.T]).cfloat().cdouble()) < 5.01


def test_no_matrices_and_no_entries():
    assert spectral_norm(torch.zeros(3, 4)) == 0.0
    assert spectral_norm(torch.zeros(0, 4)) == 0.0


def test_nan_has_no_norm():
    assert math.isnan(spectral_norm(torch.full((2, 2), math.nan)))
    assert math.isnan(convolution_norm(torch.full((1, 1, 2, 2), math.inf)))
