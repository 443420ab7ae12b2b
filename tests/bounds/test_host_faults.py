"""What the host bounds wrongly is routed round, or refused by name."""

import functools
import math

import pytest
import torch
from torch import nn

from lirpa_multinorm import BoundedModule, PerturbationLinf, PerturbationLpBox, host
from lirpa_multinorm.audit.graphs import Lambda as Function
from lirpa_multinorm.errors import LirpaMultinormError, UnsupportedModelError
from lirpa_multinorm.perturbations import Region
from tests.checks import assert_contains, assert_sound, assert_within, reached_by_attack

METHODS = ["IBP", "CROWN-IBP", "CROWN", "CROWN-Optimized"]
RELU_METHODS = ["Lipschitz", "Sparse-CROWN", "SDP-CROWN"]


def images(*layers):
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), *layers, nn.Flatten(), nn.LazyLinear(3)
    )


NETWORKS = {
    "dilated": lambda: images(nn.Conv2d(3, 3, 3, padding=2, dilation=2), nn.ReLU()),
    "dilated in one direction": lambda: images(
        nn.Conv2d(3, 3, 3, padding=(1, 2), dilation=(1, 2)), nn.ReLU()
    ),
    "dilated and strided": lambda: images(nn.Conv2d(3, 3, 2, 2, dilation=2), nn.ReLU()),
    "grouped": lambda: images(nn.Conv2d(3, 6, 3, padding=1, groups=3), nn.ReLU()),
    "transposed": lambda: images(
        nn.ConvTranspose2d(3, 4, 2, 2), nn.ReLU(), nn.Conv2d(4, 2, 3, padding=1)
    ),
    "number added": lambda: images(
        Function(lambda x: x + 0.5), nn.Conv2d(3, 3, 3, padding=1), nn.ReLU()
    ),
    "number less": lambda: images(
        Function(lambda x: 0.7 - x), nn.Conv2d(3, 3, 3, padding=1), nn.ReLU()
    ),
    "steep slope": lambda: images(nn.Conv2d(3, 3, 3), nn.LeakyReLU(1.5)),
    "falling slope": lambda: images(nn.Conv2d(3, 3, 3), nn.LeakyReLU(-0.2)),
    "square root": lambda: images(Function(lambda x: (x + 0.1).sqrt())),
    "inverse": lambda: images(Function(lambda x: (x + 0.5) ** -1)),
    "index": lambda: images(Function(lambda x: x[:, [2, 0]])),
    "overlapping average": lambda: images(nn.AvgPool2d(3, 2)),
    "padded average": lambda: images(nn.AvgPool2d(2, 2, 1)),
    "average with gaps": lambda: images(nn.AvgPool2d(2, 3)),
    "average that leaves a rest": lambda: images(nn.AvgPool2d(4)),
    "rectangular average": lambda: images(nn.AvgPool2d((3, 2), (3, 1))),
    "repeat": lambda: nn.Sequential(
        nn.Flatten(),
        Function(lambda x: x.repeat(1, 2)),
        nn.Linear(144, 8),
        nn.ReLU(),
        nn.Linear(8, 3),
    ),
    "square": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(72, 8), Function(lambda x: x**2), nn.Linear(8, 3)
    ),
    "cube": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(72, 8), Function(lambda x: x**3), nn.Linear(8, 3)
    ),
}


BALLS = {norm: PerturbationLpBox(norm, eps) for norm, eps in ((math.inf, 0.05), (2, 0.3), (1, 0.8))}
FEW_STEPS = {"optimize_bound_args": {"iteration": 3}}


def built(name, seed=0):
    torch.manual_seed(seed)
    model, x = NETWORKS[name](), torch.rand(2, 2, 6, 6)
    model.eval()(x)
    return model, x


@functools.cache
def attacked(name, seed):
    """A network, inputs, and by norm what an attack reaches."""
    model, x = built(name, seed)
    return model, x, dict(zip(BALLS, reached_by_attack(model, x, list(BALLS.values()))))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("norm", BALLS)
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_sound_or_refused(seed, name, norm):
    answered = 0
    model, x, reached = attacked(name, seed)
    bounded = BoundedModule(model, perturbations=[BALLS[norm]], bound_opts=FEW_STEPS)
    for method in METHODS:
        try:
            bounds = bounded.compute_bounds(x, method=method)
        except UnsupportedModelError as error:
            assert "model" in str(error)
            continue
        answered += 1
        assert_contains(bounds, reached[norm], 2e-5, method)
    assert answered or name in (
        "repeat",
        "cube",
        "square",
        "falling slope",
        "inverse",
        "index",
        "transposed",
    )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["overlapping average", "padded average", "average with gaps"])
def test_crown_behind_an_average_pooling_is_ours_where_the_host_is_wrong(name):
    model, x = built(name)
    bounded = BoundedModule(model, perturbations=[PerturbationLinf(0.02)])
    crown, ours = (
        bounded.compute_bounds(x, method=method)[0] for method in ("CROWN", "Sparse-CROWN")
    )
    torch.testing.assert_close(crown, ours, rtol=0, atol=1e-4)


class PerturbedWeight(nn.Module):
    """A linear layer with a perturbed weight, alone, behind or in front of another."""

    def __init__(self, place, bias):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 4, bias=bias) for _ in range(3)])
        layer = self.layers[place]
        layer.weight = host.namespace.BoundedParameter(
            layer.weight.data, host.PerturbationLpNorm(norm=math.inf, eps=0.1)
        )

    def forward(self, x):
        first, second, third = self.layers
        return third(torch.relu(second(torch.relu(first(x)))))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("norm", [math.inf, 2, 1])
@pytest.mark.parametrize("method", METHODS + RELU_METHODS)
def test_perturbed_weights_are_bounded_or_refused(norm, place, bias, method):
    torch.manual_seed(place)
    model, x = PerturbedWeight(place, bias), torch.rand(2, 4)
    C = torch.eye(4).expand(2, -1, -1)
    bounded = BoundedModule(model, perturbations=[PerturbationLpBox(norm, 0.05)])
    try:
        lower, upper = bounded.compute_bounds(x, C=C, method=method)
    except LirpaMultinormError as error:
        assert isinstance(error, UnsupportedModelError)
        return
    assert method not in RELU_METHODS
    weight, centre = model.layers[place].weight, model.layers[place].weight.detach().clone()
    for _ in range(200):
        with torch.no_grad():
            weight.copy_(centre + 0.1 * torch.randn_like(centre).sign())
            output = model(x)
        assert_within(output, (lower, upper))


def test_branch_and_bound_refuses_perturbed_weights():
    bounded, x = BoundedModule(PerturbedWeight(1, True)), torch.rand(1, 4)
    with pytest.raises(UnsupportedModelError, match="perturbed"):
        bounded.branch_and_bound(Region(x, PerturbationLinf(0.1)), torch.eye(4))


@pytest.mark.parametrize("method", ["Lipschitz", "Sparse-CROWN", "SDP-CROWN", "CROWN"])
def test_outputs_of_image_shape(method):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.Conv2d(2, 2, 1)).eval()
    x, ball = torch.rand(2, 1, 4, 4), PerturbationLpBox(2, 0.1)
    bounded = BoundedModule(model, perturbations=[ball], bound_opts=FEW_STEPS)
    lower, upper = bounded.compute_bounds(x, method=method)
    assert lower.shape == (2, 2, 4, 4)
    flat = nn.Sequential(model, nn.Flatten())
    assert_sound(flat, x, ball, (lower.flatten(1), upper.flatten(1)))
