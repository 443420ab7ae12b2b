"""BoundedModule beside the host: the same numbers, the host's own calls, and its failures."""

import copy
import math
import warnings

import pytest
import torch
from torch import nn

from lirpa_multinorm import (
    BoundedModule,
    PerturbationL2Box,
    PerturbationLinf,
    PerturbationLpBox,
    host,
)
from lirpa_multinorm.attacks import AttackSettings
from lirpa_multinorm.audit import build_graph
from lirpa_multinorm.errors import UnsupportedModelError
from tests.bounds.small_network import METHODS, SETS, bounds_of, images, network
from tests.checks import assert_same, assert_sound

# --- the same numbers -----------------------------------------------------------------------------


def host_module(model, x, **options):
    with host.tracing():
        return host.HostModule(model, x, bound_opts=dict(host.DEFAULT_OPTIONS, **options))


def hosts_perturbation(norm, eps):
    return host.PerturbationLpNorm(norm=norm, eps=eps)


def build_batch_norm():
    model = network(True)
    model[1].running_var.uniform_(0.5, 1.5)
    model[1].weight.data.uniform_(-1, 1)
    return model


SAFE = {
    "conv": lambda: network(),
    "conv_batch_norm": lambda: build_batch_norm(),
    "linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(32, 8), nn.ReLU(), nn.Linear(8, 3)),
}
HOST_NORMS = {"linf": (math.inf, 0.05), "l2": (2, 0.3)}


@pytest.mark.parametrize("method", METHODS[:3])
@pytest.mark.parametrize("norm,eps", HOST_NORMS.values(), ids=HOST_NORMS)
@pytest.mark.parametrize("name", SAFE)
def test_one_plain_ball_is_bounded_as_by_the_host(name, norm, eps, method):
    """Where the host is sound (a Linear or Conv comes first) both give the same numbers."""
    model, x = SAFE[name](), images()
    bounded = BoundedModule(model, perturbations=[PerturbationLpBox(norm, eps, clip=None)])
    ours = bounds_of(bounded, x, method)
    theirs = host_module(copy.deepcopy(model), x).compute_bounds(
        x=(host.BoundedTensor(x, hosts_perturbation(norm, eps)),), method=method
    )
    assert_same(ours, [end.detach() for end in theirs], 1e-4)


@pytest.mark.parametrize("method", METHODS[:3])
def test_clip_is_the_hosts_box_for_linf(method):
    model, x = network(), images()
    ours = bounds_of(BoundedModule(model, perturbations=[PerturbationLinf(0.2)]), x, method)
    box = host.PerturbationLpNorm(
        norm=math.inf, x_L=(x - 0.2).clamp(0, 1), x_U=(x + 0.2).clamp(0, 1)
    )
    theirs = host_module(copy.deepcopy(model), x).compute_bounds(
        x=(host.BoundedTensor(x, box),), method=method
    )
    assert_same(ours, [end.detach() for end in theirs], 1e-4)


# --- the host's own call --------------------------------------------------------------------------


@pytest.mark.parametrize("perturbations", [None, SETS], ids=["without_sets", "with_sets"])
@pytest.mark.parametrize("norm,eps", HOST_NORMS.values(), ids=HOST_NORMS)
@pytest.mark.parametrize("method", METHODS[:3])
def test_the_hosts_own_call_gives_the_hosts_numbers(method, norm, eps, perturbations):
    model, x = network(), images()
    given = (host.BoundedTensor(x, hosts_perturbation(norm, eps)),)
    bounded = BoundedModule(model, perturbations=perturbations)
    if perturbations:
        bounded.compute_bounds(x, method=method)  # a union call before must not matter
    ours = bounded.compute_bounds(x=given, method=method)
    theirs = host_module(copy.deepcopy(model), x).compute_bounds(x=given, method=method)
    assert_same([end.detach() for end in ours], [end.detach() for end in theirs], 1e-4)
    if perturbations:
        again = bounds_of(bounded, x, method)
        assert_same(again, bounds_of(BoundedModule(model, perturbations=perturbations), x, method))


# Graphs on which the host's own bounds for finite p are too narrow.
UNSAFE = ["standardize", "relu_first", "sigmoid_first", "max_pool_first", "negate", "input_skip"]


