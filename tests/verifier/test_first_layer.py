"""Bounds of first layers against the support function written out, for every single output."""

import math

import pytest
import torch
from torch import nn

from lirpa_multinorm import BoundedModule, PerturbationLpBox
from lirpa_multinorm.audit.graphs import Lambda
from lirpa_multinorm.perturbations import Region
from tests.checks import assert_differentiable, assert_no_looser, assert_same, assert_sound
from tests.verifier.affine_layers import (
    BATCH,
    EPS,
    LAYERS,
    NORMS,
    PADDED,
    SHAPE,
    built,
    expected_bounds,
    images,
)

CLIPS = {
    "clip": (0.0, 1.0),
    "ball": None,
    "channel_clip": (torch.tensor([-0.1, 0.0]), torch.tensor([1.0, 1.3])),
}


def bounds_on(model, x, ball, method="IBP", **options):
    return BoundedModule(model, perturbations=[ball]).compute_bounds(x, method=method, **options)


def assert_exact(bounds, expected):
    assert_same([end.flatten(1) for end in bounds], expected, atol=1e-6)


@pytest.mark.parametrize("clip", CLIPS.values(), ids=CLIPS)
@pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS)
@pytest.mark.parametrize("name", LAYERS)
def test_exact(name, norm, clip):
    model, x = built(name), images()
    ball = PerturbationLpBox(norm, EPS, clip)
    assert_exact(bounds_on(model, x, ball), expected_bounds(model, x, ball))


@pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS)
@pytest.mark.parametrize("name", PADDED)
def test_exact_with_padding(name, norm):
    model, x, ball = built(name), images(), PerturbationLpBox(norm, 0.4)
    assert_exact(bounds_on(model, x, ball), expected_bounds(model, x, ball))


@pytest.mark.parametrize("norm", [2, 1], ids=["l2", "l1"])
@pytest.mark.parametrize("name", PADDED)
def test_plain_balls_with_padding_are_sound(name, norm):
    model, x, ball = built(name), images(), PerturbationLpBox(norm, 0.4, clip=None)
    result = [end.flatten(1) for end in bounds_on(model, x, ball)]
    assert_no_looser(expected_bounds(model, x, ball), result, 1e-9)


@pytest.mark.parametrize("eps", [0.3, EPS], ids=["one_eps", "eps_per_example"])
@pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS)
@pytest.mark.parametrize("method", ["IBP", "CROWN-IBP", "CROWN"])
def test_specification_of_a_last_layer(method, norm, eps):
    """C is merged into the layer: bounds of the differences, not differences of bounds."""
    model, x = built("standardize_linear"), images()
    C = torch.randn(BATCH, 5, 4, dtype=torch.float64)
    ball = PerturbationLpBox(norm, eps)
    assert_exact(bounds_on(model, x, ball, method, C=C), expected_bounds(model, x, ball, C))


@pytest.mark.parametrize(
    "name", ["linear", "standardize_conv", "negate_conv", "batch_norm_conv", "transpose_conv"]
)
def test_sets_of_a_stack_do_not_touch_each_other(name):
    """Every slice acts as if alone, even where a negative scale swaps a box's ends."""
    model, x = built(name), images()
    balls = [
        PerturbationLpBox(norm, eps, clip)
        for norm, eps, clip in (
            (math.inf, 0.1, (0.0, 1.0)),
            (2, 0.5, (0.0, 1.0)),
            (1, 0.9, None),
            (2, 0.5, None),
            (math.inf, 0.2, None),
        )
    ]
    regions = [Region(x[: 1 + i % BATCH], ball) for i, ball in enumerate(balls)]
    bounded = BoundedModule(model)
    together = bounded.compute_region_bounds(regions, method="IBP")
    for region, bounds in zip(regions, together):
        (alone,) = bounded.compute_region_bounds([region], method="IBP")
        assert_same(bounds, alone, atol=1e-9)


@pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS)
@pytest.mark.parametrize("name", ["conv", "standardize_conv", "linear"])
def test_the_next_layer_starts_from_exact_bounds(name, norm):
    """ReLU and an identity: intervals pass unchanged but for the cut at 0."""
    first, x = built(name), images()
    size = first(x).flatten(1).shape[1]
    last = nn.Linear(size, size, bias=False).double()
    last.weight.data.copy_(torch.eye(size))
    model = nn.Sequential(first, nn.ReLU(), nn.Flatten(), last)
    ball = PerturbationLpBox(norm, EPS)
    expected = [end.clamp(min=0) for end in expected_bounds(first, x, ball)]
    assert_exact(bounds_on(model, x, ball), expected)


@pytest.mark.parametrize("method", ["IBP", "CROWN-IBP", "CROWN"])
@pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS)
def test_scale_that_varies_over_a_channel_falls_back_soundly(norm, method):
    """No kernel describes it; the enclosing box does."""
    scale = torch.linspace(0.2, 2, 32, dtype=torch.float64).view(
        1, *SHAPE
    )  # the first pixel's is the smallest
    model = nn.Sequential(
        Lambda(lambda x: x * scale), nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 3)
    )
    model, x, ball = model.double().eval(), images(), PerturbationLpBox(norm, 0.4)
    bounds = bounds_on(model, x, ball, method)
    assert_sound(model, x, ball, bounds, tolerance=1e-9)
    assert (bounds[1] - bounds[0]).min() > 1e-3  # not a point around the centre


def _three_channels(x):
    """A grey image normalised as if it had three channels: every pixel is seen three times."""
    return (x - torch.tensor([0.4, 0.5, 0.6]).view(1, 3, 1, 1)) / torch.tensor(
        [0.2, 0.3, 0.4]
    ).view(1, 3, 1, 1)


COPIED = {
    "grey_to_rgb_conv": (
        lambda: nn.Sequential(Lambda(_three_channels), nn.Conv2d(3, 2, 3), nn.Flatten()),
        (1, 4, 4),
    ),
    "grey_to_rgb_linear": (
        lambda: nn.Sequential(Lambda(_three_channels), nn.Flatten(), nn.Linear(48, 3)),
        (1, 4, 4),
    ),
    "repeated_number": (
        lambda: nn.Sequential(Lambda(lambda x: x * torch.ones(1, 6)), nn.Linear(6, 3)),
        (1,),
    ),
    "folded_batch": (
        lambda: nn.Sequential(
            Lambda(lambda x: x.reshape(-1, 1, 4, 4)),
            nn.Conv2d(1, 2, 3),
            Lambda(lambda x: x.reshape(-1, 16)),
            nn.Linear(16, 3),
        ),
        SHAPE,
    ),
}


@pytest.mark.parametrize("clip", [(0.0, 1.0), None], ids=["clip", "ball"])
@pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS)
@pytest.mark.parametrize("name", COPIED)
def test_pixels_seen_more_than_once_are_sound(name, norm, clip):
    """Copies of a pixel move together, so that the norm of the layer's row says too little."""
    build, shape = COPIED[name]
    model = build().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.abs_()  # copies add up
    x, ball = torch.rand(BATCH, *shape), PerturbationLpBox(norm, 0.3, clip)
    assert_sound(model, x, ball, bounds_on(model, x, ball), tolerance=2e-5)


@pytest.mark.parametrize("norm", [2, 1], ids=["l2", "l1"])
def test_first_layer_is_much_tighter_than_its_enclosing_box(norm):
    model, x = built("linear"), images()
    (lower, upper), (low, high) = (
        bounds_on(model, x, PerturbationLpBox(p, 0.4)) for p in (norm, math.inf)
    )
    assert ((upper - lower) < 0.7 * (high - low)).all()


@pytest.mark.parametrize("norm", [2, 1], ids=["l2", "l1"])
@pytest.mark.parametrize(
    "name", ["standardize_conv", "standardize_linear", "negate_conv", "batch_norm_conv"]
)
def test_gradients_reach_the_weights(name, norm):
    """The bound of a first layer as a function of its weights.

    Finite differences in random directions.
    """
    model, x = built(name), images()
    bounded = BoundedModule(model, perturbations=[PerturbationLpBox(norm, 0.4)])
    weight = [p for p in model.parameters() if p.ndim > 1][0]

    def width():
        lower, upper = bounded.compute_bounds(x, method="IBP")
        return (upper * 1.5 - lower).sum()

    assert_differentiable(width, weight)
