"""Bounds of first layers against the support function written out.

Scipy for every single output.
"""

import math

import numpy
import pytest
import torch
from torch import nn

from lirpa_multinorm import BoundedModule, PerturbationLpBox
from lirpa_multinorm.audit import largest_violation
from lirpa_multinorm.audit.graphs import Lambda
from lirpa_multinorm.perturbations import Region

SHAPE = (2, 4, 4)
BATCH = 3
NORMS = {"linf": math.inf, "l2": 2, "l1": 1}
EPS = {"one_eps": 0.3, "eps_per_example": torch.tensor([0.0, 0.2, 0.9], dtype=torch.float64)}
CLIPS = {
    "clip": (0.0, 1.0),
    "ball": None,
    "channel_clip": (torch.tensor([-0.1, 0.0]), torch.tensor([1.0, 1.3])),
}


def images():
    generator = torch.Generator().manual_seed(4)
    return (torch.rand(BATCH, *SHAPE, generator=generator, dtype=torch.float64) * 1.6 - 0.3).clamp(
        0, 1
    )


class Standardize(nn.Module):
    """(x - mean) / std with one value per channel."""

    def __init__(self, std=(0.5, 0.25)):
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.4, 0.6]).view(1, 2, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 2, 1, 1))

    def forward(self, x):
        return (x - self.mean) / self.std


def batch_norm():
    norm = nn.BatchNorm2d(2)
    norm.running_mean.copy_(torch.tensor([0.3, -0.2]))
    norm.running_var.copy_(torch.tensor([0.5, 2.0]))
    norm.weight.data.copy_(torch.tensor([-1.5, 0.7]))
    return norm


def linear():
    return nn.Sequential(nn.Flatten(), nn.Linear(32, 4))


# One affine layer each, so that interval arithmetic started from exact first-layer bounds is exact.
LAYERS = {
    "linear": linear,
    "conv": lambda: nn.Conv2d(2, 3, 3),
    "strided_conv": lambda: nn.Conv2d(2, 3, (2, 3), stride=(1, 2)),
    "grouped_conv": lambda: nn.Conv2d(2, 4, 2, groups=2, dilation=2),
    "standardize_linear": lambda: nn.Sequential(Standardize(), linear()),
    "standardize_conv": lambda: nn.Sequential(Standardize(), nn.Conv2d(2, 3, 3)),
    "standardize_grouped_conv": lambda: nn.Sequential(Standardize(), nn.Conv2d(2, 4, 3, groups=2)),
    "negate_conv": lambda: nn.Sequential(Lambda(lambda x: 1 - x), nn.Conv2d(2, 3, 3)),
    "batch_norm_conv": lambda: nn.Sequential(batch_norm(), nn.Conv2d(2, 3, 3)),
    "flatten_scale_linear": lambda: nn.Sequential(
        nn.Flatten(), Lambda(lambda x: 0.5 - x / 4), nn.Linear(32, 4)
    ),
    "flatten_unflatten_conv": lambda: nn.Sequential(
        nn.Flatten(), Lambda(lambda x: x.view(-1, *SHAPE)), nn.Conv2d(2, 3, 3)
    ),
    "transpose_conv": lambda: nn.Sequential(
        Lambda(lambda x: x.transpose(2, 3)), Standardize(), nn.Conv2d(2, 3, (2, 3))
    ),
}
# Padding: with clip=None the norm of the whole kernel is used at the padding too, which is looser
# than exact.
PADDED = {
    "padded_conv": lambda: nn.Conv2d(2, 3, 3, padding=1),
    "standardize_padded_conv": lambda: nn.Sequential(
        Standardize(), nn.Conv2d(2, 3, 3, stride=2, padding=2)
    ),
}


def extremes(a, x, ball, index):
    """Extremes of a.(x' - x) over the set around one example, by a solver or a formula in numpy."""
    optimize = pytest.importorskip("scipy.optimize")
    eps, box = float(ball.radius(x)[index]), ball.clip_box(x)
    lo, hi = (
        (end.expand_as(x)[index] - x[index]).flatten().numpy() for end in box or (x - 1e3, x + 1e3)
    )
    ends = []
    for sign in (-1, 1):
        functional = sign * a
        if ball.norm == math.inf:
            value = numpy.maximum(
                functional * numpy.maximum(lo, -eps), functional * numpy.minimum(hi, eps)
            ).sum()
        elif ball.norm == 1:
            found = optimize.linprog(
                [*-functional, *functional],
                A_ub=[[1.0] * 2 * len(a)],
                b_ub=[eps],
                bounds=[(0, end) for end in hi] + [(0, -end) for end in lo],
            )
            value = -found.fun
        else:
            value = l2_extreme(functional, lo, hi, eps)
        ends.append(sign * value)
    return ends


def l2_extreme(a, lo, hi, eps):
    """Plain bisection for the scale s at which clip(s a) has length eps."""
    low, high = 0.0, 1e9
    for _ in range(120):
        middle = (low + high) / 2
        low, high = (
            (middle, high)
            if numpy.linalg.norm(numpy.clip(middle * a, lo, hi)) <= eps
            else (low, middle)
        )
    return float(a @ numpy.clip(low * a, lo, hi))


