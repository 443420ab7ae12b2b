"""Graphs that are read off models.

The same function, and each step's coefficients against its matrix.
"""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lirpa_multinorm.audit import OPERATORS, build_graph, build_operator
from lirpa_multinorm.audit.graphs import GRAPHS, INPUT_SHAPE, Lambda
from lirpa_multinorm.errors import UnsupportedModelError
from lirpa_multinorm.verifier.network import (
    convolution_options,
    first_layers,
    model_graph,
    schur_norm,
)

#: What no rewriting makes piecewise linear, or what depends on the batch.
CURVED = {
    "LPPool2d(2, 2)",
    "BatchNorm2d(track_running_stats=False)",
    "BatchNorm1d(track_running_stats=False)",
    "GroupNorm(2, 4)",
    "GroupNorm(1, 4, affine=False)",
    "InstanceNorm2d",
    "LayerNorm of an image",
    "LocalResponseNorm(2)",
    "LayerNorm",
    "LayerNorm(elementwise_affine=False)",
    "RMSNorm",
    "normalize",
    "Threshold(0.1, -0.5)",
    "Hardshrink",
    "Tanhshrink",
    "ELU",
    "ELU(alpha=0.3)",
    "SELU",
    "CELU(alpha=2)",
    "GELU",
    "GELU(approximate='tanh')",
    "SiLU",
    "Mish",
    "Softplus",
    "Softplus(beta=3)",
    "Softplus(beta=2, threshold=0.5)",
    "Sigmoid",
    "LogSigmoid",
    "Tanh",
    "Hardswish",
    "Softmax",
    "Softmin",
    "LogSoftmax",
    "Softsign",
    "GLU",
    "sign",
    "floor",
    "where(x > 0)",
    "sin",
    "cos",
    "exp",
    "x ** 2",
    "x ** 3",
    "x * x",
    "square",
    "erf",
    "atan",
    "sqrt",
    "log",
    "x ** -1",
    "x ** 0.5",
    "x ** 2 of positive values",
    "reciprocal",
    "rsqrt",
    "constant / x",
    "branch / branch",
    "x * y of two branches",
    "x * y, y a mean",
    "gated",
    "gated skip",
    "norm(3)",
    "var(3)",
    "logsumexp(1)",
    "prod(3)",
    "matmul of two branches",
    "softmax attention",
    "Softmax as head",
    "LogSoftmax as head",
    "sigmoid_first",
    "tanh",
}
MODELS = {
    **{
        name: (lambda name=name: build_operator(name), one.input_shape)
        for name, one in OPERATORS.items()
    },
    **{name: (lambda name=name: build_graph(name), INPUT_SHAPE) for name in GRAPHS},
}


@pytest.mark.parametrize("name", [name for name in MODELS if name not in CURVED])
def test_graph_computes_what_the_model_does(name):
    make, shape = MODELS[name]
    model, x = make(), 6 * torch.rand(5, *shape, generator=torch.Generator().manual_seed(0)) - 3
    graph = model_graph(model, x[:1])
    with torch.no_grad():
        expected = model(x)
        (result,), ((lower, upper),) = (
            graph.values([graph.output], {0: x}),
            graph.interval([graph.output], {0: x - 0.2}, {0: x + 0.2}),
        )
        scale = 1 + float(expected.abs().max())
        assert torch.allclose(result, expected, atol=1e-5 * scale)
        for moved in (
            x + 0.2,
            x - 0.2,
            x + 0.2 * torch.randn_like(x).sign(),
            x + 0.4 * torch.rand_like(x) - 0.2,
        ):
            value = model(moved)
            assert (value >= lower - 1e-5 * scale).all() and (value <= upper + 1e-5 * scale).all()


@pytest.mark.parametrize("name", [name for name in MODELS if name not in CURVED])
def test_coefficients_of_each_step_are_those_of_its_matrix(name):
    """What carries distances, squares and norms, against the operator's matrix written out."""
    make, shape = MODELS[name]
    graph = model_graph(make(), torch.rand(1, *shape))
    for step in graph.steps:
        if step.operator in ("input", "relu"):
            continue
        zeros = [torch.zeros(graph.steps[source].shape) for source in step.sources]
        radii = [torch.rand_like(zero) for zero in zeros]
        matrices = [
            matrix.flatten(0, step.shape.numel() and len(step.shape) - 1).flatten(1)
            for matrix in torch.autograd.functional.jacobian(step.run, tuple(zeros), vectorize=True)
        ]
        spread = sum(matrix.abs() @ radius.flatten() for matrix, radius in zip(matrices, radii))
        assert torch.allclose(step.spread(*radii).flatten(), spread, atol=1e-4), step
        assert not step.monotone or all(bool((matrix >= 0).all()) for matrix in matrices), step
        if step.squared is not None:
            squared = sum(matrix**2 @ radius.flatten() for matrix, radius in zip(matrices, radii))
            assert torch.allclose(step.squared(*radii).flatten(), squared, atol=1e-4), step
        for which, matrix in enumerate(matrices):
            norm = float(torch.linalg.matrix_norm(matrix, 2))
            assert norm <= schur_norm(step, zeros, which) * (1 + 1e-5), step


@pytest.mark.parametrize("name", sorted(CURVED))
def test_curved_operators_are_refused(name):
    make, shape = MODELS[name]
    with pytest.raises(
        UnsupportedModelError, match="^model: .*(piecewise linear|torch.export cannot read it)"
    ):
        model_graph(make(), torch.rand(1, *shape))


