"""Shi's regularisers against loops over neurons, and by hand."""

import pytest
import torch

from lirpa_multinorm.bounds import IntermediateIntervals
from lirpa_multinorm.losses import shi_regularizer
from tests.losses.slow_losses import shi


def intervals(shape, seed=0, shift=0.0, width=1.0):
    generator = torch.Generator().manual_seed(seed)
    center = torch.randn(shape, generator=generator, dtype=torch.float64) + shift
    radius = torch.rand(shape, generator=generator, dtype=torch.float64) * width
    return (center - radius).requires_grad_(), (center + radius).requires_grad_()


def rows(*values):
    """(lower, upper) from pairs, one per neuron."""
    return tuple(torch.tensor([ends], dtype=torch.float64) for ends in zip(*values))


ENDS = rows((0.0, 0.2))  # half-width 0.1
CASES = {
    "dense": [(4, 6)],
    "two_layers": [(4, 6), (4, 3)],
    "conv": [(2, 3, 4, 4), (2, 5)],
    "one": [(1, 1)],
}


@pytest.mark.parametrize("shapes", CASES.values(), ids=CASES)
@pytest.mark.parametrize("tolerance", [0.5, 0.25, 1.0])
@pytest.mark.parametrize("shift", [-1.0, 0.0, 0.7])
def test_values_and_gradients_are_the_formulas(shapes, tolerance, shift):
    ends = intervals((4, 5), width=0.4)
    relus = [intervals(shape, seed, shift) for seed, shape in enumerate(shapes)]
    value, expected = (
        shi_regularizer(IntermediateIntervals(ends, relus), tolerance),
        shi(ends, relus, tolerance),
    )
    assert value.item() == pytest.approx(expected.item(), rel=1e-10, abs=1e-14)
    leaves = [*ends, *[end for layer in relus for end in layer]]
    result, others = (
        (
            torch.autograd.grad(item, leaves, allow_unused=True, retain_graph=True)
            if item.requires_grad
            else [None] * len(leaves)
        )
        for item in (value, expected)
    )
    for item, other, leaf in zip(result, others, leaves):
        item, other = (
            torch.zeros_like(leaf) if gradient is None else gradient for gradient in (item, other)
        )
        assert torch.allclose(item, other, rtol=1e-9, atol=1e-12)


# name -> (lower and upper of each neuron, value): the input's half-width is 0.1, the tolerance 0.5
BY_HAND = {
    # half-width 1: tightness (0.5 - 0.1) / 0.5; active centre 2, inactive -2: both ratios are 1
    "balanced": ([(1.0, 3.0), (-3.0, -1.0)], 0.8),
    # twice the input's half-width: no tightness left; centres 4 and -1: ratio 4, folded 0.25;
    # deviations equal
    "more_active": ([(3.8, 4.2), (-1.2, -0.8)], 0.5),
    # the other way round: the ratio is 0.25 itself
    "more_inactive": ([(0.8, 1.2), (-4.2, -3.8)], 0.5),
    # centres 3, -1, -1: means 3 : 2, folded 2/3; deviations from 1/3: 64/9 : 2 x 16/9 = 2, folded
    # 1/2
    "three": ([(2.8, 3.2), (-1.2, -0.8), (-1.2, -0.8)], 0.0),
    # crossing neurons count for the means but on neither side: centres 1, 1, 4, -1 have mean 1.25;
    # deviations 7.5625 : 5.0625, folded 0.669; means 4 : 1, folded 0.25
    "crossing": (
        [(-0.2, 2.2), (-0.2, 2.2), (3.9, 4.1), (-1.1, -0.9)],
        2 * (0.5 - 0.1 / 0.65) + 0.5,
    ),
    "nothing_active": ([(-0.3, 0.1), (-4.2, -3.8)], 2.0),  # both ratios are 0
    "nothing_inactive": ([(0.8, 1.2), (-0.1, 0.3)], 0.0),  # the ratios are infinite: left out
    "all_crossing": ([(-0.1, 0.3), (-0.3, 0.1)], 0.0),  # 0 / 0: left out
    "touching_zero": ([(0.0, 0.4), (-0.4, 0.0)], 0.0),  # neither stably active nor inactive
}


@pytest.mark.parametrize("neurons, value", BY_HAND.values(), ids=BY_HAND)
def test_by_hand(neurons, value):
    assert shi_regularizer(IntermediateIntervals(ENDS, [rows(*neurons)])).item() == pytest.approx(
        value, abs=1e-12
    )
    assert shi(ENDS, [rows(*neurons)]).item() == pytest.approx(value, abs=1e-12)


def test_the_mean_over_layers_counts_those_whose_balance_is_left_out():
    layers = [rows(*BY_HAND["more_active"][0]), rows(*BY_HAND["nothing_inactive"][0])]
    assert shi_regularizer(IntermediateIntervals(ENDS, layers)).item() == pytest.approx(0.25)


def test_a_network_without_relu_is_zero():
    assert shi_regularizer(IntermediateIntervals(ENDS, [])).item() == 0


def test_terms_left_out_leave_no_gradient():
    lower, upper = (end.requires_grad_() for end in rows((0.8, 1.2), (0.5, 0.9)))
    value = shi_regularizer(IntermediateIntervals(ENDS, [(lower, upper)]))
    value = value + 0 * lower.sum()
    gradients = torch.autograd.grad(value, [lower, upper], allow_unused=True)
    assert all(item is None or torch.isfinite(item).all() for item in gradients)


@pytest.mark.parametrize("center", [0.0, 1.0, -1.0])
def test_points_have_finite_values_and_gradients(center):
    """Before there is a radius."""
    ends = tuple(torch.full((2, 3), 0.5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    lower, upper = (
        torch.tensor([[center, -center]], dtype=torch.float64, requires_grad=True) for _ in range(2)
    )
    value = shi_regularizer(IntermediateIntervals(ends, [(lower, upper)]))
    gradients = torch.autograd.grad(value, [*ends, lower, upper], allow_unused=True)
    assert torch.isfinite(value) and all(
        item is None or torch.isfinite(item).all() for item in gradients
    )


def test_wider_layers_cost_more_until_the_tolerance():
    """Tightness is 0 up to a layer width of 1 / t times the input's, and less than 1 beyond."""
    layers = [rows((2 - width, 2 + width)) for width in (0.1, 0.2, 0.4, 1)]
    values = [shi_regularizer(IntermediateIntervals(ENDS, [layer])).item() for layer in layers]
    assert values == pytest.approx([0.0, 0.0, 0.5, 0.8])
