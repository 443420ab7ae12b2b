"""Intervals inside the network: those by hand, and each result's own."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lirpa_multinorm import BoundedModule, PerturbationLinf, host, margin_matrix
from lirpa_multinorm.errors import InvalidArgumentError, NaNBoundError
from lirpa_multinorm.perturbations import Region
from tests.bounds.interval_cases import (
    L1,
    L2,
    LINF,
    assert_close,
    assert_intervals,
    by_hand,
    images,
    networks,
)
from tests.checks import assert_same, assert_within, points_in
from tests.losses.slow_intervals import clean_statistics, propagate
from tests.networks import batch_norm_conv, mlp


@networks
@pytest.mark.parametrize("with_margins", [True, False], ids=["margins", "outputs"])
def test_intervals_are_those_by_hand(make, with_margins):
    """Rows choose the region; regions may differ in number of examples."""
    model = make().double().eval()
    regions = [Region(images(2, 0), LINF), Region(images(3, 1), L2), Region(images(1, 2), L1)]
    bounded = BoundedModule(model)
    C = (
        [margin_matrix(torch.arange(len(x)) % 3, 3, torch.float64) for x, _ in regions]
        if with_margins
        else None
    )
    result = bounded.compute_region_bounds(regions, C, "IBP")
    for (x, perturbation), bounds in zip(regions, result):
        assert_intervals(bounds.intermediate, model, x, perturbation)
        ends = [bounds.intermediate.input, *bounds.intermediate.relus]
        assert all(len(end) == len(x) for pair in ends for end in pair)


def test_intervals_behind_batch_norm_in_training_mode():
    """They use the statistics of the last clean batch."""
    model, clean, x = batch_norm_conv().double(), images(8, 3), images()
    bounded = BoundedModule(model).train()
    bounded(images(8, 4))
    bounded(clean)
    statistics = clean_statistics(model, clean)
    of_box, of_ball = bounded.compute_region_bounds([Region(x, LINF), Region(x, L2)], None, "IBP")
    assert_intervals(of_box.intermediate, model, x, LINF, statistics)
    assert_intervals(of_ball.intermediate, model, x, L2, statistics)
    bounded.eval()
    (bounds,) = bounded.compute_region_bounds([Region(x, LINF)], None, "IBP")
    assert_intervals(bounds.intermediate, model, x, LINF)


class Residual(nn.Module):
    """ReLUs on two ways, of which the longer one is computed last; one ReLU also of a constant."""

    def __init__(self):
        super().__init__()
        self.first, self.short, self.long, self.longer, self.last = (
            nn.Linear(4, 5),
            nn.Linear(5, 5),
            nn.Linear(5, 5),
            nn.Linear(5, 5),
            nn.Linear(5, 2),
        )
        self.shift = nn.Parameter(torch.randn(5))

    def forward(self, x):
        x = F.relu(self.first(x))
        short = F.relu(self.short(x)) + F.relu(self.shift)
        return self.last(F.relu(self.longer(F.relu(self.long(x))) + short))


def test_order_and_number_in_a_network_with_two_ways():
    """In the order of calculation; a ReLU of constants bounds nothing."""
    model, x = Residual().double(), torch.rand(3, 4, dtype=torch.float64)
    bounded = BoundedModule(model)
    (bounds,) = bounded.compute_region_bounds([Region(x, LINF)], None, "IBP")

    def through(layer, ends):
        center, radius = (ends[0] + ends[1]) / 2, (ends[1] - ends[0]) / 2
        return (
            layer(center) - radius @ layer.weight.abs().t(),
            layer(center) + radius @ layer.weight.abs().t(),
        )

    def relu(ends):
        return [end.clamp(min=0) for end in ends]

    first = through(model.first, ((x - 0.1).clamp(min=0), (x + 0.1).clamp(max=1)))
    short, long = through(model.short, relu(first)), through(model.long, relu(first))
    last = [
        sum(ends) + F.relu(model.shift)
        for ends in zip(through(model.longer, relu(long)), relu(short))
    ]
    assert_close(bounds.intermediate.relus, (first, short, long, last))


def test_gradients_flow_through_the_intervals():
    model, x = mlp().double(), images()
    bounded = BoundedModule(model)
    (bounds,) = bounded.compute_region_bounds([Region(x, LINF)], None, "IBP")
    ((lower, upper),) = bounds.intermediate.relus[1:]
    _, relus = propagate(model, by_hand(x, LINF), torch.zeros(3, dtype=torch.long))
    weights = list(model.parameters())[:4]
    assert_close(
        torch.autograd.grad((upper - lower).pow(2).sum(), weights),
        torch.autograd.grad((relus[1][1] - relus[1][0]).pow(2).sum(), weights),
    )


# --- only from the last interval pass -------------------------------------------------------------


def nothing(bounded, x):
    pass


def forward(bounded, x):
    bounded(x)


def crown(bounded, x):
    bounded.compute_region_bounds([Region(x, LINF)], None, "IBP")
    bounded.compute_region_bounds([Region(x, PerturbationLinf(0.2))], None, "CROWN")


def crown_ibp(bounded, x):
    bounded.compute_region_bounds([Region(x, LINF)], None, "IBP")
    bounded.compute_region_bounds([Region(x, PerturbationLinf(0.2))], None, "CROWN-IBP")


def union_by_crown(bounded, x):
    bounded.compute_region_bounds([Region(x, LINF)], None, "IBP")
    bounded.compute_bounds(x, method="CROWN")


def of_the_host(bounded, x):
    bounded.compute_region_bounds([Region(x, LINF)], None, "IBP")
    perturbed = host.BoundedTensor(x, host.PerturbationLpNorm(norm=float("inf"), eps=0.2))
    bounded.compute_bounds(x=(perturbed,), method="IBP")


def cast(bounded, x):
    bounded.compute_region_bounds([Region(x, LINF)], None, "IBP")
    bounded.float()


def traced_again(bounded, x):
    cast(bounded, x)
    bounded(x.float())


def failed(bounded, x):
    bounded.compute_region_bounds([Region(x, LINF)], None, "IBP")
    with torch.no_grad():
        next(bounded.model.parameters()).fill_(float("nan"))
    with pytest.raises(NaNBoundError):
        bounded.compute_region_bounds([Region(x, LINF)], None, "IBP")


OTHERWISE = [
    nothing,
    forward,
    crown,
    crown_ibp,
    union_by_crown,
    of_the_host,
    cast,
    traced_again,
    failed,
]


@networks
@pytest.mark.parametrize("before", OTHERWISE, ids=lambda before: before.__name__)
def test_there_are_none_from_anything_else(make, before):
    bounded = BoundedModule(make().double().eval(), perturbations=[LINF, L2])
    before(bounded, images())
    with pytest.raises(InvalidArgumentError, match="call compute_region_bounds by IBP first"):
        bounded.latent_classifier(1)


@networks
@pytest.mark.parametrize("after", OTHERWISE, ids=lambda after: after.__name__)
def test_a_result_keeps_its_intermediate_bounds_whatever_comes_after(make, after):
    model = make().double().eval()
    bounded = BoundedModule(model, perturbations=[LINF, L2])
    reference = copy.deepcopy(model)
    (bounds,) = bounded.compute_region_bounds([Region(images(3, 5), L2)], None, "IBP")
    after(bounded, images())
    assert_intervals(bounds.intermediate, reference, images(3, 5), L2)


METHODS_WITH_INTERVALS = ["IBP", "CROWN-IBP", "CROWN", "Sparse-CROWN", "SDP-CROWN", "Lipschitz"]


@pytest.mark.parametrize("method", METHODS_WITH_INTERVALS)
def test_every_method_tells_its_intermediate_bounds(method):
    """They hold the values at points of each set, each set's by themselves."""
    model, x = mlp().double().eval(), images()
    few_steps = {"optimize_bound_args": {"iteration": 5}}
    bounded = BoundedModule(model, perturbations=[LINF, L2], bound_opts=few_steps)
    for bounds, perturbation in zip(bounded.compute_norm_bounds(x, method=method), (LINF, L2)):
        assert bounds == (bounds.lower, bounds.upper)
        assert len(bounds.intermediate.relus) == sum(isinstance(m, nn.ReLU) for m in model)
        value, layers = points_in([Region(x, perturbation)], 20), []
        for layer in model:
            if isinstance(layer, nn.ReLU):
                layers.append(value.unflatten(0, (20, -1)))
            value = layer(value)
        for ends, inside in zip(bounds.intermediate.relus, layers):
            assert_within(inside, ends, 1e-9)


@pytest.mark.parametrize(
    "again", [copy.copy, copy.deepcopy, lambda bounds: pickle.loads(pickle.dumps(bounds))]
)
@pytest.mark.parametrize("method", ["IBP", "CROWN", "Sparse-CROWN"])
def test_bounds_can_be_copied_and_pickled(method, again):
    model, x = mlp().double().eval(), images()
    with torch.no_grad():
        bounded = BoundedModule(model, perturbations=[L2])
        (bounds,) = bounded.compute_norm_bounds(x, method=method)
        other = again(bounds)
    assert_same([other.lower, other.upper], [bounds.lower, bounds.upper], 0, 0)
    assert_same(other.intermediate.relus, bounds.intermediate.relus, 0, 0)
    assert len(other.intermediate.relus) == 2


def test_a_hidden_nodes_own_bounds_have_none():
    model, x = mlp().double().eval(), images()
    bounded = BoundedModule(model)
    bounded(x)
    node = next(name for name, node in bounded.named_children() if "Relu" in type(node).__name__)
    (bounds,) = bounded.compute_region_bounds([Region(x, LINF)], method="IBP", final_node_name=node)
    assert bounds.intermediate is None