def whole(layer):
    return nn.Sequential(nn.Flatten(), nn.Linear(72, 4), layer, nn.Linear(4, 3)).eval()


@pytest.mark.parametrize(
    "function, said",
    [
        (torch.tanh, "tanh at '2'"),
        (lambda x: x + torch.rand(4), "rand at '2' is random"),
        (lambda x: x * torch.sigmoid(x.mean(1, keepdim=True)), "sigmoid at '2'"),
        (lambda x: x if x.sum() > 0 else -x, "torch.export cannot read it"),
        (lambda x: x.double().float(), "to at '2' makes torch.float64 of it"),
        (lambda x: x * x.max(1)[1].unsqueeze(1), "the place of a largest value at '2'"),
        (lambda x: F.dropout(x, 0.5, True), "dropout at '2'"),
        (lambda x: x.detach() * 0 + x.sort(1)[1], "the places of sorted values at '2'"),
    ],
)
def test_what_is_refused_is_named_with_its_place(function, said):
    with pytest.raises(UnsupportedModelError, match=said):
        model_graph(whole(Lambda(function)), torch.rand(1, *INPUT_SHAPE))


def test_an_output_without_input_is_refused():
    with pytest.raises(UnsupportedModelError, match="does not depend on its input"):
        model_graph(Lambda(lambda x: torch.zeros(x.size(0), 3)), torch.rand(1, *INPUT_SHAPE))


def test_reading_leaves_the_model_alone():
    model = build_graph("conv_batch_norm").train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(UnsupportedModelError, match="batch_norm in training mode"):
        model_graph(model, torch.rand(1, *INPUT_SHAPE))
    assert model.training and all(
        torch.equal(value, before[name]) for name, value in model.state_dict().items()
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_type_of_the_weights_stays(dtype):
    model, x = build_graph("residual").to(dtype), torch.rand(2, *INPUT_SHAPE, dtype=dtype)
    graph = model_graph(model, x[:1])
    assert all(value.dtype == dtype for value in graph.values(range(len(graph.steps)), {0: x}))


class FoldedBatch(nn.Module):
    """Treats the channels of its images as images."""

    def __init__(self):
        super().__init__()
        self.conv, self.linear = nn.Conv2d(1, 2, 3), nn.Linear(64, 3)

    def forward(self, x):
        x = torch.relu(self.conv(x.reshape(-1, 1, 6, 6)))
        return self.linear(x.reshape(-1, 64))


def test_a_folded_batch():
    model, x = FoldedBatch().eval(), torch.rand(5, *INPUT_SHAPE)
    graph = model_graph(model, x[:1])
    assert torch.allclose(graph.values([graph.output], {0: x})[0], model(x), atol=1e-6)
    assert graph.steps[graph.layers[0]].example_shape == (2, 2, 4, 4)


@pytest.mark.parametrize(
    "layers, expected",
    [
        ([nn.Conv2d(2, 3, 3)], {"conv2d"}),
        ([Lambda(lambda x: (x - 0.3) / 0.2), nn.Conv2d(2, 3, 3)], {"conv2d"}),
        ([nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(72, 3)], {"linear"}),
        ([nn.AvgPool2d(2), nn.Conv2d(2, 3, 3)], set()),
        ([nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect")], set()),
        ([nn.Conv2d(2, 3, 2, padding="same")], set()),
        ([nn.ReLU(), nn.Conv2d(2, 3, 3)], set()),
    ],
)
def test_first_layers(layers, expected):
    model, x = (
        nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(2), nn.ReLU()).eval(),
        torch.rand(1, *INPUT_SHAPE),
    )
    model(x)
    graph = model_graph(model, x)
    result = first_layers(graph)
    assert {layer.step.operator for layer in result.values()} == expected


@pytest.mark.parametrize(
    "options, expected",
    [
        ({"stride": 2}, {"stride": (2, 2), "padding": (0, 0), "dilation": (1, 1), "groups": 1}),
        (
            {"padding": "same", "dilation": (1, 2)},
            {"stride": (1, 1), "padding": (1, 2), "dilation": (1, 2), "groups": 1},
        ),
        (
            {"padding": "valid", "groups": 2},
            {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 2},
        ),
    ],
)
def test_convolution_options(options, expected):
    graph = model_graph(nn.Conv2d(2, 4, 3, **options), torch.rand(1, *INPUT_SHAPE))
    assert convolution_options(graph.steps[1]) == expected


@pytest.mark.parametrize(
    "layer",
    [
        nn.Hardtanh(-0.3, 0.3),
        nn.ReLU6(),
        nn.Hardsigmoid(),
        nn.LeakyReLU(0.1),
        nn.PReLU(),
        nn.Softshrink(),
        Lambda(torch.abs),
        Lambda(lambda x: x.clamp(min=torch.linspace(-1, 1, 8))),
        Lambda(lambda x: x.clamp(max=0.2)),
        Lambda(lambda x: torch.maximum(x, torch.linspace(-1, 1, 8))),
        Lambda(lambda x: torch.minimum(torch.ones(8), x)),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_large_values_do_not_cancel(layer):
    x = torch.tensor([[-1e7, -1e4, -1.0, -0.1, 0.1, 1.0, 1e4, 1e7]])
    graph = model_graph(layer, x)
    assert torch.allclose(graph.values([graph.output], {0: x})[0], layer(x), rtol=1e-6, atol=1e-6)
