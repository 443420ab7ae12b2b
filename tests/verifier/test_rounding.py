"""Rounding errors are no larger than said, and certificates that rounding breaks are refused."""

from fractions import Fraction

import pytest
import torch
from torch import nn

from lirpa_multinorm import BoundedModule, PerturbationL1Box, PerturbationL2Box, PerturbationLinf
from lirpa_multinorm.errors import UnsupportedModelError
from lirpa_multinorm.models import MinMax, liresnet
from lirpa_multinorm.perturbations import Region
from lirpa_multinorm.verifier.rounding.errors import RoundingErrors

SETS = [
    PerturbationLinf(0.1),
    PerturbationL2Box(0.5),
    PerturbationL1Box(1.0),
    PerturbationL2Box(0.3, clip=None),
]
every_kind = pytest.mark.parametrize("probable", [False, True])


class Residual(nn.Module):
    """Two branches of convolutions, added up and subtracted."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.three = (
            nn.Conv2d(2, 4, 3, 1, 1),
            nn.Conv2d(4, 4, 3, 1, 1),
            nn.Conv2d(2, 4, 1),
        )
        self.last = nn.Linear(4 * 36, 3)

    def forward(self, x):
        inner = self.two((self.one(x - 0.3) / 0.25).relu())
        return self.last((inner + self.three(x)).relu().flatten(1))


def _conv(*middle):
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, 2, 1),
        *middle,
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(54, 20),
        nn.ReLU(),
        nn.Linear(20, 3),
    )


NETWORKS = {
    "linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(72, 3)),
    "dense": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(72, 200), nn.ReLU(), nn.Linear(200, 50), nn.ReLU(), nn.Linear(50, 3)
    ),
    "convolutions": _conv,
    "batch norm": lambda: _conv(nn.BatchNorm2d(6)),
    "grouped, dilated": lambda: nn.Sequential(
        nn.Conv2d(2, 4, 3, 1, 2, dilation=2, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)
    ),
    "average pooling": lambda: nn.Sequential(
        nn.Conv2d(2, 4, 3, 1, 1), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(36, 3)
    ),
    "max pooling": lambda: nn.Sequential(
        nn.Conv2d(2, 4, 3, 1, 1), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 3)
    ),
    "residual": Residual,
    "minmax": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(72, 60), MinMax(60), nn.Linear(60, 20), MinMax(20), nn.Linear(20, 3)
    ),
    "liresnet": lambda: liresnet((2, 6, 6), 3, width=4, depth=2, stem=3, neck=3, hidden=[8]),
    "other activations": lambda: nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, padding_mode="reflect"),
        nn.LeakyReLU(0.1),
        nn.ConvTranspose2d(4, 3, 3, 2),
        nn.PReLU(),
        nn.Flatten(),
        nn.Linear(507, 20),
        nn.Hardtanh(-0.3, 0.3),
        nn.Linear(20, 3),
    ),
    "extremes": lambda: nn.Sequential(
        nn.Conv2d(2, 4, 3, 1, 1),
        nn.MaxPool2d(3, 2, 1),
        nn.AvgPool2d(2, ceil_mode=True),
        nn.Flatten(),
        nn.Linear(16, 8),
        nn.AdaptiveMaxPool1d(5),
        nn.Linear(5, 3),
    ),
}


@torch.no_grad()
def network(name, scale=1.0, seed=0):
    torch.manual_seed(seed)
    model = NETWORKS[name]()
    model.train()(torch.rand(50, 2, 6, 6))
    for parameter in model.parameters():
        parameter.mul_(scale)
    return model.eval()


def points(region, count=30):
    """Points of a set, (count + 1, B, ...): its centre, and on the way to its corners."""
    lower, upper = region.perturbation.enclosing_box(region.center)
    shape = (count, *lower.shape)
    step = torch.where(torch.rand(shape) < 0.5, lower, upper) - region.center
    length = torch.linalg.vector_norm(step.flatten(2), region.perturbation.norm, dim=2)
    eps = region.perturbation.eps
    step = step * (eps / length.clamp(min=eps) * (1 - 1e-6)).view(count, -1, 1, 1, 1)
    step = step * torch.rand(count, shape[1], 1, 1, 1).sqrt()
    return region.center + torch.cat([torch.zeros_like(step[:1]), step])


@every_kind
@pytest.mark.parametrize("scale", [1.0, 10.0])
@pytest.mark.parametrize("name", list(NETWORKS))
@torch.no_grad()
def test_no_run_in_float32_is_farther_from_float64(name, scale, probable):
    for seed in range(3):
        model, x = network(name, scale, seed), torch.rand(3, 2, 6, 6)
        regions = [Region(x, ball) for ball in SETS]
        limits = RoundingErrors(BoundedModule(model), probable).of(regions)
        assert bool(limits.isfinite().all())
        inside = torch.cat([points(region) for region in regions], dim=1)
        run = torch.stack([model(point) for point in inside])  # no larger batches: as they are run
        exact = model.double()(inside.double().flatten(0, 1)).view_as(run)
        assert ((run.double() - exact).abs() <= limits).all()


@pytest.mark.parametrize("magnitude", [1, 1e4, 1e8])
@torch.no_grad()
def test_no_run_is_farther_from_exact_arithmetic(magnitude):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))
    model[0].weight.mul_(magnitude)
    model[2].weight[:, 4:] = -model[2].weight[:, :4]
    x = torch.rand(4, 5)
    limits = RoundingErrors(BoundedModule(model)).of([Region(x, PerturbationLinf(0.05))])
    for image, limit in zip(x, limits):
        for _ in range(10):
            point = (image + (torch.rand(5) - 0.5) * 0.099).clamp(0, 1)
            run = [Fraction(item) for item in model(point.unsqueeze(0))[0].tolist()]
            for value, exact, most in zip(run, _exact(model, point), limit.tolist()):
                assert abs(value - exact) <= Fraction(most)


def _exact(model, point):
    """Return a network's outputs in exact arithmetic."""
    values = [Fraction(item) for item in point.tolist()]
    for layer in model:
        if isinstance(layer, nn.ReLU):
            values = [max(item, Fraction(0)) for item in values]
        else:
            rows = zip(layer.weight.tolist(), layer.bias.tolist())
            values = [
                sum((Fraction(w) * a for w, a in zip(row, values)), Fraction(b)) for row, b in rows
            ]
    return values


