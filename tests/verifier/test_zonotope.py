"""DeepZ and CROWN on linear forms of parameters: sound, and no looser than intervals."""

import pytest
import torch
from torch import nn

from lirpa_multinorm.models import cnn_small, mlp
from lirpa_multinorm.transforms.forms import LinearForms
from lirpa_multinorm.transforms.interval import Interval
from lirpa_multinorm.verifier.relu_network import ReluNetwork
from lirpa_multinorm.verifier.zonotope import interval_bounds, zonotope_bounds, zonotope_crown


class Skip(nn.Module):
    """A skip around a ReLU, BatchNorm, a pooling, and a normalisation in front."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.last = nn.Linear(4 * 9, 3)
        self.norm.running_mean.uniform_(-0.5, 0.5)
        self.norm.running_var.uniform_(0.5, 2)

    def forward(self, x):
        x = self.norm(self.first((x - 0.3) / 0.6)).relu()
        x = (x + self.second(x)).relu()
        return self.last(nn.functional.max_pool2d(x, 2).flatten(1))


NETWORKS = {
    "mlp": lambda: mlp((1, 6, 6), 3, hidden=(20, 20)),
    "convolutions": lambda: cnn_small((1, 8, 8), 3, width=3),
    "skip": Skip,
    "linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(36, 3)),
}


def problem(name, parameters=2, examples=3):
    torch.manual_seed(0)
    model = NETWORKS[name]().eval()
    size = 8 if name == "convolutions" else 6
    center = torch.rand(examples, 1, size, size)
    generators = 0.05 * torch.randn(examples, parameters, 1, size, size)
    radius = 0.01 * torch.rand(examples, 1, size, size)
    spread = generators.abs().sum(1) + radius
    forms = LinearForms(center, generators, radius, center - 0.7 * spread, center + 0.7 * spread)
    C = torch.randn(examples, 4, 3)
    return model, ReluNetwork(model, center), forms, C


def bounds_on(graph, forms, C):
    """The bounds of DeepZ, with the intervals before them."""
    box = Interval(forms.lower, forms.upper)
    return zonotope_bounds(graph, forms, C, interval_bounds(graph, box, C))


def points(forms, count=400):
    """Points of the forms that lie in their intervals too."""
    shape = (count, *forms.center.shape)
    kappa = 2 * torch.rand(count, *forms.generators.shape[:2]) - 1
    kappa[: count // 2] = kappa[: count // 2].sign()
    value = forms.center + torch.einsum("nsp,sp...->ns...", kappa, forms.generators)
    value = value + (2 * torch.rand(shape) - 1).sign() * forms.radius
    inside = ((value >= forms.lower) & (value <= forms.upper)).flatten(2).all(2)
    return value, inside


@pytest.mark.parametrize("parameters", [1, 3])
@pytest.mark.parametrize("name", NETWORKS)
def test_bounds_hold_on_the_forms(name, parameters):
    model, network, forms, C = problem(name, parameters)
    # Without the intervals, so that every point of the forms counts.
    spread = forms.generators.abs().sum(1) + forms.radius
    forms = forms._replace(lower=forms.center - spread, upper=forms.center + spread)
    result = bounds_on(network.graph, forms, C)
    value, _ = points(forms)
    with torch.no_grad():
        outputs = model(value.flatten(0, 1)).unflatten(0, value.shape[:2])
        margins = torch.einsum("srk,nsk->nsr", C, outputs)
    assert (margins >= result.lower - 1e-5).all()
    for layer, hidden in zip(result.layers, network.layers(value.flatten(0, 1))):
        hidden = hidden.unflatten(0, value.shape[:2])
        assert (hidden >= layer.lower - 1e-5).all() and (hidden <= layer.upper + 1e-5).all()
    rows = torch.arange(len(C)).repeat_interleave(C.shape[1])
    crown = zonotope_crown(
        network, forms.rows(rows), [layer.rows(rows) for layer in result.layers], C.flatten(0, 1)
    )
    assert (margins >= crown.view(C.shape[:2]) - 1e-5).all()


@pytest.mark.parametrize("name", NETWORKS)
def test_bounds_are_no_looser_than_those_of_intervals(name):
    _, network, forms, C = problem(name)
    box = LinearForms(
        (forms.lower + forms.upper) / 2,
        torch.zeros_like(forms.generators),
        (forms.upper - forms.lower) / 2,
        forms.lower,
        forms.upper,
    )
    with_forms = bounds_on(network.graph, forms, C).lower
    by_interval = bounds_on(network.graph, box, C).lower
    assert (with_forms >= by_interval - 1e-5).all()
    intervals = network.graph.interval([network.graph.output], {0: forms.lower}, {0: forms.upper})
    lower, upper = (end.flatten(1).unsqueeze(2) for end in intervals[0])
    slow = C.clamp(min=0) @ lower + C.clamp(max=0) @ upper
    assert (by_interval >= slow.squeeze(2) - 1e-5).all()
    ranges = Interval(forms.lower, forms.upper)
    intervals = interval_bounds(network.graph, ranges, C)
    assert torch.allclose(intervals.lower, slow.squeeze(2), atol=1e-4)
    last = torch.tensor([len(C) - 1])
    alone = interval_bounds(network.graph, Interval(*(end[last] for end in ranges)), C[last])
    rows = intervals.rows(last)
    assert (
        torch.allclose(rows.lower, alone.lower, atol=1e-5)
        and rows.steps.keys() == alone.steps.keys()
    )
    for step, interval in alone.steps.items():
        assert torch.allclose(rows.steps[step].upper, interval.upper, atol=1e-5)


def test_a_generator_keeps_what_intervals_lose():
    """f = relu(x) - relu(x) of one moving pixel is 0; intervals see [-1, 1]."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 2))
    with torch.no_grad():
        for tensor, values in zip(
            model.parameters(), ([[1.0], [1.0]], [0, 0], [[1, -1]] * 2, [0, 0])
        ):
            tensor.copy_(torch.tensor(values))
    center = torch.full((1, 1, 1, 1), 0.5)
    forms = LinearForms(center, center.unsqueeze(1), 0 * center, 0 * center, 2 * center)
    C = torch.tensor([[[1.0, 0.0]]])
    network = ReluNetwork(model.eval(), center)
    assert bounds_on(network.graph, forms, C).lower.abs().max() < 1e-6
    still = forms._replace(generators=0 * forms.generators, radius=center)
    assert bounds_on(network.graph, still, C).lower.item() == -1
