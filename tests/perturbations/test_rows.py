"""The three forms of linear forms against autograd's dense matrix of the same convolution."""

import math

import pytest
import torch
from torch import nn

from lirpa_multinorm import host
from lirpa_multinorm.perturbations import PerturbationLpBox, PerturbationStack
from lirpa_multinorm.perturbations.rows import (
    DenseRows,
    IdentityRows,
    KernelRows,
    PatchRows,
    as_rows,
)
from lirpa_multinorm.perturbations.support import support_l1_box, support_l2_box

SHAPE = (2, 5, 6)
BATCH = 3

CONVOLUTIONS = {
    "plain": {"kernel_size": 3},
    "padded": {"kernel_size": 3, "padding": 1},
    "wide_padding": {"kernel_size": 2, "padding": 2},
    "strided": {"kernel_size": 3, "stride": 2, "padding": 1},
    "uneven": {"kernel_size": (2, 3), "stride": (1, 2), "padding": (0, 1)},
    "one_pixel": {"kernel_size": 1},
    "dilated": {"kernel_size": 2, "dilation": 2, "padding": 1},
    "uneven_dilation": {"kernel_size": (2, 3), "dilation": (3, 1), "stride": (2, 1)},
    "grouped": {"kernel_size": 3, "padding": 1, "groups": 2},
    "everything": {
        "kernel_size": (3, 2),
        "stride": (2, 1),
        "padding": (2, 1),
        "dilation": (1, 2),
        "groups": 2,
    },
}
convolutions = pytest.mark.parametrize("options", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
# A patch of the host knows neither dilation nor groups.
patch_options = pytest.mark.parametrize(
    "options",
    [o for o in CONVOLUTIONS.values() if not {"dilation", "groups"} & set(o)],
    ids=[name for name, o in CONVOLUTIONS.items() if not {"dilation", "groups"} & set(o)],
)


def convolution(options):
    return nn.Conv2d(SHAPE[0], 4, bias=False, **options).double()


def matrix(conv):
    """The convolution as a matrix (S, n), found by autograd."""
    jacobian = torch.autograd.functional.jacobian(
        lambda z: conv(z.view(1, *SHAPE)).flatten(),
        torch.zeros(math.prod(SHAPE), dtype=torch.float64),
    )
    return jacobian.detach()


def kernel_rows(conv):
    size = conv(torch.zeros(1, *SHAPE, dtype=torch.float64)).shape[2:]
    return KernelRows(
        conv.weight.detach(), conv.stride, conv.padding, conv.dilation, conv.groups, size
    )


def patch_rows(conv, batch, unstable=None):
    """The host's patches for a convolution's outputs, all or the listed (channel, row, column)."""
    out = conv(torch.zeros(1, *SHAPE, dtype=torch.float64)).shape
    weight = conv.weight.detach()
    top, left = conv.padding
    options = {"stride": conv.stride, "padding": (left, left, top, top)}
    if unstable is None:
        pieces = weight.view(out[1], 1, 1, 1, *weight.shape[1:]).expand(
            -1, batch, *out[2:], -1, -1, -1
        )
    else:
        pieces = weight[unstable[0]].unsqueeze(1).expand(-1, batch, -1, -1, -1)
    patches = host.Patches(
        pieces.contiguous(), shape=pieces.shape, unstable_idx=unstable, output_shape=out, **options
    )
    return PatchRows(patches, SHAPE)


def images():
    generator = torch.Generator().manual_seed(2)
    z, lo, hi = (
        torch.rand(BATCH, *SHAPE, generator=generator, dtype=torch.float64) for _ in range(3)
    )
    return 2 * z - 1, -lo, hi


COUPLERS = (support_l1_box, support_l2_box)


def assert_equal(rows, dense, batch=BATCH):
    """Everything a set asks of linear forms agrees with the dense matrix (B or 1, S, n)."""
    z, lo, hi = (image[:batch] for image in images())
    eps = torch.tensor([0.3, 0.8, 2.0], dtype=torch.float64)[:batch]
    assert torch.allclose(
        rows.apply(z), torch.einsum("bsn,bn->bs", dense.expand(batch, -1, -1), z.flatten(1))
    )
    assert torch.allclose(
        rows.apply_abs(hi),
        torch.einsum("bsn,bn->bs", dense.abs().expand(batch, -1, -1), hi.flatten(1)),
    )
    for function in COUPLERS:
        expected = torch.stack(
            [
                function(a, lo[i].flatten(), hi[i].flatten(), eps[i].expand(len(a)))
                for i, a in enumerate(dense.expand(batch, -1, -1))
            ]
        )
        assert torch.allclose(rows.couple(function, lo, hi, eps), expected, atol=1e-7)


def assert_norms(rows, dense):
    for p in (1, 2, math.inf):
        expected = torch.linalg.vector_norm(dense, p, dim=-1)
        result = rows.norm(p)
        assert result.shape[-1] == expected.shape[-1]
        assert torch.allclose(result, expected.expand_as(result))


def test_dense_rows():
    dense = torch.randn(BATCH, 7, math.prod(SHAPE), dtype=torch.float64)
    assert_equal(DenseRows(dense), dense)
    assert_norms(DenseRows(dense), dense)
    assert_equal(DenseRows(dense)[1:3], dense[1:3], batch=2)


def test_dense_rows_shared_by_the_batch():
    dense = torch.randn(1, 7, math.prod(SHAPE), dtype=torch.float64)
    assert_equal(DenseRows(dense), dense)
    assert_equal(DenseRows(dense)[2:3], dense, batch=1)


def test_identity_rows():
    eye = torch.eye(math.prod(SHAPE), dtype=torch.float64).unsqueeze(0)
    rows = IdentityRows()
    assert_equal(rows, eye)
    assert_equal(rows[0:2], eye, batch=2)
    for p in (1, 2, math.inf):
        assert torch.equal(rows.norm(p), torch.ones(1, 1))


@convolutions
def test_kernel_rows(options):
    conv = convolution(options)
    assert_equal(kernel_rows(conv), matrix(conv).unsqueeze(0))


@convolutions
def test_kernel_norms_are_those_of_the_whole_kernel(options):
    """Never less than the true norm, and equal where the kernel does not overlap the padding."""
    conv = convolution(options)
    dense, padded = matrix(conv), any(conv.padding)
    for p in (1, 2, math.inf):
        true, result = torch.linalg.vector_norm(dense, p, dim=-1), kernel_rows(conv).norm(p)[0]
        assert result.shape == true.shape
        assert (result >= true - 1e-12).all()
        assert torch.allclose(result, true) or padded


@patch_options
def test_patch_rows(options):
    conv = convolution(options)
    rows, dense = patch_rows(conv, BATCH), matrix(conv).unsqueeze(0)
    assert_equal(rows, dense)
    assert_norms(rows, dense)
    assert_equal(rows[1:3], dense, batch=2)


@patch_options
def test_sparse_patch_rows(options):
    conv = convolution(options)
    channels, height, width = conv(torch.zeros(1, *SHAPE, dtype=torch.float64)).shape[1:]
    unstable = tuple(
        torch.tensor(index) for index in ([0, 3, 3, 1], [0, 0, height - 1, 1], [1, 0, width - 1, 0])
    )
    kept = (unstable[0] * height + unstable[1]) * width + unstable[2]
    rows, dense = patch_rows(conv, BATCH, unstable), matrix(conv)[kept].unsqueeze(0)
    assert_equal(rows, dense)
    assert_norms(rows, dense)
    assert_equal(rows[0:2], dense, batch=2)


def _network(*first):
    features = nn.Sequential(*first)(torch.zeros(1, 2, 8, 8)).shape[1]
    return nn.Sequential(
        *first,
        nn.Conv2d(features, 3, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(3, 2, 2, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.LazyLinear(3),
    )


CAPTURED = {
    "conv": lambda: _network(nn.Conv2d(2, 3, 3, padding=1), nn.ReLU()),
    "strided_conv": lambda: _network(nn.Conv2d(2, 3, 2, stride=2), nn.ReLU()),
    "average_pool": lambda: _network(nn.AvgPool2d(2)),
}


@pytest.mark.parametrize("mode", ["patches", "matrix"])
@pytest.mark.parametrize("name", CAPTURED)
def test_what_the_host_arrives_with(name, mode, monkeypatch):
    """Patches and matrices of real backward passes give the same bounds for every set."""
    from lirpa_multinorm import BoundedModule

    model, x = CAPTURED[name](), torch.rand(BATCH, 2, 8, 8)
    model(x)
    seen, original = [], PerturbationStack.concretize

    def watching(self, x, A, sign=-1, aux=None, **options):
        bound = original(self, x, A, sign=sign, aux=aux, **options)
        if A is not None:
            seen.append((self, as_rows(A, x.shape[1:]), sign, bound.detach().flatten(1)))
        return bound

    monkeypatch.setattr(PerturbationStack, "concretize", watching)
    sets = [PerturbationLpBox(norm, eps) for norm, eps in ((math.inf, 0.1), (2, 0.6), (1, 1.5))]
    sets.append(PerturbationLpBox(2, 0.6, clip=None))
    bounded = BoundedModule(model, perturbations=sets, bound_opts={"conv_mode": mode})
    bounded.compute_norm_bounds(x, method="CROWN")
    kinds = {type(rows) for _, rows, _, _ in seen}
    # The old host cannot do average pooling in patches mode; the module falls back to matrices.
    assert kinds >= ({PatchRows} if mode == "patches" and name != "average_pool" else {DenseRows})
    for stack, rows, sign, bound in seen:
        rows_dense = dense_of(rows, sum(r.center.shape[0] for r in stack.regions))
        expected = torch.cat(
            [
                region.perturbation.extreme(rows_dense[index], region.center, sign)
                for index, region in stack.slices()
            ]
        )
        assert torch.allclose(bound, expected.detach(), atol=1e-4)


def dense_of(rows, batch):
    """Rows as a matrix, read off by what they say of every single pixel."""
    if isinstance(rows, (DenseRows, IdentityRows)):
        return rows
    pixels = torch.eye(128).view(128, 2, 8, 8)
    columns = [rows.apply(pixel.expand(batch, -1, -1, -1)) for pixel in pixels]
    return DenseRows(torch.stack(columns, dim=-1))


@pytest.mark.parametrize(
    "A,expected",
    [(torch.zeros(2, 3, 4, 5), DenseRows), (host.eyeC((1, 4), "cpu"), IdentityRows)],
    ids=["tensor", "identity"],
)
def test_as_rows(A, expected):
    rows = as_rows(A, (4, 5))
    assert type(rows) is expected
    if expected is DenseRows:
        assert rows.A.shape == (2, 3, 20)


@pytest.mark.parametrize("p", [1.0, 2.0, float("inf")])
def test_functionals_of_no_coordinates_have_norm_zero(p):
    assert torch.equal(DenseRows(torch.zeros(2, 3, 0)).norm(p), torch.zeros(2, 3))
