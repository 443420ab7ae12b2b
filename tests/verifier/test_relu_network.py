"""Networks as affine maps between ReLUs: values, linear forms pulled back, and what is refused."""

import pytest
import torch
from torch import nn

from lirpa_multinorm import BoundedModule, PerturbationLinf
from lirpa_multinorm.audit import build_graph
from lirpa_multinorm.audit.graphs import GRAPHS, INPUT_SHAPE, Lambda
from lirpa_multinorm.errors import UnsupportedModelError
from lirpa_multinorm.models import cnn3, resnet2b
from lirpa_multinorm.verifier.relu_network import ReluNetwork

OTHERS = {"sigmoid_first", "tanh"}
RELU_GRAPHS = [name for name in GRAPHS if name not in OTHERS]


def network(model, x):
    return ReluNetwork(model, x)


def assert_affine(model, x):
    """Every layer, written through its maps, is itself.

    And the maps are differentiable in the functional.
    """
    net = network(model, x)
    layers = net.layers(x)
    assert torch.allclose(layers[-1], model(x), atol=1e-5)
    maps, outputs = net.maps(len(x), x), [x, *[layer.relu() for layer in layers[:-1]]]
    for place, layer in enumerate(layers):
        v = torch.randn_like(layer).requires_grad_()
        constant, at_input, at_relus = maps.pull(place, v)
        result = constant + sum(
            (part * item).flatten(1).sum(1)
            for part, item in zip([at_input, *at_relus], outputs)
            if part is not None
        )
        assert torch.allclose(result, (v * layer).flatten(1).sum(1), atol=1e-4)
        (gradient,) = torch.autograd.grad(result.sum(), v)
        assert torch.allclose(gradient, layer, atol=1e-4)
    return net


@pytest.mark.parametrize("name", RELU_GRAPHS)
@pytest.mark.parametrize("batch", [1, 4])
def test_layers_are_affine_in_the_input_and_earlier_relus(name, batch):
    assert_affine(build_graph(name), torch.rand(batch, *INPUT_SHAPE))


@pytest.mark.parametrize("make", [cnn3, resnet2b])
def test_networks_of_the_package(make):
    assert_affine(make((3, 8, 8), 10, width=4).eval(), torch.rand(3, 3, 8, 8))


def test_double_precision():
    net = assert_affine(
        build_graph("residual").double(), torch.rand(2, *INPUT_SHAPE, dtype=torch.float64)
    )
    assert net.layers(torch.rand(1, *INPUT_SHAPE, dtype=torch.float64))[0].dtype == torch.float64


def test_another_batch_of_bounds_in_between_does_not_matter():
    """A graph with a baked batch size is traced anew by every call of the host's."""
    model, x = build_graph("view"), torch.rand(5, *INPUT_SHAPE)
    bounded = BoundedModule(model, perturbations=[PerturbationLinf(0.1)])
    net = ReluNetwork(bounded.model, x)
    bounded.compute_bounds(x, method="IBP")
    assert torch.allclose(net.layers(x[:3])[-1], model(x[:3]), atol=1e-5)


def test_frozen_and_free_weights_stay_as_they_are():
    model, x = build_graph("conv"), torch.rand(2, *INPUT_SHAPE)
    model[0].weight.requires_grad_(False)
    net = network(model, x)
    net.maps(2, x).pull(0, torch.randn(2, *net.shapes[0]))
    assert not model[0].weight.requires_grad and model[0].bias.requires_grad
    assert all(item.grad is None for item in model.parameters())


@pytest.mark.parametrize("name, word", [("sigmoid_first", "sigmoid"), ("tanh", "tanh")])
def test_other_operators_are_named(name, word):
    with pytest.raises(
        UnsupportedModelError, match=f"{word} at .* neither affine nor piecewise linear"
    ):
        network(build_graph(name), torch.rand(1, *INPUT_SHAPE))


@pytest.mark.parametrize(
    "function",
    [lambda x: x * x, lambda x: x / (1 + x), lambda x: x.sign()],
    ids=["square", "ratio", "sign"],
)
def test_what_only_looks_affine_is_refused(function):
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(72, 4), Lambda(function), nn.ReLU(), nn.Linear(4, 3)
    ).eval()
    with pytest.raises(UnsupportedModelError):
        network(model, torch.rand(1, *INPUT_SHAPE))


def test_batch_norm_in_training_mode_is_refused():
    with pytest.raises(UnsupportedModelError, match="batch_norm in training mode at '1'"):
        network(build_graph("conv_batch_norm").train(), torch.rand(2, *INPUT_SHAPE))
