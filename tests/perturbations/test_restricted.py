"""Balls with fixed pixels and radii per pixel: exact, sound, and refused where shapes differ."""

import itertools
import math

import pytest
import torch
from torch import nn

from lirpa_multinorm import (
    BoundedModule,
    CertifySettings,
    PerturbationL1Box,
    PerturbationL2Box,
    PerturbationLinf,
    certify,
    pgd,
    restricted,
)
from lirpa_multinorm.certification import CERTIFIED
from lirpa_multinorm.errors import InvalidArgumentError

BALLS = {"inf": PerturbationLinf(0.3), "2": PerturbationL2Box(0.4), "1": PerturbationL1Box(0.5)}
MASK = torch.tensor([True, False, True, True])


def linear():
    model = nn.Sequential(nn.Linear(4, 2, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, -2.0, 0.5, 3.0], [0.0, 1.0, 2.0, -1.0]]))
    return model


@pytest.mark.parametrize("method", ["IBP", "CROWN", "SDP-CROWN"])
@pytest.mark.parametrize("norm", BALLS)
def test_a_fixed_pixel_counts_for_nothing(norm, method):
    """By hand: the dual norm of the row without its second entry, far from the range's ends."""
    x = torch.full((1, 4), 0.5)
    moved = restricted(BALLS[norm], x, MASK)
    lower, upper = BoundedModule(linear(), perturbations=[moved]).compute_bounds(x=x, method=method)
    dual = {"inf": 1, "2": 2, "1": math.inf}[norm]
    rows = linear()[0].weight.detach()[:, MASK]
    spread = BALLS[norm].eps * torch.linalg.vector_norm(rows, dual, dim=1)
    assert torch.allclose(upper, linear()(x) + spread, atol=1e-5)
    assert torch.allclose(lower, linear()(x) - spread, atol=1e-5)


def test_radii_make_a_box_of_their_own():
    x, radii = torch.full((2, 4), 0.5), torch.tensor([0.1, 0.0, 0.4, 0.2])
    moved = restricted(PerturbationLinf(0.3), x, radii=radii)
    lower, upper = moved.enclosing_box(x)
    assert torch.allclose(upper - x, radii.clamp(max=0.3).expand(2, -1))
    assert torch.allclose(x - lower, radii.clamp(max=0.3).expand(2, -1))


@pytest.mark.parametrize("norm", BALLS)
def test_bounds_hold_on_the_set_and_attacks_stay_in_it(norm):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3)).eval()
    x = torch.rand(5, 4)
    radii = torch.rand(5, 4) * 0.3
    moved = restricted(BALLS[norm], x, MASK, radii)
    y = model(x).argmax(1)
    (attacked,) = pgd(model, x, y, [moved])
    assert moved.contains(attacked, x).all() and torch.equal(attacked[:, 1], x[:, 1])
    assert ((attacked - x).abs() <= radii + 1e-6).all()
    for method in ("IBP", "CROWN-IBP", "CROWN"):
        lower, upper = BoundedModule(model, perturbations=[moved]).compute_bounds(
            x=x, method=method
        )
        corners = torch.tensor(list(itertools.product((-1.0, 0.0, 1.0), repeat=4)))
        for corner in corners:
            low, high = moved.clip
            point = torch.where(corner > 0, high, torch.where(corner < 0, low, x))
            inside = moved.contains(point, x, tolerance=0)
            value = model(point)[inside]
            assert (value >= lower[inside] - 1e-5).all() and (value <= upper[inside] + 1e-5).all()
        assert (model(attacked) >= lower - 1e-5).all()


def test_what_is_certified_without_a_pixel_is_more():
    torch.manual_seed(1)
    model, x = nn.Sequential(nn.Linear(4, 3)).eval(), torch.rand(20, 4)
    y, settings = model(x).argmax(1), CertifySettings(["IBP"], attack=None)
    ball = PerturbationLinf(0.1)
    counts = [
        certify(model, x, y, [moved], settings).status[0].count(CERTIFIED)
        for moved in (
            ball,
            restricted(ball, x, MASK),
            restricted(ball, x, ~MASK),
            restricted(ball, x, radii=0.0),
        )
    ]
    assert counts[0] <= counts[1] <= counts[3] == 20 and counts[0] <= counts[2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mask": torch.ones(3, dtype=torch.bool)}, r"mask has the shape \(3,\)"),
        ({"mask": torch.ones(4)}, "give a tensor of bool"),
        ({"mask": [True] * 4}, "give a tensor of bool"),
        ({"radii": torch.ones(2, 3)}, "radii has the shape"),
        ({"radii": torch.tensor([0.1, -0.1, 0, 0])}, "a number >= 0"),
        ({"radii": math.nan}, "a number >= 0"),
    ],
)
def test_what_does_not_fit_is_refused(arguments, message):
    with pytest.raises(InvalidArgumentError, match=message):
        restricted(PerturbationLinf(0.1), torch.rand(2, 4), **arguments)
