"""Bounds inside the network that a loss gives to regularisers, against the formulas by hand."""

import pytest
import torch

from lirpa_multinorm import BoundedModule, build_loss
from lirpa_multinorm.losses import shi_regularizer
from tests.checks import assert_same
from tests.losses.cases import (
    CASES,
    SEED,
    assert_same_gradients,
    by_hand,
    gradients,
    images,
    of_package,
)
from tests.losses.slow_intervals import clean_statistics, input_ends
from tests.losses.slow_losses import shi
from tests.networks import (
    batch_norm_conv,
    conv,
    flipped_conv,
    in_float64,
    linear,
    mlp,
    normalized_conv,
)


def assert_hidden(found, model, slow):
    """The intervals and Shi's regularisers on them, gradients included."""
    ends = input_ends(model, slow.region)
    assert_same(found.hidden.input, ends, 1e-12, 1e-9)
    assert_same(found.hidden.relus, slow.relus, 1e-12, 1e-9)
    value, expected = shi_regularizer(found.hidden), shi(ends, slow.relus)
    assert value.item() == pytest.approx(expected.item(), rel=1e-8, abs=1e-12)
    if slow.relus:
        assert_same_gradients(gradients(value, model), gradients(expected, model))


@pytest.mark.parametrize(
    "name, number, regularized",
    [
        ("joint", 0, None),
        ("joint", 1, 1),
        ("joint", 1, -1),
        ("joint_released", 1, None),
        ("max_three", 2, 2),
        ("ibp", 1, 1),
        ("mtl", 0, None),
        ("cc", 1, 1),
        ("random", 0, None),
        ("random_three", 2, -1),
        ("cure", 0, None),
        ("joint_shrunk", 0, None),
    ],
)
@pytest.mark.parametrize("make", [linear, mlp], ids=lambda make: make.__name__)
def test_hidden_bounds_are_those_of_one_branch(make, name, number, regularized):
    """The first l_inf term, wherever it stands, unless another one is asked for."""
    model, (x, y), case = in_float64(make), images(5), CASES[name]
    _, _, slow = by_hand(model, x, y, case)
    assert_hidden(of_package(model, x, y, case, regularized=regularized), model, slow[number])


@pytest.mark.parametrize("name, number", [("joint", 0), ("ibp_three", 1)])
@pytest.mark.parametrize(
    "make", [conv, normalized_conv, flipped_conv], ids=lambda make: make.__name__
)
def test_hidden_bounds_of_convolutions(make, name, number):
    """The network's input is measured behind its normalisation."""
    model, (x, y), case = in_float64(make), images(4), CASES[name]
    _, _, slow = by_hand(model, x, y, case)
    assert_hidden(of_package(model, x, y, case, regularized=number), model, slow[number])


def test_without_linf_the_first_branch_is_regularised():
    model, (x, y), case = in_float64(mlp), images(5), CASES["cure_l2_0.3"]
    assert_hidden(of_package(model, x, y, case), model, by_hand(model, x, y, case)[2][0])


@pytest.mark.parametrize(
    "name, number", [("joint", 0), ("ibp", 0), ("max_three", 0), ("mtl_random", 0)]
)
def test_hidden_bounds_behind_batch_norm_in_training(name, number):
    model, (x, y), case = in_float64(batch_norm_conv), images(), CASES[name]
    bounded = BoundedModule(model).train()
    bounded(x)
    _, _, slow = by_hand(model, x, y, case, clean_statistics(model, x))
    result = build_loss(case.name, case.sets, **case.options)(
        bounded, x, y, generator=torch.Generator().manual_seed(SEED)
    )
    assert_hidden(result, model, slow[number])
