"""Distances in l_p norms: values and gradients of the direct formula, in little memory."""

from __future__ import annotations

import math
import subprocess
import sys
import textwrap

import pytest
import torch

from lirpa_multinorm.utils import distances as module
from lirpa_multinorm.utils.distances import distances, exponent, p_norm
from tests.checks import assert_same

EXPONENTS = [1, 1.5, 2, 3, 8, 63.7, 1000, 1024, math.inf]


def direct(x, weight, p):
    """The formula without blocks, by torch's operators."""
    size = (x.unsqueeze(1) - weight).abs()
    largest = size.amax(-1)
    if p == math.inf:
        return largest
    return largest * ((size / largest.unsqueeze(-1)) ** p).sum(-1) ** (1 / p)


def points(rows=4, neurons=5, inputs=7, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(count, inputs, generator=generator, dtype=dtype).requires_grad_()
        for count in (rows, neurons)
    ]


def inverse(p, dtype=torch.float64):
    return torch.tensor(1 / p, dtype=dtype)


def test_values_by_hand():
    x, weight = torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 0.0], [3.0, 0.0]])
    for p, expected in ((1, [7.0, 4.0]), (2, [5.0, 4.0]), (math.inf, [4.0, 4.0])):
        assert_same(distances(x, weight, inverse(p)), torch.tensor([expected]))


@pytest.mark.parametrize("p", EXPONENTS, ids=str)
def test_values_and_gradients_are_those_of_the_direct_formula(p):
    x, weight = points()
    result, expected = distances(x, weight, inverse(p)), direct(x, weight, p)
    assert_same(result, expected, 1e-12, 1e-12)
    seed = torch.randn(result.shape, generator=torch.Generator().manual_seed(1), dtype=result.dtype)
    assert_same(
        torch.autograd.grad(result, (x, weight), seed),
        torch.autograd.grad(expected, (x, weight), seed),
        1e-11,
        1e-11,
    )


@pytest.mark.parametrize("p", [2, 8, 1000, math.inf], ids=str)
def test_gradients_are_those_of_small_differences(p):
    assert torch.autograd.gradcheck(lambda x, weight: distances(x, weight, inverse(p)), points())


@pytest.mark.parametrize("p", [2, 8, 1000, math.inf], ids=str)
def test_blocks_change_nothing(p, monkeypatch):
    whole = points(11, 13, 7)
    results = []
    for size in (1 << 20, 40, 1):
        monkeypatch.setattr(module, "BLOCK_CPU", size)
        value = distances(*whole, inverse(p))
        results.append([value, *torch.autograd.grad(value.sum(), whole)])
    for result in results[1:]:
        assert_same(result, results[0], 1e-11, 1e-11)


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_no_power_overflows_or_vanishes(size):
    x, weight = (value.detach().float().requires_grad_() for value in points())
    for p in (8, 1000, 1024):
        value = distances(size * x, size * weight, inverse(p))
        expected = direct(x.double(), weight.double(), p) * size
        assert bool(((value.double() / expected - 1).abs() < 1e-5).all())
        gradient = torch.autograd.grad(value.sum(), x)[0]
        assert bool(gradient.isfinite().all()) and bool(gradient.any())


def test_a_point_on_a_weight_has_distance_zero_and_a_finite_gradient():
    x = torch.ones(1, 3, requires_grad=True)
    for p in EXPONENTS:
        value = distances(x, torch.ones(2, 3), inverse(p))
        assert not value.any()
        assert bool(torch.autograd.grad(value.sum(), x)[0].isfinite().all())


def test_large_exponents_come_to_the_limit():
    x, weight = points(inputs=50)
    limit = distances(x, weight, inverse(math.inf))
    for p in (8, 64, 1000):
        result = distances(x, weight, inverse(p))
        assert bool((result >= limit - 1e-12).all())
        assert bool((result <= limit * 50 ** (1 / p) + 1e-12).all())


def test_empty_batches_have_no_distances():
    _, weight = points()
    assert distances(weight.new_zeros(0, 7), weight, inverse(8)).shape == (0, 5)


def test_exponents_are_read_back():
    assert [exponent(inverse(p, torch.float32)) for p in (8, 1024, math.inf)] == [8, 1024, math.inf]
    assert_same(p_norm(torch.tensor([[3.0, 4.0]]), 2), torch.tensor([5.0]))


def test_memory_is_that_of_a_block():
    # All differences together would take 512 MiB: 32 x 1024 x 4096 numbers.
    assert _peak("32, 1024, 4096, 8.0") < 200


@pytest.mark.slow
@pytest.mark.parametrize("p", ["8.0", "1000.0", "math.inf"])
def test_a_layer_of_the_published_width_stays_below_two_gibibytes(p):
    assert _peak(f"128, 5120, 5120, {p}") < 2048


def _peak(case: str) -> float:
    """How many MiB forward and backward add to a fresh process's peak, for (B, m, n, p)."""
    script = textwrap.dedent(
        f"""
        import math, resource, torch
        from lirpa_multinorm.utils.distances import distances
        torch.set_num_threads(1)
        rows, neurons, inputs, p = {case}
        def peak():
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        before = peak()
        x = torch.randn(rows, inputs, requires_grad=True)
        weight = torch.randn(neurons, inputs, requires_grad=True)
        distances(x, weight, torch.tensor(1 / p)).sum().backward()
        print(peak() - before)
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    return float(done.stdout)
