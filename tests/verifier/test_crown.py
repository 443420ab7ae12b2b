"""CROWN without gradients.

The host's relaxation, sound on every set, through windows as through the whole network.
"""

import math

import pytest
import torch
from torch import nn

from lirpa_multinorm import (
    AttackSettings,
    BoundedModule,
    PerturbationL1Box,
    PerturbationL2Box,
    PerturbationLinf,
    PerturbationLpBox,
)
from lirpa_multinorm.audit import build_graph, largest_violation
from lirpa_multinorm.audit.graphs import INPUT_SHAPE
from lirpa_multinorm.errors import NaNBoundError, UnsupportedModelError
from lirpa_multinorm.perturbations import Region

SETS = [
    PerturbationLinf(0.05),
    PerturbationL2Box(0.3),
    PerturbationL1Box(0.6),
    PerturbationL2Box(0.3, clip=None),
]
GRAPHS = [
    "mlp",
    "conv",
    "standardize",
    "negate",
    "input_skip",
    "conv_batch_norm",
    "residual",
    "view",
    "relu_first",
    "strided_dilated_grouped",
    "average_pool_first",
]


def one_hidden_layer():
    return nn.Sequential(
        nn.Flatten(), nn.Linear(math.prod(INPUT_SHAPE), 20), nn.ReLU(), nn.Linear(20, 3)
    ).eval()


@pytest.mark.parametrize("name", GRAPHS)
def test_an_attack_never_leaves_the_bounds(name):
    bounded, x = BoundedModule(build_graph(name), perturbations=SETS), torch.rand(2, *INPUT_SHAPE)
    for ptb, (lower, upper) in zip(SETS, bounded.compute_norm_bounds(x, method="Sparse-CROWN")):
        assert (lower <= upper).all()
        assert (
            largest_violation(
                bounded.model, x, ptb, (lower, upper), settings=AttackSettings(steps=25)
            )
            <= 1e-5
        )


def test_it_is_the_hosts_crown_where_the_hidden_layer_is_bounded_exactly():
    bounded, x = BoundedModule(one_hidden_layer(), perturbations=SETS), torch.rand(5, *INPUT_SHAPE)
    C = torch.randn(5, 4, 3)
    for ours, theirs in zip(
        *[bounded.compute_norm_bounds(x, C, method) for method in ("Sparse-CROWN", "CROWN")]
    ):
        assert all(torch.allclose(one, other, atol=1e-5) for one, other in zip(ours, theirs))


@pytest.mark.parametrize(
    "name",
    [
        "mlp",
        "conv",
        "standardize",
        "input_skip",
        "conv_batch_norm",
        "average_pool_first",
        "strided_dilated_grouped",
    ],
)
@pytest.mark.parametrize("scale", [1, 4])
def test_it_is_the_hosts_crown_in_deeper_networks(name, scale):
    sets = [PerturbationLpBox(one.norm, scale * one.eps, one.clip) for one in SETS]
    bounded, x = BoundedModule(build_graph(name), perturbations=sets), torch.rand(8, *INPUT_SHAPE)
    ours, theirs = (
        bounded.compute_norm_bounds(x, method=method) for method in ("Sparse-CROWN", "CROWN")
    )
    for one, other in zip(ours, theirs):
        assert all(torch.allclose(*ends, atol=1e-5, rtol=1e-5) for ends in zip(one, other))


def test_it_is_about_as_tight_as_the_hosts_crown_behind_a_skip_connection():
    """The host looks for stable neurons with the tightened intervals of the layers before."""
    bounded, x = (
        BoundedModule(build_graph("residual"), perturbations=SETS),
        torch.rand(8, *INPUT_SHAPE),
    )
    ours, theirs = (
        bounded.compute_norm_bounds(x, method=method) for method in ("Sparse-CROWN", "CROWN")
    )
    for (lower, upper), (low, high) in zip(ours, theirs):
        assert float((upper - lower).mean()) <= 1.001 * float((high - low).mean())


