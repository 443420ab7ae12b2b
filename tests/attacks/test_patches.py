"""Attacks by patches stay in the set, and find what there is to find."""

import pytest
import torch

from lirpa_multinorm import AttackSettings
from lirpa_multinorm.attacks import RowGenerator, margin_loss
from lirpa_multinorm.attacks.patches import attack_patches
from lirpa_multinorm.perturbations.patch import PerturbationPatch
from tests.networks import conv, mlp, normalized_conv, pixels, with_parameters

SETTINGS = AttackSettings(steps=8)


def attacked(model, x, y, patch, settings=SETTINGS, rows=None):
    rows = range(len(x)) if rows is None else rows
    return attack_patches(model, x, y, patch, settings, RowGenerator([(0, row) for row in rows]))


@pytest.mark.parametrize("make", [mlp, conv, normalized_conv])
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (4, 4)])
def test_points_are_in_the_set_and_no_better_than_the_image(make, size):
    torch.manual_seed(0)
    model, x = make().eval(), pixels(6, 2, 4, 4)
    y, patch = model(x).argmax(1), PerturbationPatch(*size)
    points = attacked(model, x, y, patch)
    assert patch.contains(points, x).all()
    assert (margin_loss(model(points), y) >= margin_loss(model(x), y)).all()


def test_a_single_pixel_that_decides_is_found():
    """Pixel (2, 1) of the second channel alone can change the class, by being white."""
    weight = torch.zeros(3, 32)
    weight[1, 16 + 2 * 4 + 1] = 2.0
    model = with_parameters(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(32, 3)), weight)
    with torch.no_grad():
        model[1].bias.copy_(torch.tensor([1.5, 0.0, 0.0]))
    x = torch.zeros(2, 2, 4, 4)
    points = attacked(model, x, torch.zeros(2, dtype=torch.long), PerturbationPatch(1))
    assert (model(points).argmax(1) == 1).all() and (points[:, 1, 2, 1] > 0.75).all()


def test_larger_patches_do_no_less():
    torch.manual_seed(0)
    model, x = conv().eval(), pixels(8, 2, 4, 4)
    y = model(x).argmax(1)
    losses = [
        margin_loss(model(attacked(model, x, y, PerturbationPatch(size))), y).detach()
        for size in (1, 4)
    ]
    assert (losses[1] >= losses[0] - 1e-3).all()


def test_a_point_depends_on_its_image_alone():
    torch.manual_seed(0)
    model, x = conv().eval(), pixels(4, 2, 4, 4)
    y, patch = model(x).argmax(1), PerturbationPatch(2)
    together = attacked(model, x, y, patch)
    single = attacked(model, x[2:3], y[2:3], patch, rows=[2])
    torch.testing.assert_close(together[2:3], single)
