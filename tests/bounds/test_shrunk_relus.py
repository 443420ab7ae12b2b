"""The shrinking ReLU of training: by how much, for which region, and for how long."""

import pytest
import torch
from torch import nn

from lirpa_multinorm import BoundedModule, PerturbationLinf, margin_matrix
from lirpa_multinorm.errors import InvalidArgumentError
from lirpa_multinorm.perturbations import Region
from tests.bounds.interval_cases import L2, LINF, assert_close, by_hand, by_region, images, networks
from tests.checks import assert_same
from tests.losses.slow_intervals import propagate
from tests.networks import mlp


@networks
def test_each_region_shrinks_by_its_own_factor(make):
    model, x = make().double().eval(), images()
    bounded, regions = BoundedModule(model), [Region(x, LINF), Region(x, L2), Region(x, LINF)]
    C = margin_matrix(torch.zeros(3, dtype=torch.long), 3, torch.float64)
    with bounded.shrunk_relus([(slice(0, 3), 0.8), (slice(3, 6), 1.0), (slice(6, 9), 0.5)]):
        result = bounded.compute_region_bounds(regions, C, "IBP")
        hidden = result[2].intermediate
    for (lower, _), perturbation, shrink in zip(result, (LINF, L2, LINF), (0.4, 0.0, 1.0)):
        region = by_hand(x, perturbation)
        expected, _ = propagate(model, region, torch.zeros(3, dtype=torch.long), None, shrink)
        assert_close(lower, expected)
    _, relus = propagate(model, by_hand(x, LINF), torch.zeros(3, dtype=torch.long), None, 1.0)
    assert_close(hidden.relus, relus)


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
        assert_same(bounds, bounded.compute_bounds(x, method=method), 0, 0)


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