def test_hand_computed():
    """relu(x) - 0.5 on [-1, 1].

    The lower line is 0 (slope 0 where both ends are as far), the upper one (x + 1) / 2.
    """
    model = nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1)).eval()
    for value, parameter in zip((1.0, 0.0, 1.0, -0.5), model.parameters()):
        parameter.data.fill_(value)
    bounded = BoundedModule(model, perturbations=[PerturbationLinf(1.0, clip=None)])
    lower, upper = bounded.compute_bounds(torch.zeros(1, 1), method="sparse-crown")
    assert lower.tolist() == [[-0.5]] and upper.tolist() == [[0.5]]


def test_repeated_rows_of_a_specification_get_the_same_bounds():
    bounded, x = (
        BoundedModule(build_graph("conv"), perturbations=SETS[:1]),
        torch.rand(2, *INPUT_SHAPE),
    )
    C = torch.randn(2, 3, 3)
    padded = torch.cat([C, C[:, :1], C[:, :1]], dim=1)
    for method in ("Sparse-CROWN", "SDP-CROWN"):
        short, long = (bounded.compute_bounds(x, C=one, method=method)[0] for one in (C, padded))
        assert torch.allclose(long[:, :3], short, atol=1e-5) and torch.equal(
            long[:, 3:], long[:, :1].expand(-1, 2)
        )


def test_changed_weights_are_seen():
    bounded, x = (
        BoundedModule(build_graph("conv"), perturbations=SETS[:1]),
        torch.rand(1, *INPUT_SHAPE),
    )
    before = bounded.compute_bounds(x, method="Sparse-CROWN")[0]
    with torch.no_grad():
        bounded.model[0].weight.mul_(0.5)
    after = bounded.compute_bounds(x, method="Sparse-CROWN")[0]
    fresh = BoundedModule(bounded.model, perturbations=SETS[:1]).compute_bounds(
        x, method="Sparse-CROWN"
    )[0]
    assert torch.equal(after, fresh) and not torch.allclose(after, before)


def test_changed_buffers_are_seen_even_if_they_are_not_saved():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = one_hidden_layer()
            self.register_buffer("scale", torch.ones(3), persistent=False)

        def forward(self, x):
            return self.net(x) * self.scale

    bounded, x = BoundedModule(Scaled().eval(), perturbations=SETS[:1]), torch.rand(1, *INPUT_SHAPE)
    before = bounded.compute_bounds(x, method="SDP-CROWN")[0]
    bounded.model.scale.fill_(3.0)
    assert torch.allclose(
        bounded.compute_bounds(x, method="SDP-CROWN")[0], 3 * before, rtol=1e-3, atol=1e-3
    )


def test_float64():
    bounded = BoundedModule(build_graph("conv").double(), perturbations=SETS)
    x = torch.rand(2, *INPUT_SHAPE, dtype=torch.float64)
    lower, upper = bounded.compute_bounds(x, method="Sparse-CROWN")
    assert lower.dtype == torch.float64 and (lower <= upper).all()


def test_radius_per_example():
    x, eps = torch.rand(2, *INPUT_SHAPE), torch.tensor([0.0, 0.4])
    lower, upper = BoundedModule(
        build_graph("conv"), perturbations=[PerturbationLpBox(2, eps)]
    ).compute_bounds(x, method="Sparse-CROWN")
    assert torch.allclose(lower[0], upper[0], atol=1e-4) and (upper[1] - lower[1] > 0.01).all()


def test_nan_and_unknown_operators_raise():
    x = torch.rand(1, *INPUT_SHAPE)
    bounded = BoundedModule(build_graph("conv"), perturbations=SETS[:1])
    bounded.model[0].weight.data[0, 0, 0, 0] = math.nan
    with pytest.raises(NaNBoundError):
        bounded.compute_region_bounds([Region(x, SETS[0])], None, "Sparse-CROWN")
    with pytest.raises(UnsupportedModelError, match="sigmoid"):
        BoundedModule(build_graph("sigmoid_first"), perturbations=SETS).compute_bounds(
            x, method="Sparse-CROWN"
        )
