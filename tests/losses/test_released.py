"""CURE's released l_2 attack against its description, worked out one example at a time."""

import math

import pytest
import torch
from torch import nn

from lirpa_multinorm import LossTerm, PerturbationL2Box
from lirpa_multinorm.attacks import AttackSettings
from lirpa_multinorm.losses import TRAINING_ATTACK, find_regions
from lirpa_multinorm.losses.released import released_attack
from tests.losses.cases import images
from tests.losses.slow_losses import Slow, released
from tests.networks import dense


def network():
    return dense(32, 16, 3).double()


def attack(model, x, y, eps, seed=0, settings=TRAINING_ATTACK):
    return released_attack(
        model, x, y, PerturbationL2Box(eps), settings, torch.Generator().manual_seed(seed)
    )


@pytest.mark.parametrize(
    "eps", [0.05, 0.3, 0.8, 2.0]
)  # from 0.5 on the pixel range, too, limits the step
@pytest.mark.parametrize("ratio", [1e-5, 0.25])
def test_points_and_boxes_are_the_descriptions(eps, ratio):
    model, (x, y) = network(), images()
    generators = [torch.Generator().manual_seed(5) for _ in range(2)]
    (_, lower, upper), adv = released(model, x, y, Slow(released, 2, eps, ratio), generators[0])
    term = LossTerm(PerturbationL2Box(eps), "released", ratio, mix="mtl")
    (region,), (point,) = find_regions(model, [(x, y)], [term], generator=generators[1])
    assert torch.allclose(point.center, adv, rtol=1e-9, atol=1e-12)
    x_L, x_U = region.perturbation.enclosing_box(region.center)
    assert torch.allclose(x_L, lower, rtol=1e-9, atol=1e-12) and torch.allclose(
        x_U, upper, rtol=1e-9, atol=1e-12
    )


def test_it_leaves_the_ball_but_not_the_box():
    model, (x, y) = network(), images(20)
    eps = 0.3
    adv = attack(model, x, y, eps)
    lengths = (adv - x).flatten(1).norm(dim=1)
    assert lengths.max() > 2 * eps and lengths.mean() > 1.2 * eps
    assert (adv - x).abs().max() <= eps + 1e-12 and adv.min() >= 0 and adv.max() <= 1


@pytest.mark.parametrize("ratio", [1e-5, 0.4, 1.0])
def test_the_box_lies_in_the_linf_box_of_the_same_radius(ratio):
    x, y = images()
    x = 0.3 + 0.4 * x  # the pixel range does not cut
    (region,) = find_regions(
        network(), [(x, y)], [LossTerm(PerturbationL2Box(0.25), "released", ratio)]
    ).regions
    x_L, x_U = region.perturbation.enclosing_box(region.center)
    assert (x_L >= x - 0.25 - 1e-12).all() and (x_U <= x + 0.25 + 1e-12).all()
    assert torch.allclose(x_U - x_L, torch.full_like(x, 2 * 0.25 * ratio))


def test_it_raises_the_mean_loss():
    """Not that of every example.

    The random start outweighs the steps, and the input is no candidate.
    """
    model, (x, y) = network(), images(20)
    adv, loss = attack(model, x, y, 0.3), nn.CrossEntropyLoss()
    assert loss(model(adv), y) > loss(model(x), y)
    assert not adv.requires_grad


def test_radius_zero_is_the_input():
    model, (x, y) = network(), images()
    assert torch.equal(attack(model, x, y, 0.0), x)


def test_same_seed_same_points():
    model, (x, y) = network(), images()
    assert torch.equal(attack(model, x, y, 0.3, 1), attack(model, x, y, 0.3, 1))
    assert not torch.equal(attack(model, x, y, 0.3, 1), attack(model, x, y, 0.3, 2))


def test_a_flat_loss_gives_finite_points():
    model, (x, y) = network(), images()
    nn.init.zeros_(model[3].weight)
    assert torch.isfinite(attack(model, x, y, 0.3)).all()


def test_settings_reach_it():
    """A single step is at most eps (the start) + eps from the input, twice a start and a step."""
    model, (x, y) = network(), images()
    single = attack(
        model,
        x,
        y,
        0.1,
        settings=AttackSettings(steps=1, step_size={2: 0.2, math.inf: 0.5}, loss="ce"),
    )
    many = attack(model, x, y, 0.1)
    assert (
        (single - x).flatten(1).norm(dim=1).max()
        <= 0.3 + 1e-9
        < (many - x).flatten(1).norm(dim=1).max()
    )


def test_modes_and_gradients_are_left_alone():
    model, (x, y) = network().train(), images()
    model[1].eval()
    attack(model, x, y, 0.3)
    assert [layer.training for layer in model] == [True, False, True, True]
    assert all(
        parameter.grad is None and parameter.requires_grad for parameter in model.parameters()
    )
