"""l_inf-distance layers: values, mean shift, constants, initial weights, clear errors."""

from __future__ import annotations

import math

import pytest
import torch

from lirpa_multinorm.errors import InvalidArgumentError
from lirpa_multinorm.models import (
    DistanceLogits,
    LinfDistance,
    MeanShift,
    build_model,
    linf_dist_mlp,
)
from tests.checks import assert_same


def test_the_network_is_that_of_the_paper():
    model = linf_dist_mlp((1, 28, 28), 10)
    layers = [layer for layer in model if isinstance(layer, LinfDistance)]
    assert [layer.out_features for layer in layers] == [5120] * 4 + [10]
    assert sum(isinstance(layer, MeanShift) for layer in model) == 4
    assert all(layer.p == math.inf for layer in layers)


def test_an_untrained_layer_that_does_not_shrink_passes_inputs_on():
    torch.manual_seed(0)
    layer, x = LinfDistance(4, 8), torch.rand(3, 4)
    assert_same(layer(x) - 10, torch.cat([x, x], 1))
    assert layer.weight[:, 0].tolist().count(-10.0) == 2
    assert not (LinfDistance(8, 4).weight == -10).any()


def test_logits_are_larger_for_nearer_weights_and_have_a_bias():
    layer, x = DistanceLogits(2, 3), torch.rand(4, 2)
    with torch.no_grad():
        layer.bias.copy_(torch.tensor([0.0, 1.0, 2.0]))
    plain = LinfDistance(2, 3)
    plain.weight = layer.weight
    assert_same(layer(x), torch.tensor([0.0, 1.0, 2.0]) - plain(x))


def test_mean_shift_keeps_a_running_mean_and_nothing_else():
    layer, x = MeanShift(2), torch.tensor([[1.0, 2.0], [3.0, 6.0]])
    assert_same(layer(x), torch.tensor([[-1.0, -2.0], [1.0, 2.0]]))
    assert_same(layer.running_mean, torch.tensor([[0.2, 0.4]]))
    assert_same(layer.eval()(x), x - torch.tensor([0.2, 0.4]))
    assert_same(layer.running_mean, torch.tensor([[0.2, 0.4]]))
    assert not list(layer.parameters())


def test_the_exponent_is_kept_with_the_weights():
    model = build_model("linf_dist_mlp", (1, 4, 4), 3, hidden=[5])
    model[1].set_p(64)
    other = build_model("linf_dist_mlp", (1, 4, 4), 3, hidden=[5])
    other.load_state_dict(model.state_dict())
    assert (other[1].p, other[3].p) == (64, math.inf)
    assert all(bool(value.isfinite().all()) for value in model.state_dict().values())


@pytest.mark.parametrize("p", [1, 2, 8, 1000, math.inf], ids=str)
@pytest.mark.parametrize("norm", [1, 2, math.inf], ids=str)
def test_no_two_outputs_are_farther_apart_than_the_constant_says(norm, p):
    torch.manual_seed(0)
    layer = LinfDistance(6, 5).double().set_p(p)
    first = torch.randn(300, 6, dtype=torch.float64)
    moves = torch.randn_like(first) * torch.logspace(-3, 1, 300, dtype=torch.float64).unsqueeze(1)
    moves[::3] = moves[::3].sign()  # corners of the box
    moves[1::3, 1:] = 0  # corners of the cross
    fallen = torch.linalg.vector_norm(layer(first + moves) - layer(first), norm, dim=1)
    constant = layer.lipschitz_bound(norm)
    assert bool((fallen <= constant * torch.linalg.vector_norm(moves, norm, dim=1) + 1e-9).all())


def test_the_limit_is_one_lipschitz_and_a_batch_mean_offers_nothing():
    assert LinfDistance(7, 5).lipschitz_bound(math.inf) == 1
    assert MeanShift(3).lipschitz_bound(math.inf) == math.inf
    assert MeanShift(3).eval().lipschitz_bound(math.inf) == 1


@pytest.mark.parametrize("p", [0.5, 0, -1, math.nan, True, "8"])
def test_an_exponent_below_one_is_refused(p):
    with pytest.raises(InvalidArgumentError, match="p=.* must be a number of at least 1"):
        LinfDistance(2, 2).set_p(p)


def test_wrong_shapes_are_refused_by_name():
    with pytest.raises(InvalidArgumentError, match=r"x: shape \(1, 1, 2, 2\) is not \(B, 4\)"):
        LinfDistance(4, 2)(torch.zeros(1, 1, 2, 2))
    with pytest.raises(InvalidArgumentError, match="in_features=0"):
        LinfDistance(0, 2)
    with pytest.raises(InvalidArgumentError, match="pool=9 is larger than the image, 8 x 8"):
        build_model("linf_dist_mlp", (1, 8, 8), 10, pool=9)


def test_pooling_in_front_leaves_fewer_inputs():
    model = build_model("linf_dist_mlp", (2, 9, 8), 3, hidden=[5], pool=2)
    assert model[2].in_features == 2 * 4 * 4
    assert model(torch.rand(3, 2, 9, 8)).shape == (3, 3)
