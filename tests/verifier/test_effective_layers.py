"""Affine steps around a Linear or Conv layer are one kernel, whose norm is that of the matrix."""

import pytest
import torch
from torch import nn

from lirpa_multinorm.models import LinearResidualConv, Normalize
from lirpa_multinorm.verifier.lipschitz.effective_layers import effective_layer
from lirpa_multinorm.verifier.lipschitz.operator_norms import layer_norm
from lirpa_multinorm.verifier.network import model_graph
from tests.networks import Skip


class Affine(nn.Module):
    """A function of an image."""

    def __init__(self, function, *layers):
        super().__init__()
        self.function, self.layers = function, nn.ModuleList(layers)

    def forward(self, x):
        return self.function(x, *self.layers)


def conv(**options):
    return nn.Conv2d(2, 2, 3, padding=1, **options)


def with_statistics(layer):
    layer.running_mean.normal_()
    layer.running_var.uniform_(0.5, 2)
    return layer


ONE_KERNEL = {
    "convolution": conv,
    "BatchNorm": lambda: nn.Sequential(conv(bias=False), with_statistics(nn.BatchNorm2d(2))),
    "linear residual": lambda: LinearResidualConv(2, 3),
    "skip": lambda: Skip(conv()),
    "skip in front": lambda: Affine(lambda x, layer: x + layer(x), conv()),
    "difference": lambda: Affine(lambda x, layer: layer(x) - x, conv()),
    "other difference": lambda: Affine(lambda x, layer: x - layer(x), conv()),
    "scaled": lambda: Affine(lambda x, layer: 0.5 * x + layer(x) / 4 + 3, conv()),
    "a factor per channel": lambda: nn.Sequential(conv(), Normalize([0.1, 0.2], [0.5, 2.0])),
    "dilated": lambda: Skip(nn.Conv2d(2, 2, 3, padding=2, dilation=2)),
    "shifted": lambda: Skip(nn.Conv2d(2, 2, 3, padding=1)),
}
OTHERS = {
    "two inputs": lambda: Affine(lambda x, layer: layer(x) + layer(2 * x), conv()),
    "a factor per pixel": lambda: Affine(
        lambda x, layer: layer(x) * torch.linspace(0, 1, 6), conv()
    ),
    "pooled": lambda: nn.Sequential(conv(), nn.AvgPool2d(2)),
    "strided skip": lambda: Affine(
        lambda x, layer: x[..., ::2, ::2] + layer(x), nn.Conv2d(2, 2, 3, 2, 1)
    ),
}


def read(model):
    x = torch.rand(1, 2, 6, 6, dtype=torch.float64)
    model = model.double().eval()
    for weight in model.parameters():
        nn.init.uniform_(weight, -1, 1)
    graph = model_graph(model, x)
    matrix = torch.autograd.functional.jacobian(model, x, vectorize=True)
    return graph, effective_layer(graph, graph.output, [0]), matrix.reshape(-1, 72)


@pytest.mark.parametrize("name", ONE_KERNEL)
def test_the_kernel_has_the_norm_of_the_matrix(name):
    graph, layer, matrix = read(ONE_KERNEL[name]())
    assert layer is not None and layer.source == 0
    true = float(torch.linalg.matrix_norm(matrix, 2))
    result = layer_norm(graph, layer.layer, layer.weight)
    assert true <= result < 1.5 * true
    step = graph.steps[layer.layer]
    options = {key: step.arguments[key] for key in ("padding", "dilation") if key in step.arguments}
    images = torch.eye(72, dtype=torch.float64).view(-1, 2, 6, 6)
    columns = nn.functional.conv2d(images, layer.weight, None, **options).flatten(1).T
    torch.testing.assert_close(columns, matrix)


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_single_kernel_is_none(name):
    assert read(OTHERS[name]())[1] is None


def test_a_linear_layer_with_a_skip():
    model = Skip(nn.Linear(3, 3)).double()
    graph = model_graph(model, torch.rand(1, 3, dtype=torch.float64))
    layer = effective_layer(graph, graph.output, [0])
    torch.testing.assert_close(layer.weight, model.layers[0].weight + torch.eye(3).double())