def expected_bounds(model, x, ball, C=None):
    """(lower, upper) for every output, from the Jacobian of the affine model."""

    def outputs(z, index):
        value = model(z.view(1, *SHAPE)).flatten()
        return value if C is None else C[index] @ value

    ends = []
    for index in range(BATCH):
        flat = x[index].flatten()
        jacobian = torch.autograd.functional.jacobian(lambda z: outputs(z, index), flat).numpy()
        moved = numpy.array([extremes(row, x, ball, index) for row in jacobian])
        ends.append(outputs(flat, index).detach().numpy()[:, None] + moved)
    return torch.tensor(numpy.array(ends)).unbind(-1)


def assert_close(bounds, expected, tolerance=1e-6):
    for one, other in zip(bounds, expected):
        assert torch.allclose(one.detach().flatten(1), other, atol=tolerance)


def built(name, layers=LAYERS):
    return layers[name]().double().eval()


@pytest.mark.parametrize("clip", CLIPS.values(), ids=CLIPS)
@pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS)
@pytest.mark.parametrize("name", LAYERS)
def test_exact(name, norm, clip):
    model, x = built(name), images()
    ball = PerturbationLpBox(norm, EPS["eps_per_example"], clip)
    bounds = BoundedModule(model, perturbations=[ball]).compute_bounds(x, method="IBP")
    assert_close(bounds, expected_bounds(model, x, ball))


@pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS)
@pytest.mark.parametrize("name", PADDED)
def test_exact_with_padding(name, norm):
    model, x = built(name, PADDED), images()
    ball = PerturbationLpBox(norm, 0.4)
    bounds = BoundedModule(model, perturbations=[ball]).compute_bounds(x, method="IBP")
    assert_close(bounds, expected_bounds(model, x, ball))


@pytest.mark.parametrize("norm", [2, 1], ids=["l2", "l1"])
@pytest.mark.parametrize("name", PADDED)
def test_plain_balls_with_padding_are_sound(name, norm):
    model, x = built(name, PADDED), images()
    ball = PerturbationLpBox(norm, 0.4, clip=None)
    lower, upper = BoundedModule(model, perturbations=[ball]).compute_bounds(x, method="IBP")
    expected = expected_bounds(model, x, ball)
    assert (lower.flatten(1) <= expected[0] + 1e-9).all() and (
        upper.flatten(1) >= expected[1] - 1e-9
    ).all()


@pytest.mark.parametrize("eps", EPS.values(), ids=EPS)
@pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS)
@pytest.mark.parametrize("method", ["IBP", "CROWN-IBP", "CROWN"])
def test_specification_of_a_last_layer(method, norm, eps):
    """C is merged into the layer: bounds of the differences, not differences of bounds."""
    model, x = built("standardize_linear"), images()
    C = torch.randn(BATCH, 5, 4, dtype=torch.float64)
    ball = PerturbationLpBox(norm, eps)
    bounds = BoundedModule(model, perturbations=[ball]).compute_bounds(x, C=C, method=method)
    assert_close(bounds, expected_bounds(model, x, ball, C))


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
        assert_close(bounds, [end.detach().flatten(1) for end in alone], 1e-9)


@pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS)
@pytest.mark.parametrize("name", ["conv", "standardize_conv", "linear"])
def test_the_next_layer_starts_from_exact_bounds(name, norm):
    """ReLU and an identity: intervals pass unchanged but for the cut at 0."""
    first, x = built(name), images()
    size = first(x).flatten(1).shape[1]
    last = nn.Linear(size, size, bias=False).double()
    last.weight.data.copy_(torch.eye(size))
    model = nn.Sequential(first, nn.ReLU(), nn.Flatten(), last)
    ball = PerturbationLpBox(norm, EPS["eps_per_example"])
    expected = [end.clamp(min=0) for end in expected_bounds(first, x, ball)]
    assert_close(
        BoundedModule(model, perturbations=[ball]).compute_bounds(x, method="IBP"), expected
    )


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
    model, x = model.double().eval(), images()
    ball = PerturbationLpBox(norm, 0.4)
    bounds = [
        end.detach()
        for end in BoundedModule(model, perturbations=[ball]).compute_bounds(x, method=method)
    ]
    assert largest_violation(model, x, ball, bounds) <= 1e-9
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
    bounds = [
        end.detach()
        for end in BoundedModule(model, perturbations=[ball]).compute_bounds(x, method="IBP")
    ]
    assert largest_violation(model, x, ball, bounds) <= 2e-5


@pytest.mark.parametrize("norm", [2, 1], ids=["l2", "l1"])
def test_first_layer_is_much_tighter_than_its_enclosing_box(norm):
    model, x = built("linear"), images()
    box = PerturbationLpBox(math.inf, 0.4)
    lower, upper = BoundedModule(
        model, perturbations=[PerturbationLpBox(norm, 0.4)]
    ).compute_bounds(x, method="IBP")
    wide_lower, wide_upper = BoundedModule(model, perturbations=[box]).compute_bounds(
        x, method="IBP"
    )
    assert ((upper - lower) < 0.7 * (wide_upper - wide_lower)).all()


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

    (gradient,) = torch.autograd.grad(width(), weight)
    for seed in range(3):
        direction = torch.randn(
            weight.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
        )
        values = []
        for step in (-1e-5, 1e-5):
            with torch.no_grad():
                weight += step * direction
                values.append(width().item())
                weight -= step * direction
        assert (values[1] - values[0]) / 2e-5 == pytest.approx(
            (gradient * direction).sum().item(), rel=1e-4, abs=1e-5
        )
