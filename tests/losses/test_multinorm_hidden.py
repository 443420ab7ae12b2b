"""Bounds inside the network that a loss gives to regularisers, against the formulas by hand."""

import pytest
import torch

from lirpa_multinorm import BoundedModule, build_loss
from lirpa_multinorm.losses import shi_regularizer
from tests.losses.cases import (
    CASES,
    SEED,
    assert_same_gradients,
    batch_norm_conv,
    by_hand,
    conv,
    flipped_conv,
    gradients,
    images,
    linear,
    mlp,
    network,
    normalized_conv,
    of_package,
)
from tests.losses.slow_losses import clean_statistics, input_ends, shi


def assert_hidden(found, model, slow):
    """The intervals and Shi's regularisers on them, gradients included."""
    ends = input_ends(model, slow.region)
    for one, other in zip(found.hidden.input, ends):
        assert torch.allclose(one, other, rtol=1e-9, atol=1e-12)
    assert len(found.hidden.relus) == len(slow.relus)
    for (lower, upper), (low, high) in zip(found.hidden.relus, slow.relus):
        assert torch.allclose(lower, low, rtol=1e-9, atol=1e-12) and torch.allclose(
            upper, high, rtol=1e-9, atol=1e-12
        )
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
    model, (x, y), case = network(make), images(5), CASES[name]
    _, _, slow = by_hand(model, x, y, case)
    assert_hidden(of_package(model, x, y, case, regularized=regularized), model, slow[number])


@pytest.mark.parametrize("name, number", [("joint", 0), ("ibp_three", 1)])
@pytest.mark.parametrize(
    "make", [conv, normalized_conv, flipped_conv], ids=lambda make: make.__name__
)
def test_hidden_bounds_of_convolutions(make, name, number):
    """The network's input is measured behind its normalisation."""
    model, (x, y), case = network(make), images(4), CASES[name]
    _, _, slow = by_hand(model, x, y, case)
    assert_hidden(of_package(model, x, y, case, regularized=number), model, slow[number])


def test_without_linf_the_first_branch_is_regularised():
    model, (x, y), case = network(mlp), images(5), CASES["cure_l2_0.3"]
    assert_hidden(of_package(model, x, y, case), model, by_hand(model, x, y, case)[2][0])


@pytest.mark.parametrize(
    "name, number", [("joint", 0), ("ibp", 0), ("max_three", 0), ("mtl_random", 0)]
)
def test_hidden_bounds_behind_batch_norm_in_training(name, number):
    model, (x, y), case = network(batch_norm_conv), images(), CASES[name]
    bounded = BoundedModule(model).train()
    bounded(x)
    _, _, slow = by_hand(model, x, y, case, clean_statistics(model, x))
    found = build_loss(case.name, case.sets, **case.options)(
        bounded, x, y, generator=torch.Generator().manual_seed(SEED)
    )
    assert_hidden(found, model, slow[number])