@pytest.mark.parametrize("method", METHODS[:3])
@pytest.mark.parametrize("norm,eps", [(2, 0.6), (1, 1.5)], ids=["l2", "l1"])
@pytest.mark.parametrize("graph", UNSAFE)
def test_the_hosts_own_call_is_sound_for_finite_p(graph, norm, eps, method):
    model, x = (
        build_graph(graph),
        torch.rand(2, 2, 6, 6, generator=torch.Generator().manual_seed(3)),
    )
    given = host.BoundedTensor(x, hosts_perturbation(norm, eps))
    bounds = [
        end.detach() for end in BoundedModule(model).compute_bounds(x=(given,), method=method)
    ]
    ball = PerturbationLpBox(norm, eps, clip=None)
    settings = AttackSettings(steps=20, step_size=0.3)
    assert_sound(model, x, ball, bounds, tolerance=2e-5, settings=settings)
    assert (bounds[1] - bounds[0]).min() > 1e-3


@pytest.mark.parametrize("norm,eps", HOST_NORMS.values(), ids=HOST_NORMS)
def test_return_A_passes_through(norm, eps):
    """The host's dictionary of linear bounds, which give the returned bounds when written out."""
    model, x = network(), images()
    bounded = BoundedModule(model, x)
    output, inputs = bounded.output_name[0], bounded.input_name[0]
    lower, upper, A = bounded.compute_bounds(
        x=(host.BoundedTensor(x, hosts_perturbation(norm, eps)),),
        method="CROWN",
        return_A=True,
        needed_A_dict={output: [inputs]},
    )
    result = A[output][inputs]
    lA, uA = (result[key].flatten(2) for key in ("lA", "uA"))
    dual = 1 if norm == math.inf else 2
    for A_end, bias, bound, sign in ((lA, "lbias", lower, -1), (uA, "ubias", upper, 1)):
        centre = A_end.matmul(x.flatten(1).unsqueeze(-1)).squeeze(-1) + result[bias]
        expected = centre + sign * eps * A_end.norm(dual, -1)
        assert torch.allclose(bound, expected, atol=1e-4)


# --- types and failures ---------------------------------------------------------------------------


def test_the_default_type_is_restored(monkeypatch):
    model = nn.Sequential(
        network(), nn.Sigmoid()
    ).double()  # none that our engine would bound instead
    bounded, seen = BoundedModule(model, perturbations=SETS), []

    def failing(*_, **__):
        seen.append(torch.get_default_dtype())
        raise RuntimeError("the host fails")

    bounded.compute_bounds(images().double(), method="CROWN")
    assert torch.get_default_dtype() == torch.float32
    monkeypatch.setattr(host.HostModule, "compute_bounds", failing)
    with pytest.raises(UnsupportedModelError, match="the host fails.*try another method"):
        bounded.compute_bounds(images().double(), method="CROWN")
    assert torch.get_default_dtype() == torch.float32 and set(seen) == {torch.float64}


@pytest.mark.parametrize("method", ["IBP", "CROWN-IBP", "CROWN", "CROWN-Optimized"])
def test_float64_reaches_the_tables_of_curved_activations(method):
    """The host tabulates relaxations of Tanh when it traces, in torch's default type."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    x = torch.rand(2, 3, dtype=torch.float64)
    bounded = BoundedModule(model, perturbations=[PerturbationLinf(0.1), PerturbationL2Box(0.1)])
    lower, upper = bounded.compute_bounds(
        x, C=torch.eye(2, dtype=torch.float64).expand(2, -1, -1), method=method
    )
    assert lower.dtype == torch.float64 and torch.get_default_dtype() == torch.float32
    assert (lower <= model(x)).all() and (model(x) <= upper).all()


def test_a_method_that_failed_half_way_leaves_nothing_behind():
    """The older host cannot optimise pooling slopes, and its remains broke plain CROWN later."""
    model = nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=(1, 0), stride=(2, 1)),
        nn.BatchNorm2d(6),
        nn.LeakyReLU(0.1),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(36, 5),
    ).eval()
    x = torch.rand(3, 2, 7, 8)
    bounded = BoundedModule(
        model, perturbations=[PerturbationL2Box(0.3)], bound_opts={"conv_mode": "matrix"}
    )
    crown, _ = bounded.compute_bounds(x, method="CROWN")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optimised, upper = bounded.compute_bounds(x, method="CROWN-Optimized")
    assert_sound(model, x, bounded.perturbations[0], (optimised, upper), tolerance=2e-5)
    again, _ = bounded.compute_bounds(x, method="CROWN")
    assert torch.allclose(crown, again, atol=1e-6)
