"""MTL-IBP, CC-IBP and Exp-IBP against the formulas in plain Python numbers."""

import math

import pytest
import torch

from lirpa_multinorm.losses.mixing import MIXES


def loss(margins):
    return math.log1p(sum(math.exp(-margin) for margin in margins))


SLOW = {
    "mtl": lambda bound, point, alpha: alpha * loss(bound) + (1 - alpha) * loss(point),
    "cc": lambda bound, point, alpha: loss(
        [alpha * b + (1 - alpha) * p for b, p in zip(bound, point)]
    ),
    "exp": lambda bound, point, alpha: loss(bound) ** alpha * loss(point) ** (1 - alpha),
}
mixes = pytest.mark.parametrize("mix", SLOW)


def margins(rows=9):
    """A bound, and points whose margins are larger."""
    bound = torch.randn(rows, 3, dtype=torch.float64) * 2
    return (
        bound.requires_grad_(),
        (bound.detach() + torch.rand(rows, 3, dtype=torch.float64) * 3).requires_grad_(),
    )


def test_every_mix_is_covered_here():
    assert set(MIXES) == set(SLOW)


@mixes
@pytest.mark.parametrize("alpha", [0.0, 0.01, 0.3, 0.9, 1.0])
def test_value_is_the_formula(mix, alpha):
    bound, point = margins()
    expected = [SLOW[mix](b, p, alpha) for b, p in zip(bound.tolist(), point.tolist())]
    assert MIXES[mix](bound, point, alpha).tolist() == pytest.approx(expected, rel=1e-12)


@mixes
@pytest.mark.parametrize("alpha", [0.2, 0.7])
def test_gradients_are_the_formulas(mix, alpha):
    bound, point = margins(4)
    result = torch.autograd.grad(MIXES[mix](bound, point, alpha).sum(), [bound, point])
    for place, gradient in enumerate(result):
        for i in range(4):
            for j in range(3):
                ends = []
                for step in (1e-6, -1e-6):
                    rows = [bound[i].tolist(), point[i].tolist()]
                    rows[place][j] += step
                    ends.append(SLOW[mix](*rows, alpha))
                assert gradient[i, j].item() == pytest.approx(
                    (ends[0] - ends[1]) / 2e-6, rel=1e-5, abs=1e-9
                )


def test_order_of_the_three():
    """Between point and bound; the three convex combinations are ordered by Jensen's inequality."""
    bound, point = margins(200)
    ends = [MIXES["mtl"](bound, point, alpha) for alpha in (0.0, 1.0)]
    mtl, cc, exp = (MIXES[mix](bound, point, 0.4) for mix in ("mtl", "cc", "exp"))
    assert all(
        ((ends[0] <= item + 1e-12) & (item <= ends[1] + 1e-12)).all() for item in (mtl, cc, exp)
    )
    assert (cc <= mtl + 1e-12).all() and (exp <= mtl + 1e-12).all()


@pytest.mark.parametrize("margin", [5.0, 12.0, 20.0, 39.9, 40.1, 70.0])
def test_a_product_with_a_loss_too_small_to_be_added_to_1(margin):
    """In float32, whose logarithm of 1 + e^-20 is 0.

    The bound's gradient must not be lost with the point's loss.
    """
    bound, point = (
        torch.tensor([[1.0, 2.0]], requires_grad=True),
        torch.tensor([[margin, margin + 1]]),
    )
    result = MIXES["exp"](bound, point, 0.9)
    (slope,) = torch.autograd.grad(result.sum(), bound)
    ends = [SLOW["exp"]([1.0 + step, 2.0], point[0].tolist(), 0.9) for step in (1e-6, -1e-6)]
    assert result.item() == pytest.approx(SLOW["exp"]([1.0, 2.0], point[0].tolist(), 0.9), rel=1e-5)
    assert slope[0, 0].item() == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-4)


UNDERFLOW = {
    "both": ([[80.0, 90.0]], [[95.0, 99.0]]),
    "point": ([[-3.0, 2.0]], [[200.0, 300.0]]),
    "huge_bound": ([[-1e4, 5.0]], [[1e4, 1e4]]),
    "infinitely_small": ([[1e5, 1e5]], [[1e6, 1e6]]),
}


@mixes
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bound, point", UNDERFLOW.values(), ids=UNDERFLOW)
def test_losses_that_underflow_have_finite_gradients(mix, dtype, bound, point):
    rows = [torch.tensor(item, dtype=dtype, requires_grad=True) for item in (bound, point)]
    value = MIXES[mix](*rows, 0.5)
    assert torch.isfinite(value).all() and (value >= 0).all()
    assert all(torch.isfinite(item).all() for item in torch.autograd.grad(value.sum(), rows))