def swallowing(huge=1e8):
    """A network whose f_0 - f_1 is x_0 + 0.5 in exact arithmetic, and 0 or less as it runs.

    Huge terms swallow it.
    """
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 0.0]]))
        model[0].bias.copy_(torch.tensor([0.5, huge, huge]))
        model[2].weight.copy_(torch.tensor([[1.0, 1.0, -1.0], [0.0, 0.0, 0.0]]))
        model[2].bias.copy_(torch.tensor([0.0, 0.1]))
    return model


@every_kind
def test_cancelling_terms_are_seen(probable):
    region = Region(torch.tensor([[0.5, 0.5]]), PerturbationLinf(0.1))
    assert float(RoundingErrors(BoundedModule(swallowing()), probable).of([region])[0, 0]) > 1
    assert float(RoundingErrors(BoundedModule(swallowing(1.0)), probable).of([region])[0, 0]) < 1e-4


@pytest.mark.parametrize("dtype, largest", [(torch.float64, 1e-11), (torch.float32, 1e-2)])
def test_the_error_is_in_units_of_the_type(dtype, largest):
    model, x = network("dense").to(dtype), torch.rand(2, 2, 6, 6, dtype=dtype)
    error = RoundingErrors(BoundedModule(model)).of([Region(x, PerturbationLinf(0.1))])
    assert error.dtype == dtype and 0 < float(error.min()) <= float(error.max()) < largest


@pytest.mark.parametrize("probable, largest", [(False, 1e-3), (True, 1e-4)])
def test_minmax_makes_errors_of_deep_networks_no_larger(probable, largest):
    """Written as a ReLU and sums, each would multiply moves and errors by six."""
    torch.manual_seed(0)
    model = liresnet((1, 12, 12), 3, width=4, depth=6, neck=3, hidden=[16]).eval()
    region = Region(torch.rand(2, 1, 12, 12), PerturbationL2Box(0.5))
    error = RoundingErrors(BoundedModule(model), probable).of([region])
    assert 0 < float(error.min()) <= float(error.max()) < largest


def test_overflow_and_nan_leave_nothing_known():
    region = Region(torch.rand(1, 2, 6, 6), PerturbationLinf(0.1))
    for value in (1e30, float("nan")):
        model = network("dense")
        with torch.no_grad():
            model[1].weight[0, 0], model[3].weight[0, 0] = value, 1e30
        assert not RoundingErrors(BoundedModule(model)).of([region]).isfinite().all()


def test_an_operator_that_is_not_known_is_named():
    model = nn.Sequential(
        nn.Upsample(scale_factor=1.5, mode="bilinear"), nn.Flatten(), nn.Linear(162, 5)
    )
    with pytest.raises(UnsupportedModelError, match="rounding does in upsample_bilinear2d at '0'"):
        RoundingErrors(BoundedModule(model)).of(
            [Region(torch.rand(1, 2, 6, 6), PerturbationLinf(0.1))]
        )


@pytest.mark.parametrize("method", ["IBP", "CROWN-IBP", "CROWN", "Sparse-CROWN", "SDP-CROWN"])
@pytest.mark.parametrize(
    "name", ["dense", "convolutions", "batch norm", "residual", "minmax", "liresnet"]
)
def test_bounds_are_rounded_by_less_than_what_is_allowed_for(name, method):
    """The allowance for bounds is the network's own.

    What rounding really does to them stays below it by far.
    """
    model, x = network(name), torch.rand(3, 2, 6, 6)
    # Wide intervals of residual blocks are rounded by more, and prove nothing.
    sets = [PerturbationLinf(1e-3), PerturbationL2Box(1e-2)] if name == "liresnet" else SETS[:2]
    regions = [Region(x, perturbation) for perturbation in sets]
    limit = RoundingErrors(BoundedModule(model), probable=True).of(regions)
    result = []
    for dtype in (torch.float32, torch.float64):
        options = {"optimize_bound_args": {"iteration": 1}}
        bounded = BoundedModule(model.to(dtype), bound_opts=options, perturbations=sets)
        ends = bounded.compute_norm_bounds(x.to(dtype), method=method)
        result.append(torch.cat([lower.detach().double() for lower, _ in ends]))
    assert ((result[0] - result[1]).abs() <= limit).all()
