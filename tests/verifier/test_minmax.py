"""MinMax in graphs: found in all its spellings, and one activation for Lipschitz constants."""

import pytest
import torch
from torch import nn

from lirpa_multinorm.models import MinMax
from lirpa_multinorm.verifier.lipschitz.constants import lipschitz_bounds
from lirpa_multinorm.verifier.network import model_graph, paired
from lirpa_multinorm.verifier.relu_network import ReluNetwork
from tests.checks import assert_same


class Spelled(nn.Module):
    """A function of two halves of the features."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        first, second = x.split(x.shape[1] // 2, 1)
        return torch.cat(self.function(first, second), 1)


def by_relu(a, b):
    excess = torch.relu(b - a)
    return [a + excess, b - excess]


SPELLINGS = {
    "maximum and minimum": lambda a, b: [torch.maximum(a, b), torch.minimum(a, b)],
    "minimum first": lambda a, b: [torch.minimum(a, b), torch.maximum(a, b)],
    "max of two": lambda a, b: [torch.max(a, b), torch.min(a, b)],
    "by a ReLU": by_relu,
    "sorted": lambda a, b: list(torch.stack([a, b], -1).sort(-1)[0].unbind(-1)),
}
#: Functions of two halves that look like MinMax and are none.
OTHERS = {
    "maximum alone": lambda a, b: [torch.maximum(a, b), b],
    "scaled": lambda a, b: [a + 2 * torch.relu(b - a), b - torch.relu(b - a)],
    "twice added": lambda a, b: [a + torch.relu(b - a), b + torch.relu(b - a)],
    "of others": lambda a, b: [b + torch.relu(b - a), a - torch.relu(b - a)],
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_a_minmax_is_one_step(name):
    model, x = Spelled(SPELLINGS[name]), torch.randn(7, 6)
    graph = model_graph(model, x[:1])
    merged = paired(graph)
    kinds = [merged.graph.steps[index].operator for index in merged.graph.relus]
    assert kinds == ["minmax"] and len(graph.relus) == 1
    [result] = merged.graph.values([merged.graph.output], {0: x})
    assert_same(result, model(x))
    values = graph.values(graph.layers, {0: x})
    assert_same(merged.graph.values(merged.layers, {0: x}), values)


@pytest.mark.parametrize("name", OTHERS)
def test_what_only_looks_like_it_is_left_alone(name):
    graph = model_graph(Spelled(OTHERS[name]), torch.randn(1, 6))
    assert paired(graph).graph is graph


def two_layers(first, second, last):
    layers = [nn.Linear(2, 2), MinMax(2), nn.Linear(2, 2), MinMax(2), nn.Linear(2, 1)]
    model = nn.Sequential(*layers).eval()
    for layer, weight in zip(model[::2], (first, second, last)):
        layer.weight.data.copy_(torch.tensor(weight))
        layer.bias.data.zero_()
    return model


def test_its_constant_is_that_of_the_weights_alone():
    """3 and 3 x 2; as a + ReLU(b - a) the second layer would have 2 (3 + sqrt(2) sqrt(2) 3)."""
    model = two_layers([[3.0, 0.0], [0.0, 1.0]], [[0.0, 2.0], [1.0, 0.0]], [[1.0, 1.0]])
    x = torch.rand(1, 2)
    result = lipschitz_bounds(ReluNetwork(model, x), x)
    assert result.activations == [pytest.approx(3, rel=1e-4), pytest.approx(6, rel=1e-4)]
    # b - a moves by at most root 10 in the first layer; in the second by 3 root 5.
    assert float(result.neurons[0]) == pytest.approx(10**0.5, rel=1e-4)
    assert float(result.neurons[1]) == pytest.approx(3 * 5**0.5, rel=1e-4)


@pytest.mark.parametrize("norm", [1, 2])
def test_no_pair_of_inputs_moves_a_layer_further(norm):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), MinMax(4), nn.Conv2d(4, 6, 3), MinMax(6), nn.Flatten(), nn.Linear(24, 3)
    ).eval()
    network, x = ReluNetwork(model, torch.rand(1, 1, 6, 6)), torch.rand(300, 1, 6, 6)
    result = lipschitz_bounds(network, x[:1], norm)
    step = torch.randn_like(x) * (torch.rand_like(x) < 0.2)
    moved = torch.linalg.vector_norm(step.flatten(1), norm, dim=1)
    with torch.no_grad():
        for before, after, whole, neurons in zip(
            network.layers(x), network.layers(x + step), result.layers, result.neurons
        ):
            change = (before - after).flatten(1)
            assert bool((change.norm(dim=1) <= whole * moved + 1e-5).all())
            assert bool((change.abs() <= neurons * moved.unsqueeze(1) + 1e-5).all())
