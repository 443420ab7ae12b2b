"""Lipschitz constants: hand numbers, never exceeded, and exact for linear networks."""

import copy

import pytest
import torch
from torch import nn

from lirpa_multinorm import (
    BoundedModule,
    PerturbationL1Box,
    PerturbationL2Box,
    PerturbationLinf,
    margin_matrix,
)
from lirpa_multinorm.audit import build_graph
from lirpa_multinorm.audit.graphs import INPUT_SHAPE
from lirpa_multinorm.models import cnn3, liresnet, resnet2b
from lirpa_multinorm.verifier.lipschitz.constants import lipschitz_bounds
from lirpa_multinorm.verifier.lipschitz.operator_norms import column_norm, layer_weight
from lirpa_multinorm.verifier.relu_network import ReluNetwork
from tests.checks import assert_same

CASES = {
    "mlp": (lambda: build_graph("mlp"), INPUT_SHAPE),
    "residual": (lambda: build_graph("residual"), INPUT_SHAPE),
    "input_skip": (lambda: build_graph("input_skip"), INPUT_SHAPE),
    "normalised": (lambda: build_graph("standardize"), INPUT_SHAPE),
    "view": (lambda: build_graph("view"), INPUT_SHAPE),
    "transposed": (
        lambda: nn.Sequential(
            nn.ConvTranspose2d(2, 3, 3, stride=2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(507, 4),
            nn.ReLU(),
            nn.Linear(4, 3),
        ).eval(),
        INPUT_SHAPE,
    ),
    "pooled": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 3, 3),
            nn.MaxPool2d(2),
            nn.LeakyReLU(0.1),
            nn.Flatten(),
            nn.Linear(12, 4),
            nn.Hardtanh(),
            nn.Linear(4, 3),
        ).eval(),
        INPUT_SHAPE,
    ),
    "cnn3": (lambda: cnn3((1, 6, 6), 3, width=2).eval(), (1, 6, 6)),
    "liresnet": (lambda: liresnet((1, 8, 8), 3, 4, 2, hidden=[6]).eval(), (1, 8, 8)),
    "resnet": (lambda: resnet2b((1, 8, 8), 3, width=2).eval(), (1, 8, 8)),
}


norms = pytest.mark.parametrize("norm", [2, 1])
MARGINS = margin_matrix(torch.tensor([0, 1, 2, 0]), 3)


def values_of(model, x):
    """The clean margins."""
    return (MARGINS @ model(x).unsqueeze(2)).squeeze(2)


def constants(model, shape, norm=2, step_by_step=False):
    """The network and its constants; step by step, as where matrices would be too large."""
    x = torch.rand(1, *shape)
    network = ReluNetwork(model, x)
    measured = copy.copy(network)
    if step_by_step:
        measured.input_shape = torch.Size([1 << 40])
    return network, lipschitz_bounds(measured, x, norm)


def test_two_layers_by_hand():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    model[0].weight.data.copy_(torch.tensor([[3.0, 0.0], [0.0, 1.0]]))
    model[2].weight.data.copy_(torch.tensor([[0.0, 2.0], [1.0, 0.0]]))
    _, result = constants(model.eval(), (2,))
    assert result.layers == [pytest.approx(3, rel=1e-4), pytest.approx(6, rel=1e-4)]
    expected = [torch.tensor([3.0, 1.0]), torch.tensor([6.0, 3.0])]
    assert_same(result.neurons, expected, rtol=1e-4)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("step_by_step", [False, True], ids=["written_out", "step_by_step"])
@norms
def test_no_pair_of_inputs_moves_a_layer_further(name, step_by_step, norm):
    make, shape = CASES[name]
    network, result = constants(make(), shape, norm, step_by_step)
    x = torch.rand(200, *shape)
    directions = torch.randn_like(x)
    directions[100:] *= (
        torch.rand_like(x[100:]) > 1 - 2 / x[0].numel()
    )  # along a few pixels, as l_1 has it
    for length in (1e-2, 1.0):
        step = (
            length
            * directions
            / torch.linalg.vector_norm(directions.flatten(1), norm, dim=1)
            .clamp(min=1e-9)
            .view(-1, *[1] * len(shape))
        )
        with torch.no_grad():
            layers = zip(network.layers(x), network.layers(x + step), result.layers, result.neurons)
            for before, after, whole, neurons in layers:
                moved = (before - after).flatten(1)
                assert (torch.linalg.vector_norm(moved, dim=1) <= whole * length + 1e-5).all()
                assert (moved.abs() <= neurons * length + 1e-5).all()


def test_a_chain_of_linear_layers_behind_one_relu_is_one_matrix():
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2)).eval()
    _, result = constants(model, (4,))
    assert result.layers[0] == pytest.approx(
        float(torch.linalg.matrix_norm(model[1].weight @ model[0].weight, 2)), rel=1e-4
    )


def test_method_is_the_textbook_certificate():
    """f_y - f_k - eps L ||w_y - w_k||, and for l_inf with eps sqrt(n)."""
    model, x = nn.Sequential(nn.Linear(9, 8), nn.ReLU(), nn.Linear(8, 3)).eval(), torch.rand(4, 9)
    bounded = BoundedModule(
        model, perturbations=[PerturbationL2Box(0.1, clip=None), PerturbationLinf(0.1, clip=None)]
    )
    result = bounded.compute_norm_bounds(x, C=MARGINS, method="Lipschitz", bound_upper=False)
    slope = torch.linalg.matrix_norm(model[0].weight, 2) * torch.linalg.vector_norm(
        MARGINS @ model[2].weight, dim=2
    )
    value = values_of(model, x)
    for (lower, upper), reach in zip(result, (0.1, 0.3)):
        assert upper is None and torch.allclose(lower, value - reach * slope, atol=1e-4)


