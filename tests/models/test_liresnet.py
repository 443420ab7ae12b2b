"""LiResNet: its layers against slow formulas, in both modes, and bounded by every method."""

import copy

import pytest
import torch
from torch import nn

from lirpa_multinorm import BoundedModule, PerturbationL2Box, build_loss, margin_matrix
from lirpa_multinorm.models import LinearResidualConv, MinMax, UnitRows, build_model
from lirpa_multinorm.verifier.lipschitz.constants import lipschitz_bounds
from lirpa_multinorm.verifier.relu_network import ReluNetwork
from tests.checks import assert_same, assert_within

L2 = PerturbationL2Box(0.3)


def small(**options):
    torch.manual_seed(0)
    options = {"width": 4, "depth": 2, "hidden": [8], **options}
    return build_model("liresnet", (1, 8, 8), 3, mean=[0.5], **options).eval()


def test_minmax_puts_pairs_in_order():
    x = torch.randn(5, 6, 4, 4)
    first, second = x[:, :3], x[:, 3:]
    result = MinMax(6)(x)
    assert_same(result, torch.cat([torch.maximum(first, second), torch.minimum(first, second)], 1))
    distances = (result.unsqueeze(0) - result.unsqueeze(1)).flatten(2).norm(dim=2)
    assert bool(
        (distances <= (x.unsqueeze(0) - x.unsqueeze(1)).flatten(2).norm(dim=2) + 1e-5).all()
    )


def test_a_linear_residual_block_is_one_convolution():
    block, x = LinearResidualConv(4, depth=9).eval(), torch.randn(2, 4, 5, 5)
    block.share.data.uniform_(0.1, 1)
    block.bias.data.normal_()
    block.centering.running_mean.normal_()
    kernel = block.conv.weight * block.share.view(-1, 1, 1, 1)
    kernel[range(4), range(4), 1, 1] += 1
    bias = (block.bias - block.centering.running_mean).flatten()
    assert_same(block(x), nn.functional.conv2d(x, kernel, bias, padding=1))
    assert float(LinearResidualConv(4, depth=9).share[0]) == pytest.approx(1 / 3)


def test_centering_takes_the_batch_in_training_and_running_means_afterwards():
    block, x = LinearResidualConv(4, depth=1).train(), torch.randn(3, 4, 5, 5)
    inner = block.conv(x)
    mean = inner.mean((0, 2, 3), keepdim=True)
    assert_same(block(x), x + inner - mean)
    assert_same(block.centering.running_mean, 0.1 * mean[0])
    assert_same(block.eval()(x), x + inner - 0.1 * mean)


def test_rows_of_the_last_layer_return_to_norm_1_in_training():
    layer = UnitRows(5, 3)
    before = nn.functional.normalize(layer.weight.detach(), dim=1)
    layer.eval()(torch.randn(2, 5))
    assert not torch.allclose(layer.weight, before)
    layer.train()(torch.randn(2, 5)).sum().backward()
    assert_same(layer.weight, before)
    version = layer.weight._version
    layer(torch.randn(2, 5))
    assert (
        layer.weight._version == version
    )  # a second pass before the backward pass changes nothing


def test_layers_start_nearly_orthogonal():
    model = build_model("liresnet", (1, 28, 28), 10, width=8, depth=2)
    x = torch.rand(1, 1, 28, 28)
    result = lipschitz_bounds(ReluNetwork(model.eval(), x), x)
    assert 0.7 < result.activations[0] <= result.activations[-1] < 1.4
    assert_same(model[-1].weight.norm(dim=1), torch.ones(10))
    torch.manual_seed(0)
    plain = build_model("liresnet", (1, 8, 8), 3, width=4)
    torch.manual_seed(0)
    larger = build_model("liresnet", (1, 8, 8), 3, width=4, gain=10)
    assert_same(larger[0].weight, 10 * plain[0].weight)


@pytest.mark.parametrize(
    "method",
    [
        *("IBP", "Lipschitz", "CROWN-IBP", "CROWN", "Sparse-CROWN"),
        pytest.param("SDP-CROWN", marks=pytest.mark.slow),
    ],
)
def test_every_method_bounds_it(method):
    model, x = small(), torch.rand(1, 1, 8, 8)
    lower, upper = BoundedModule(model, perturbations=[L2]).compute_bounds(x, method=method)
    steps = torch.randn(200, 1, 1, 8, 8)
    steps *= 0.3 / steps.flatten(1).norm(dim=1).view(-1, 1, 1, 1, 1)
    for step in steps:
        assert_within(model((x + step).clamp(0, 1)), (lower, upper))


def test_one_step_of_emma_lowers_the_loss():
    model, x, y = small().train(), torch.rand(16, 1, 8, 8), torch.arange(16) % 3
    bounded, loss = BoundedModule(model), build_loss("joint", [L2], region_2="lipschitz")
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    first = loss(bounded, x, y).value
    first.backward()
    assert all(weight.grad is not None for weight in model.parameters())
    optimizer.step()
    assert float(loss(bounded, x, y).value) < float(first)


def test_the_certificate_is_that_of_gloro():
    """``f_y - f_k - eps L ||w_y - w_k||`` with L the product of the layers' norms."""
    model, x = small(), torch.rand(3, 1, 8, 8)
    labels = torch.tensor([0, 1, 2])
    C = margin_matrix(labels, 3)
    ball = PerturbationL2Box(0.3, clip=None)
    lower, _ = BoundedModule(model, perturbations=[ball]).compute_bounds(
        x, C=C, method="Lipschitz", bound_upper=False
    )
    double, constant, shape = copy.deepcopy(model).double(), 1.0, (1, 1, 8, 8)
    for layer in double[1:-1]:
        values = torch.zeros(shape, dtype=torch.float64)
        if not isinstance(layer, (MinMax, nn.Flatten)):
            matrix = torch.autograd.functional.jacobian(layer, values, vectorize=True)
            constant *= float(torch.linalg.matrix_norm(matrix.reshape(-1, values.numel()), 2))
        shape = layer(values).shape
    rows = torch.linalg.vector_norm(C.double() @ double[-1].weight, dim=2)
    expected = (C.double() @ double(x.double()).unsqueeze(2)).squeeze(2) - 0.3 * constant * rows
    assert bool((lower <= expected).all())
    assert_same(lower, expected.float().detach(), 1e-4, 1e-4)
