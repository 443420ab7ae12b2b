"""Intervals inside the network, and the shrinking ReLU of training."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lirpa_multinorm import (
    BoundedModule,
    PerturbationL1Box,
    PerturbationL2Box,
    PerturbationLinf,
    host,
    margin_matrix,
)
from lirpa_multinorm.attacks.geometry import random_point
from lirpa_multinorm.errors import InvalidArgumentError, NaNBoundError
from lirpa_multinorm.models import Normalize
from lirpa_multinorm.perturbations import Region
from lirpa_multinorm.utils import distributed
from tests.losses.slow_losses import clean_statistics, input_ends, propagate

LINF, L2, L1 = PerturbationLinf(0.1), PerturbationL2Box(0.3), PerturbationL1Box(0.5)


def linear():
    return nn.Sequential(nn.Flatten(), nn.Linear(32, 3))


def mlp():
    return nn.Sequential(
        nn.Flatten(), nn.Linear(32, 7), nn.ReLU(), nn.Linear(7, 6), nn.ReLU(), nn.Linear(6, 3)
    )


def normalized_conv():
    return nn.Sequential(
        Normalize([0.4, 0.5], [0.2, 0.3]),
        nn.Conv2d(2, 3, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(3, 4, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16, 3),
    )


def batch_norm_conv():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16, 6),
        nn.BatchNorm1d(6),
        nn.ReLU(),
        nn.Linear(6, 3),
    )


NETWORKS = [linear, mlp, normalized_conv, batch_norm_conv]
networks = pytest.mark.parametrize("make", NETWORKS, ids=lambda make: make.__name__)


def images(count=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(count, 2, 4, 4, generator=generator, dtype=torch.float64) * 1.2 - 0.1).clamp(
        0, 1
    )


def by_hand(x, perturbation):
    """The set around x as the slow formulas name it."""
    if perturbation.is_box():
        return "box", (x - perturbation.eps).clamp(min=0), (x + perturbation.eps).clamp(max=1)
    return "ball", x, perturbation.eps, perturbation.norm, True


def close(one, other):
    return torch.allclose(one, other, rtol=1e-10, atol=1e-12)


def assert_intervals(found, model, x, perturbation, statistics=None):
    region = by_hand(x, perturbation)
    _, relus = propagate(model, region, torch.zeros(len(x), dtype=torch.long), statistics)
    assert all(close(one, other) for one, other in zip(found.input, input_ends(model, region)))
    assert len(found.relus) == len(relus) == sum(isinstance(layer, nn.ReLU) for layer in model)
    for ends, expected in zip(found.relus, relus):
        assert all(close(one, other) for one, other in zip(ends, expected))


# --- values ---------------------------------------------------------------------------------------


@networks
@pytest.mark.parametrize("with_margins", [True, False], ids=["margins", "outputs"])
def test_intervals_are_those_by_hand(make, with_margins):
    """Rows choose the region; regions may differ in number of examples."""
    model, regions = (
        make().double().eval(),
        [(images(2, 0), LINF), (images(3, 1), L2), (images(1, 2), L1)],
    )
    bounded = BoundedModule(model)
    C = (
        [margin_matrix(torch.arange(len(x)) % 3, 3, torch.float64) for x, _ in regions]
        if with_margins
        else None
    )
    found = bounded.compute_region_bounds([Region(*one) for one in regions], C, "IBP")
    for (x, perturbation), bounds in zip(regions, found):
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
        one + two + F.relu(model.shift)
        for one, two in zip(through(model.longer, relu(long)), relu(short))
    ]
    found = bounds.intermediate.relus
    assert len(found) == 4
    for ends, expected in zip(found, (first, short, long, last)):
        assert all(close(one, other) for one, other in zip(ends, expected))


def test_gradients_flow_through_the_intervals():
    model, x = mlp().double(), images()
    bounded = BoundedModule(model)
    (bounds,) = bounded.compute_region_bounds([Region(x, LINF)], None, "IBP")
    ((lower, upper),) = bounds.intermediate.relus[1:]
    _, relus = propagate(model, by_hand(x, LINF), torch.zeros(3, dtype=torch.long))
    weights = list(model.parameters())[:4]
    for one, other in zip(
        torch.autograd.grad((upper - lower).pow(2).sum(), weights),
        torch.autograd.grad((relus[1][1] - relus[1][0]).pow(2).sum(), weights),
    ):
        assert close(one, other)


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
    bounded = BoundedModule(model, perturbations=[LINF, L2])
    for bounds, perturbation in zip(bounded.compute_norm_bounds(x, method=method), (LINF, L2)):
        assert bounds == (bounds.lower, bounds.upper)
        assert len(bounds.intermediate.relus) == sum(isinstance(m, nn.ReLU) for m in model)
        for _ in range(20):
            value, layers = random_point(perturbation, x), []
            for layer in model:
                if isinstance(layer, nn.ReLU):
                    layers.append(value)
                value = layer(value)
            for (lower, upper), inside in zip(bounds.intermediate.relus, layers):
                assert (lower <= inside.flatten(1).view_as(lower) + 1e-9).all()
                assert (upper >= inside.flatten(1).view_as(upper) - 1e-9).all()


@pytest.mark.parametrize(
    "again", [copy.copy, copy.deepcopy, lambda b: pickle.loads(pickle.dumps(b))]
)
@pytest.mark.parametrize("method", ["IBP", "CROWN", "Sparse-CROWN"])
def test_bounds_can_be_copied_and_pickled(method, again):
    model, x = mlp().double().eval(), images()
    with torch.no_grad():
        bounded = BoundedModule(model, perturbations=[L2])
        (bounds,) = bounded.compute_norm_bounds(x, method=method)
        other = again(bounds)
    assert torch.equal(other.lower, bounds.lower) and torch.equal(other.upper, bounds.upper)
    for ends, expected in zip(other.intermediate.relus, bounds.intermediate.relus):
        assert all(torch.equal(one, same) for one, same in zip(ends, expected))
    assert len(other.intermediate.relus) == 2


def test_a_hidden_nodes_own_bounds_have_none():
    model, x = mlp().double().eval(), images()
    bounded = BoundedModule(model)
    bounded(x)
    node = next(name for name, one in bounded._modules.items() if "Relu" in type(one).__name__)
    (bounds,) = bounded.compute_region_bounds([Region(x, LINF)], method="IBP", final_node_name=node)
    assert bounds.intermediate is None


# --- shrinking ReLU -------------------------------------------------------------------------------


def by_region(bounded, regions):
    return bounded.compute_region_bounds([Region(*one) for one in regions], None, "IBP")


@networks
def test_each_region_shrinks_by_its_own_factor(make):
    model, x = make().double().eval(), images()
    bounded, regions = BoundedModule(model), [Region(x, LINF), Region(x, L2), Region(x, LINF)]
    C = margin_matrix(torch.zeros(3, dtype=torch.long), 3, torch.float64)
    with bounded.shrunk_relus([(slice(0, 3), 0.8), (slice(3, 6), 1.0), (slice(6, 9), 0.5)]):
        found = bounded.compute_region_bounds(regions, C, "IBP")
        hidden = found[2].intermediate
    for (lower, _), perturbation, shrink in zip(found, (LINF, L2, LINF), (0.4, 0.0, 1.0)):
        region = by_hand(x, perturbation)
        assert close(
            lower, propagate(model, region, torch.zeros(3, dtype=torch.long), None, shrink)[0]
        )
    _, relus = propagate(model, by_hand(x, LINF), torch.zeros(3, dtype=torch.long), None, 1.0)
    assert all(
        close(one, other)
        for ends, others in zip(hidden.relus, relus)
        for one, other in zip(ends, others)
    )


def test_only_crossing_neurons_shrink():
    """Neurons in [-1, 2], [1, 2] and [-2, -1]: upper ends 2 -> 1, 2 and 0."""
    model = nn.Sequential(nn.Linear(1, 3), nn.ReLU(), nn.Linear(3, 3))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[3.0], [1.0], [1.0]]))
        model[0].bias.copy_(torch.tensor([-1.0, 1.0, -2.0]))
        model[2].weight.copy_(torch.eye(3))
        model[2].bias.zero_()
    bounded = BoundedModule(model)
    with bounded.shrunk_relus([(slice(0, 1), 0.5)]):
        ((lower, upper),) = by_region(bounded, [(torch.tensor([[0.5]]), PerturbationLinf(0.5))])
    assert lower.tolist() == [[0.0, 1.0, 0.0]] and upper.tolist() == [[1.0, 2.0, 0.0]]


class Stop(Exception):
    pass


@networks
@pytest.mark.parametrize("fails", [False, True], ids=["done", "failed"])
def test_bounds_afterwards_are_sound_again(make, fails):
    model, x = make().double().eval(), images()
    bounded = BoundedModule(model, perturbations=[LINF, L2])
    before = {
        method: bounded.compute_bounds(x, method=method) for method in ("IBP", "CROWN-IBP", "CROWN")
    }
    try:
        with bounded.shrunk_relus([(slice(0, 6), 0.5)]):
            bounded.compute_norm_bounds(x, method="IBP")
            if fails:
                raise Stop
    except Stop:
        pass
    for method, bounds in before.items():
        assert all(
            torch.equal(one, other)
            for one, other in zip(bounds, bounded.compute_bounds(x, method=method))
        )


def test_an_error_inside_a_pass_leaves_nothing_behind():
    model, x = mlp().double(), images()
    bounded = BoundedModule(model)
    ((lower, upper),) = by_region(bounded, [(x, LINF)])
    with pytest.raises(InvalidArgumentError), bounded.shrunk_relus([(slice(0, 3), 0.5)]):
        by_region(bounded, [(x * float("nan"), LINF)])
    ((low, high),) = by_region(bounded, [(x, LINF)])
    assert torch.equal(lower, low) and torch.equal(upper, high)


def test_the_outer_factors_return_behind_inner_ones():
    model, x = mlp().double(), images()
    bounded = BoundedModule(model)
    with bounded.shrunk_relus([(slice(0, 3), 0.6)]):
        once = by_region(bounded, [(x, LINF)])[0][1]
        with bounded.shrunk_relus([]):
            plain = by_region(bounded, [(x, LINF)])[0][1]
        again = by_region(bounded, [(x, LINF)])[0][1]
    assert torch.equal(once, again) and not torch.equal(once, plain)
    assert torch.equal(plain, by_region(bounded, [(x, LINF)])[0][1])


class FixedBatch(nn.Module):
    """A network whose trace holds the batch size, so that other batches need their own trace."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x):
        return self.last(torch.relu(self.first(x)).reshape(int(x.shape[0]), 5))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("traced", [True, False], ids=["traced", "fresh"])
