"""BoundedModule traces once, and its bounds follow a model that is copied, moved or changed."""

import copy
import pickle

import pytest
import torch
from torch import nn

from lirpa_multinorm import BoundedModule, PerturbationLinf
from lirpa_multinorm.audit import build_graph
from lirpa_multinorm.audit.graphs import Lambda
from tests.bounds.small_network import BATCH, METHODS, OPTIONS, SETS, bounds_of, images, network
from tests.checks import assert_same, differ

# --- tracing --------------------------------------------------------------------------------------


def test_traces_on_first_use_only():
    bounded = BoundedModule(network(), perturbations=SETS)
    assert len(list(bounded.children())) == 0
    bounded.compute_bounds(images(), method="IBP")
    nodes = list(bounded.children())
    bounded.compute_bounds(images(2), method="CROWN")
    assert nodes and all(item is other for item, other in zip(nodes, bounded.children()))


def test_a_sample_traces_at_once():
    bounded = BoundedModule(network(), images(1), perturbations=SETS)
    assert len(list(bounded.children())) > 0
    assert_same(
        bounds_of(bounded, images()),
        bounds_of(BoundedModule(bounded.model, perturbations=SETS), images()),
    )


@pytest.mark.parametrize("norm", [False, True], ids=["plain", "batch_norm"])
def test_tracing_leaves_no_traces(norm):
    """Neither statistics nor modes nor random numbers change, whatever the modes are."""
    model = network(norm).train()
    model[0].eval()
    before, modes = (
        copy.deepcopy(model.state_dict()),
        [module.training for module in model.modules()],
    )
    state = torch.get_rng_state()
    bounded = BoundedModule(model, images(1), perturbations=SETS)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert bounded.training
    assert torch.equal(torch.get_rng_state(), state)


def test_output_is_the_models():
    model, x = network(True), images()
    bounded = BoundedModule(model, perturbations=SETS)
    assert torch.allclose(bounded(x), model(x), atol=1e-6)


@pytest.mark.parametrize("method", ["IBP", "CROWN"])
@pytest.mark.parametrize("graph", ["conv", "view"])
def test_batch_size_may_change(graph, method):
    """Also where a reshape has baked the batch size of the trace into the graph."""
    model = build_graph(graph)
    x = torch.rand(5, 2, 6, 6)
    bounded = BoundedModule(model, perturbations=SETS)
    whole = bounds_of(bounded, x, method)
    for size in (1, 3, 5, 2):
        assert_same(bounds_of(bounded, x[:size], method), [end[:size] for end in whole])
        assert torch.allclose(bounded(x[:size]), model(x[:size]), atol=1e-5)


@pytest.mark.parametrize("method", METHODS[:3])
def test_a_model_without_parameters(method):
    model = nn.Sequential(Lambda(lambda x: x - 0.5), nn.ReLU(), nn.Flatten())
    x = images()
    lower, upper = bounds_of(BoundedModule(model, perturbations=[PerturbationLinf(0.1)]), x, method)
    assert lower.shape == (BATCH, 32)
    lo, hi = (model((x + step).clamp(0, 1)) for step in (-0.1, 0.1))
    assert (lower <= lo + 1e-6).all() and (upper >= hi - 1e-6).all()
    if method == "IBP":
        assert_same((lower, upper), (lo, hi))


# --- copies, moves and changes --------------------------------------------------------------------


@pytest.mark.parametrize(
    "copied",
    [copy.copy, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))],
    ids=["copy", "deepcopy", "pickle"],
)
@pytest.mark.parametrize("method", ["IBP", "CROWN", "CROWN-Optimized"])
def test_copies_after_use(copied, method):
    bounded, x = BoundedModule(network(True), perturbations=SETS, bound_opts=OPTIONS), images()
    before = bounds_of(bounded, x, method)
    other = copied(bounded)
    assert type(other) is BoundedModule and other.training == bounded.training
    assert_same(bounds_of(other, x, method), before)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.5)
    if copied is not copy.copy:  # a shallow copy shares its tensors
        assert_same(bounds_of(bounded, x, method), before)
    assert differ(bounds_of(other, x, method), before)


MOVES = {
    "to": lambda m: m.to(torch.float64),
    "double": lambda m: m.double(),
    "to_device_and_type": lambda m: m.to("cpu", torch.float64),
}


@pytest.mark.parametrize("move", MOVES.values(), ids=MOVES)
@pytest.mark.parametrize("traced", [False, True], ids=["untraced", "traced"])
def test_moves(move, traced):
    model, x = network(True), images()
    bounded = BoundedModule(model, perturbations=SETS, bound_opts=OPTIONS)
    before = {method: bounds_of(bounded, x, method) for method in METHODS[:3]} if traced else None
    optimizer_ids = [id(parameter) for parameter in bounded.parameters()]
    assert move(bounded) is bounded
    assert [id(parameter) for parameter in bounded.parameters()] == optimizer_ids
    for method in METHODS:
        lower, upper = bounds_of(bounded, x.double(), method)
        assert lower.dtype == upper.dtype == torch.float64
        if traced and method in before:
            assert_same((lower.float(), upper.float()), before[method], 1e-4)
    assert torch.allclose(bounded(x.double()), model(x.double()))
    assert torch.get_default_dtype() == torch.float32


def test_double_and_back():
    bounded, x = BoundedModule(network(True), perturbations=SETS), images()
    before = bounds_of(bounded, x, "CROWN")
    bounded.double()
    bounds_of(bounded, x.double(), "CROWN")
    assert_same(bounds_of(bounded.float(), x, "CROWN"), before)


def _other_weight(model):
    model[6].weight = nn.Parameter(model[6].weight.detach() * 3)


def _assigned_state(model):
    model.load_state_dict(
        {
            key: value * 2 if value.is_floating_point() else value.clone()
            for key, value in model.state_dict().items()
        },
        assign=True,
    )


def _other_statistics(model):
    model[1].running_mean = model[1].running_mean + 0.3


CHANGES = {
    "parameter": _other_weight,
    "assigned_state": _assigned_state,
    "buffer": _other_statistics,
    "double": lambda model: model.double(),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_tensors_replaced_behind_its_back(change):
    """A trace that went on with the old tensors would certify another network."""
    model, x = network(True), images()
    bounded = BoundedModule(model, perturbations=SETS)
    before = bounds_of(bounded, x, "CROWN")
    change(model)
    x = x.to(model[0].weight.dtype)
    assert torch.allclose(bounded(x), model(x), atol=1e-5)
    after = bounds_of(bounded, x, "CROWN")
    assert_same(after, bounds_of(BoundedModule(model, perturbations=SETS), x, "CROWN"))
    assert differ([end.float() for end in after], before) or x.dtype == torch.float64
