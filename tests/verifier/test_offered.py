"""Constants that layers offer: upper bounds, carried through norms, and their certificates."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from lirpa_multinorm import (
    BoundedModule,
    PerturbationL1Box,
    PerturbationL2Box,
    PerturbationLinf,
    Region,
)
from lirpa_multinorm.bounds import margin_matrix
from lirpa_multinorm.errors import UnsupportedModelError
from lirpa_multinorm.models import LinfDistance, Normalize, Saturation, build_model
from lirpa_multinorm.verifier.lipschitz.offered import (
    NORMS,
    layer_constant,
    offered_constant,
    offered_output_bounds,
)
from lirpa_multinorm.verifier.rounding.errors import RoundingErrors
from tests.checks import assert_same, assert_sound
from tests.networks import pixels

SETS = [PerturbationLinf(0.05), PerturbationL2Box(0.2), PerturbationL1Box(0.3)]


def distance_network(std=0.5, **options) -> nn.Sequential:
    torch.manual_seed(0)
    options = {"hidden": [12, 9], **options}
    model = build_model("linf_dist_mlp", (1, 6, 6), 3, (0.3,), (std,), **options)
    for layer in model:
        if isinstance(layer, LinfDistance):
            nn.init.normal_(layer.weight)
    model(torch.rand(50, 1, 6, 6))
    return model.eval()


LAYERS = [
    nn.Flatten(),
    nn.ReLU(),
    nn.Dropout().eval(),
    nn.AvgPool2d(2),
    nn.AvgPool2d(3, stride=2, padding=1),
    nn.AvgPool2d(3, stride=1),
    nn.MaxPool2d(3, stride=2),
    nn.MaxPool2d(2, stride=2, dilation=2),
    nn.MaxPool2d((2, 1), stride=3, dilation=(3, 1)),
    nn.Conv2d(2, 3, 3, stride=2, padding=1),
    nn.Conv2d(2, 4, 3, groups=2),
    nn.Linear(6, 3),
    Normalize([0.4, 0.5], [0.2, 0.3]),
    Saturation(0.2, 0.7),
    LinfDistance(6, 5),
]


@pytest.mark.parametrize("norm", NORMS, ids=str)
@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: str(layer)[:40])
def test_no_layer_moves_farther_than_its_constant(layer, norm):
    torch.manual_seed(0)
    layer = copy.deepcopy(layer).double()
    x = torch.randn(200, 2, 6, 6, dtype=torch.float64)
    x = x.flatten(2).flatten(0, 1)[:, :6] if isinstance(layer, (nn.Linear, LinfDistance)) else x
    moves = torch.randn_like(x).sign()
    moves[::2] *= torch.rand_like(moves[::2]) < 0.1
    ends = (layer(x + moves) - layer(x)).flatten(1), moves.flatten(1)
    moved, length = (torch.linalg.vector_norm(end, norm, dim=1) for end in ends)
    assert bool((moved <= layer_constant(layer, norm) * length + 1e-9).all())


def test_dilated_windows_may_all_see_one_number():
    """Whatever the stride: four of them see this one."""
    layer, x = nn.MaxPool2d(2, stride=2, dilation=2), torch.zeros(1, 1, 8, 8)
    spike = x.clone()
    spike[..., 2, 2] = 1
    moved = (layer(spike) - layer(x)).flatten()
    assert moved.sum() == 4
    for norm in NORMS:
        assert layer_constant(layer, norm) >= torch.linalg.vector_norm(moved, norm)


def test_constants_by_hand():
    pooling = nn.AvgPool2d(2)
    assert [layer_constant(pooling, norm) for norm in (math.inf, 1)] == [1, pytest.approx(1 / 4)]
    assert offered_constant(distance_network(std=0.25), math.inf) == pytest.approx(4)
    assert layer_constant(nn.AvgPool2d(2, divisor_override=1), math.inf) == math.inf


def test_the_l_inf_certificate_is_the_margin_less_two_radii():
    model, x = distance_network(), pixels(3, 1, 6, 6)
    C = margin_matrix(torch.tensor([0, 1, 2]), 3)
    plain = Region(x, PerturbationLinf(0.05, clip=None))
    margins = C.matmul(model(x).detach().unsqueeze(2)).squeeze(2)
    result = offered_output_bounds(model, [plain], C)
    assert_same(result, margins - 2 * 0.05 / 0.5)
    assert bool((result <= margins - 2 * 0.05 / 0.5).all())  # rounded outwards


def test_an_l_2_ball_is_no_worse_than_the_box_around_it():
    model, x = distance_network(), pixels(3, 1, 6, 6)
    C = margin_matrix(torch.tensor([0, 1, 2]), 3)
    ball, box = (
        offered_output_bounds(model, [Region(x, kind(0.1, clip=None))], C)
        for kind in (PerturbationL2Box, PerturbationLinf)
    )
    assert bool((ball >= box - 1e-5).all())


@pytest.mark.parametrize("pool", [1, 2])
def test_certificates_of_distance_networks_hold(pool):
    model, x = distance_network(pool=pool), pixels(3, 1, 6, 6)
    bounded = BoundedModule(model, perturbations=SETS)
    C = margin_matrix(torch.tensor([0, 1, 2]), 3)
    by_constants = bounded.compute_norm_bounds(x, C, "Lipschitz")
    assert_sound(model, x, SETS, by_constants, C)
    # Interval arithmetic from the box proves at least as much there, see docs/families.md.
    by_intervals = bounded.compute_norm_bounds(x, C, "IBP")
    assert bool((by_intervals[0][0] >= by_constants[0][0] - 1e-5).all())


def test_a_relu_network_has_the_better_of_both_bounds():
    torch.manual_seed(0)
    model, x = (
        build_model("mlp", (1, 4, 4), 3, (0.3,), (0.5,), hidden=[8]).eval(),
        pixels(3, 1, 4, 4),
    )
    C = margin_matrix(torch.tensor([0, 1, 2]), 3)
    regions = [Region(x, perturbation) for perturbation in SETS]
    forms = torch.cat([C] * len(regions))
    offered = offered_output_bounds(model, regions, forms).unflatten(0, (len(regions), -1))
    result = BoundedModule(model, perturbations=SETS).compute_norm_bounds(x, C, "Lipschitz")
    plain = BoundedModule(model[1:], perturbations=None)
    assert_sound(model, x, SETS, result, C)
    for (lower, _), other in zip(result, offered):
        assert bool((lower >= other - 1e-6).all())
    assert plain(x).shape == (3, 3)


def test_a_layer_of_unknown_constant_is_named():
    model = nn.Sequential(*distance_network()[:3], nn.Softmax(1)).eval()
    with pytest.raises(UnsupportedModelError, match="Softmax.*no finite Lipschitz constant"):
        offered_constant(model, math.inf)
    with pytest.raises(UnsupportedModelError, match="MeanShift.*in training mode.*eval"):
        offered_constant(distance_network().train(), math.inf)
    with pytest.raises(UnsupportedModelError, match="Bilinear offers no Lipschitz constants"):
        offered_constant(nn.Bilinear(2, 2, 2), math.inf)


def test_a_model_that_offers_its_constant_as_a_whole_is_certified_by_it():
    class Sine(nn.Module):
        def forward(self, x):
            return torch.sin(x.flatten(1)[:, :3])

        def lipschitz_bound(self, norm):
            return 1.0

    x, C = pixels(2, 1, 2, 2), margin_matrix(torch.tensor([0, 1]), 3)
    bounded = BoundedModule(Sine().eval(), perturbations=SETS[:2])
    assert_sound(Sine(), x, SETS[:2], bounded.compute_norm_bounds(x, C, "Lipschitz"), C)


class Sine(nn.Module):
    """A layer that no piecewise-linear network has, and that offers its constant."""

    def forward(self, x):
        return torch.sin(x)

    def lipschitz_bound(self, norm):
        return 1.0


def subclass(kind, factor=10):
    """A class that multiplies what a class of torch computes."""
    return type(
        f"My{kind.__name__}", (kind,), {"forward": lambda s, x: factor * kind.forward(s, x)}
    )


def hooked(layer, kind="register_forward_hook"):
    getattr(layer, kind)(
        lambda module, *values: 10 * (values[-1] if len(values) > 1 else values[0][0])
    )
    return layer


def patched(layer):
    forward = layer.forward
    layer.forward = lambda x: 10 * forward(x)
    return layer


#: Layers that look like torch's and compute something else.
IMPOSTORS = {
    "linear": lambda: [nn.Flatten(), subclass(nn.Linear)(16, 8)],
    "conv": lambda: [subclass(nn.Conv2d)(1, 2, 3), nn.Flatten()],
    "mean": lambda: [subclass(nn.AvgPool2d)(2), nn.Flatten()],
    "maximum": lambda: [subclass(nn.MaxPool2d)(2), nn.Flatten()],
    "relu": lambda: [subclass(nn.ReLU)(), nn.Flatten()],
    "flatten": lambda: [subclass(nn.Flatten)()],
    "dropout": lambda: [subclass(nn.Dropout)(), nn.Flatten()],
    "hook": lambda: [hooked(nn.Flatten())],
    "hook before": lambda: [hooked(nn.Flatten(), "register_forward_pre_hook")],
    "hook on a group": lambda: [hooked(nn.Sequential(nn.Flatten(), nn.ReLU()))],
    "hook on an offer": lambda: [nn.Flatten(), hooked(Sine())],
    "patched": lambda: [patched(nn.Flatten())],
    "group": lambda: [subclass(nn.Sequential)(nn.Flatten(), nn.ReLU())],
}


@pytest.mark.parametrize("make", IMPOSTORS.values(), ids=IMPOSTORS)
@pytest.mark.parametrize("place", ["first", "last"])
def test_what_only_looks_like_a_layer_of_torch_is_refused(make, place):
    """Its constant is not that of torch's layer: it must offer one."""
    torch.manual_seed(0)
    layers = [*make(), Sine()] if place == "first" else [Sine(), *make()]
    model = nn.Sequential(*layers).eval()
    x = pixels(2, 1, 4, 4)
    bounded = BoundedModule(model, perturbations=[PerturbationLinf(0.1)])
    C = margin_matrix(torch.tensor([0, 1]), model(x).shape[1])
    with pytest.raises(UnsupportedModelError, match="offers no finite Lipschitz constant"):
        bounded.compute_bounds(x, C=C, method="Lipschitz")