@pytest.mark.parametrize(
    "make",
    [FixedBatch, lambda: nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))],
    ids=["fixed_batch", "any_batch"],
)
def test_a_trace_made_meanwhile_shrinks_too(make, traced):
    x, bounded = torch.rand(3, 4), BoundedModule(make())
    if traced:
        bounded(x)
    with bounded.shrunk_relus([(slice(0, 3), 0.5)]):
        shrunk, plain = by_region(bounded, [(x, PerturbationLinf(0.4))] * 2)
        assert len(plain.intermediate.relus[0][0]) == 3
    assert not torch.allclose(shrunk[1], plain[1])
    assert torch.allclose(plain[1], by_region(bounded, [(x, PerturbationLinf(0.4))] * 2)[0][1])


# --- BatchNorm of several processes ---------------------------------------------------------------


@pytest.mark.parametrize("shape", [(6, 4), (5, 4, 3, 3)], ids=["dense", "conv"])
def test_batch_norm_over_all_processes_is_torchs(monkeypatch, shape):
    """With one process that believes it were several.

    Output, statistics and gradients are those of the layer.
    """
    make = nn.BatchNorm1d if len(shape) == 2 else nn.BatchNorm2d
    model = nn.Sequential(make(4, momentum=0.3)).double().train()
    with torch.no_grad():
        model[0].weight.normal_()
        model[0].bias.normal_()
    twin = nn.Sequential(make(4, momentum=0.3)).double().train()
    twin.load_state_dict(model.state_dict())
    x = torch.randn(shape, dtype=torch.float64)
    bounded = BoundedModule(model)
    bounded.eval()(x)
    bounded.train()
    monkeypatch.setattr(distributed, "is_active", lambda: True)
    monkeypatch.setattr(distributed, "all_sum", lambda value: value)
    leaves = [x.clone().requires_grad_() for _ in range(2)]
    values = [network(leaf) for network, leaf in zip((bounded, twin), leaves)]
    assert close(*values)
    for value in values:
        (value.sin() * torch.arange(4.0).view(1, 4, *[1] * (x.ndim - 2))).sum().backward()
    assert close(leaves[0].grad, leaves[1].grad)
    for (name, one), other in zip(model.named_parameters(), twin.parameters()):
        assert close(one.grad, other.grad), name
    for (name, one), other in zip(model.named_buffers(), twin.buffers()):
        assert torch.allclose(one.double(), other.double(), rtol=1e-12), name