def test_an_l1_ball_has_a_constant_of_its_own():
    """eps (max column norm) ||w_y - w_k||, and never worse than the l_2 ball's.

    Other sets are in the same call.
    """
    model, x = nn.Sequential(nn.Linear(9, 8), nn.ReLU(), nn.Linear(8, 3)).eval(), torch.rand(4, 9)
    sets = [
        PerturbationL1Box(0.3, clip=None),
        PerturbationL2Box(0.3, clip=None),
        PerturbationLinf(0.1),
    ]
    bounded = BoundedModule(model, perturbations=sets)
    [(lower, _), (in_l2, _), _] = bounded.compute_norm_bounds(
        x, C=MARGINS, method="Lipschitz", bound_upper=False
    )
    columns = torch.linalg.vector_norm(model[0].weight, dim=0)
    slope = columns.max() * torch.linalg.vector_norm(MARGINS @ model[2].weight, dim=2)
    value = values_of(model, x)
    assert torch.allclose(lower, value - 0.3 * slope, atol=1e-4) and (lower > in_l2).all()


def test_l1_of_a_linear_network_is_exact():
    model, x = nn.Sequential(nn.Linear(9, 3)).eval(), torch.rand(4, 9)
    bounded = BoundedModule(model, perturbations=[PerturbationL1Box(0.3, clip=None)])
    lower, _ = bounded.compute_bounds(x, C=MARGINS, method="Lipschitz", bound_upper=False)
    rows = MARGINS @ model[0].weight
    assert torch.allclose(lower, values_of(model, x) - 0.3 * rows.abs().amax(2), atol=1e-5)


def test_a_layer_without_weights_keeps_other_sets_finite():
    """Infinity times zero is NaN: of sets that are no l_1 ball."""
    model, x = nn.Sequential(nn.Linear(9, 8), nn.ReLU(), nn.Linear(8, 3)).eval(), torch.rand(4, 9)
    nn.init.zeros_(model[0].weight)
    bounded = BoundedModule(model, perturbations=[PerturbationL1Box(0.3), PerturbationLinf(0.1)])
    value = values_of(model, x)
    options = {"method": "Lipschitz", "bound_upper": False}
    for lower, _ in bounded.compute_norm_bounds(x, C=MARGINS, **options):
        assert_same(lower, value)


CONVOLUTIONS = {
    "strided": {"kernel_size": 4, "stride": 2, "padding": 1},
    "dilated": {"kernel_size": 3, "dilation": 2},
    "grouped": {"kernel_size": 3, "groups": 2, "padding": 1},
    "oblong": {"kernel_size": (2, 3), "stride": (3, 1)},
    "dilated and strided": {"kernel_size": 3, "stride": 2, "dilation": 2},
}


@pytest.mark.parametrize("options", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_the_columns_of_a_convolution(options):
    """Of an image large enough to hold a whole column."""
    layer, shape = nn.Conv2d(4, 6, bias=False, **options), (4, 15, 15)
    graph = ReluNetwork(nn.Sequential(layer, nn.ReLU()).eval(), torch.rand(1, *shape)).graph
    step = graph.steps[graph.layers[0]]
    columns = layer(torch.eye(4 * 15 * 15).view(-1, *shape)).flatten(1)
    result = column_norm(step, layer_weight(step))
    assert result == pytest.approx(float(torch.linalg.vector_norm(columns, dim=1).max()), rel=1e-5)


def test_pixel_range_bounds_the_reach():
    """All pixels at the top of the range: the corner of the box is nearer than the ball."""
    x = torch.full((1, 4), 0.99)
    region = PerturbationL2Box(torch.tensor([3.0]))
    assert region.l2_radius(x).item() == pytest.approx(0.99 * 2)
    assert PerturbationLinf(0.1).l2_radius(x).item() == pytest.approx(0.1 * 2)
    assert PerturbationL2Box(0.1).l2_radius(x).item() == pytest.approx(0.1)


def test_constants_follow_the_weights():
    """Also where the change goes past torch's version counter."""
    model, x = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval(), torch.rand(2, 3)
    bounded = BoundedModule(model, perturbations=[PerturbationL2Box(0.1)])
    C = torch.tensor([[[1.0, -1.0]]]).expand(2, -1, -1)
    before, _ = bounded.compute_bounds(x, C=C, method="Lipschitz")
    model[0].weight.data.mul_(10)
    after, _ = bounded.compute_bounds(x, C=C, method="Lipschitz")
    fresh, _ = BoundedModule(model, perturbations=[PerturbationL2Box(0.1)]).compute_bounds(
        x, C=C, method="Lipschitz"
    )
    assert torch.equal(after, fresh) and not torch.allclose(before, after)


@norms
@pytest.mark.parametrize("name", CASES)
def test_step_by_step_is_no_better_and_not_much_worse(name, norm):
    make, shape = CASES[name]
    model = make()
    exact, loose = (constants(model, shape, norm, step_by_step=how)[1] for how in (False, True))
    for length, longer in zip(exact.layers, loose.layers):
        assert length <= longer * (1 + 1e-6) and longer < 3 * length
    for neurons, others in zip(exact.neurons, loose.neurons):
        assert (neurons <= others * (1 + 1e-6)).all()
    assert exact.layers != loose.layers or name in ("mlp", "view")