def test_a_parametrized_layer_is_the_layer_it_is():
    """Its weight is calculated, and its forward pass is torch's."""
    spectral = nn.utils.parametrizations.spectral_norm(nn.Linear(16, 8))
    model, x = nn.Sequential(nn.Flatten(), spectral, Sine()).eval(), pixels(2, 1, 4, 4)
    bounded, C = BoundedModule(model, perturbations=SETS), margin_matrix(torch.tensor([0, 1]), 8)
    assert_sound(model, x, SETS, bounded.compute_norm_bounds(x, C, "Lipschitz"), C)


@pytest.mark.parametrize("constant", [-1.0, math.nan])
def test_a_constant_that_is_none_is_named(constant):
    layer = Sine()
    layer.lipschitz_bound = lambda norm: constant
    with pytest.raises(UnsupportedModelError, match="return an upper bound of at least 0"):
        layer_constant(layer, 2.0)


# --- rounding -------------------------------------------------------------------------------------


@pytest.mark.parametrize("pool", [1, 2])
def test_computed_outputs_are_as_near_to_exact_ones_as_the_bound_says(pool):
    model = distance_network(std=0.3081, hidden=[40, 30, 20], pool=pool)
    x, ball = pixels(20, 1, 6, 6), PerturbationLinf(0.1)
    error = RoundingErrors(BoundedModule(model)).of([Region(x, ball)])
    exact = copy.deepcopy(model).double()
    for seed in range(20):
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed)).sign()
        moved = (x + 0.1 * noise).clamp(0, 1)
        off = (model(moved).double() - exact(moved.double())).abs()
        assert bool((off <= error).all())
    assert bool((error < 1e-4).all()) and bool((error > 0).all())


def test_rounding_at_a_finite_exponent_has_no_bound():
    model = distance_network()
    model[2].set_p(8)
    error = RoundingErrors(BoundedModule(model)).of([Region(pixels(2, 1, 6, 6), SETS[0])])
    assert bool(error.isinf().all())
