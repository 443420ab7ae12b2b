"""CROWN without gradients.

The host's relaxation, sound on every set, through windows as through the whole network.
"""

import math

import pytest
import torch
from torch import nn

from lirpa_multinorm import BoundedModule, PerturbationLinf, PerturbationLpBox
from lirpa_multinorm.audit import build_graph
from lirpa_multinorm.audit.graphs import INPUT_SHAPE
from lirpa_multinorm.errors import NaNBoundError, UnsupportedModelError
from lirpa_multinorm.perturbations import Region
from tests.checks import assert_contains, assert_same
from tests.networks import dense, with_parameters
from tests.verifier.problems import GRAPHS, SETS, SMALL, attacked_graph, graph_module, scaled

SIZE = math.prod(INPUT_SHAPE)
LINF = SETS["linf"]
#: Where the host's hidden layers are bounded as ours: by CROWN from IBP of the layer before.
ALIKE = [name for name in GRAPHS if name not in ("negate", "residual", "view", "relu_first")]


@pytest.mark.parametrize("name", GRAPHS)
def test_an_attack_never_leaves_the_bounds(name):
    model, x, reached = attacked_graph(name)
    result = graph_module(name).compute_norm_bounds(x, method="Sparse-CROWN")
    for bounds, ends in zip(result, reached):
        assert_contains(bounds, ends)


def test_it_is_the_hosts_crown_where_the_hidden_layer_is_bounded_exactly():
    bounded = BoundedModule(dense(SIZE, 20, 3).eval(), perturbations=SMALL)
    x, C = torch.rand(5, *INPUT_SHAPE), torch.randn(5, 4, 3)
    assert_same(
        *[bounded.compute_norm_bounds(x, C, method) for method in ("Sparse-CROWN", "CROWN")]
    )


@pytest.mark.parametrize("name", ALIKE)
def test_it_is_the_hosts_crown_in_deeper_networks(name):
    bounded, x = graph_module(name, *SMALL, *scaled(SMALL, 4)), torch.rand(8, *INPUT_SHAPE)
    assert_same(
        *[bounded.compute_norm_bounds(x, method=method) for method in ("Sparse-CROWN", "CROWN")]
    )


def test_it_is_about_as_tight_as_the_hosts_crown_behind_a_skip_connection():
    """The host looks for stable neurons with the tightened intervals of the layers before."""
    bounded, x = graph_module("residual", *SMALL), torch.rand(8, *INPUT_SHAPE)
    ours, theirs = (
        bounded.compute_norm_bounds(x, method=method) for method in ("Sparse-CROWN", "CROWN")
    )
    for (lower, upper), (low, high) in zip(ours, theirs):
        assert float((upper - lower).mean()) <= 1.001 * float((high - low).mean())


def test_hand_computed():
    """relu(x) - 0.5 on [-1, 1].

    The lower line is 0 (slope 0 where both ends are as far), the upper one (x + 1) / 2.
    """
    model = nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1))
    model = with_parameters(model, 1.0, 0.0, 1.0, -0.5)
    bounded = BoundedModule(model, perturbations=[PerturbationLinf(1.0, clip=None)])
    lower, upper = bounded.compute_bounds(torch.zeros(1, 1), method="sparse-crown")
    assert lower.tolist() == [[-0.5]] and upper.tolist() == [[0.5]]


def test_repeated_rows_of_a_specification_get_the_same_bounds():
    bounded, x = graph_module("conv", LINF), torch.rand(2, *INPUT_SHAPE)
    C = torch.randn(2, 3, 3)
    padded = torch.cat([C, C[:, :1], C[:, :1]], dim=1)
    for method in ("Sparse-CROWN", "SDP-CROWN"):
        short, long = (bounded.compute_bounds(x, C=rows, method=method)[0] for rows in (C, padded))
        assert_same(long[:, :3], short)
        assert torch.equal(long[:, 3:], long[:, :1].expand(-1, 2))


def test_changed_weights_are_seen():
    bounded, x = graph_module("conv", LINF), torch.rand(1, *INPUT_SHAPE)
    before = bounded.compute_bounds(x, method="Sparse-CROWN")[0]
    with torch.no_grad():
        bounded.model[0].weight.mul_(0.5)
    after = bounded.compute_bounds(x, method="Sparse-CROWN")[0]
    fresh = BoundedModule(bounded.model, perturbations=[LINF]).compute_bounds(
        x, method="Sparse-CROWN"
    )[0]
    assert torch.equal(after, fresh) and not torch.allclose(after, before)


def test_changed_buffers_are_seen_even_if_they_are_not_saved():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = dense(SIZE, 20, 3)
            self.register_buffer("scale", torch.ones(3), persistent=False)

        def forward(self, x):
            return self.net(x) * self.scale

    bounded, x = BoundedModule(Scaled().eval(), perturbations=[LINF]), torch.rand(1, *INPUT_SHAPE)
    before = bounded.compute_bounds(x, method="SDP-CROWN")[0]
    bounded.model.scale.fill_(3.0)
    after = bounded.compute_bounds(x, method="SDP-CROWN")[0]
    assert_same(after, 3 * before, rtol=1e-3, atol=1e-3)


def test_float64():
    bounded = BoundedModule(build_graph("conv").double(), perturbations=SMALL)
    x = torch.rand(2, *INPUT_SHAPE, dtype=torch.float64)
    lower, upper = bounded.compute_bounds(x, method="Sparse-CROWN")
    assert lower.dtype == torch.float64 and (lower <= upper).all()


def test_radius_per_example():
    x, eps = torch.rand(2, *INPUT_SHAPE), torch.tensor([0.0, 0.4])
    bounded = graph_module("conv", PerturbationLpBox(2, eps))
    lower, upper = bounded.compute_bounds(x, method="Sparse-CROWN")
    assert torch.allclose(lower[0], upper[0], atol=1e-4) and (upper[1] - lower[1] > 0.01).all()


def test_nan_and_unknown_operators_raise():
    x = torch.rand(1, *INPUT_SHAPE)
    bounded = graph_module("conv", LINF)
    bounded.model[0].weight.data[0, 0, 0, 0] = math.nan
    with pytest.raises(NaNBoundError):
        bounded.compute_region_bounds([Region(x, LINF)], None, "Sparse-CROWN")
    with pytest.raises(UnsupportedModelError, match="sigmoid"):
        graph_module("sigmoid_first").compute_bounds(x, method="Sparse-CROWN")
