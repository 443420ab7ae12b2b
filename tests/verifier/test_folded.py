"""Folding leaves out stable neurons; bounds and values stay what they are."""

import pytest
import torch
from torch import nn

from lirpa_multinorm import BoundedModule, PerturbationL2Box
from lirpa_multinorm.perturbations import Region
from lirpa_multinorm.verifier import folding as folded_module
from lirpa_multinorm.verifier.affine_matrices import AffineMatrices
from lirpa_multinorm.verifier.folding import SparseFactor, folded
from lirpa_multinorm.verifier.problem import IntermediateBounds, Problem
from lirpa_multinorm.verifier.relaxations.ascent import OptimizerSettings
from lirpa_multinorm.verifier.relaxations.sdp_crown import Relaxation, optimized_bounds
from tests.checks import assert_same
from tests.verifier.conv_networks import MODELS, SETS, prepared


def problems(name, row, depth=None):
    """One example's problem, on all hidden layers or the first, and the same folded."""
    problem = prepared(name).rows(torch.tensor([row]))
    hidden = problem.hidden if depth is None else problem.hidden.before(depth)
    problem = problem._replace(hidden=hidden)
    return problem, folded(AffineMatrices(problem.network), problem)


def switching(hidden):
    """How many neurons can switch."""
    return sum(int(((low < 0) & (high > 0)).sum()) for low, high in zip(hidden.lower, hidden.upper))


@pytest.mark.parametrize("row", range(0, 2 * len(SETS), 2))
@pytest.mark.parametrize("name", MODELS)
def test_bounds_of_a_folded_network_are_those_of_the_network(name, row, monkeypatch):
    monkeypatch.setattr(folded_module, "WORTH", 1e9)  # also where it does not pay
    torch.manual_seed(row)
    for depth in (None, 2, 1):
        whole, small = problems(name, row, depth)
        layer = len(whole.hidden.lower)
        assert small is not whole
        assert sum(bound.shape[1] for bound in small.hidden.lower) == switching(whole.hidden)
        v = torch.randn(5, whole.network.shapes[layer].numel())
        rows = torch.zeros(5, dtype=torch.long)
        for settings in (OptimizerSettings(()), OptimizerSettings((4,), enough=1e9)):
            assert_same(
                *[optimized_bounds(problem.rows(rows), v, settings) for problem in (whole, small)],
                atol=2e-3 if settings.rounds else 1e-4,
            )


def test_a_folded_network_has_the_values_of_the_network():
    """At any point of the set, pulled back exactly.

    No relaxation is left if no neuron can switch.
    """
    network, regions, _ = prepared("skip")
    x = regions[0].center
    point = [value.flatten(1)[:1] for value in network.layers(x)[:-1]]
    only = IntermediateBounds(
        point, point, point, [torch.zeros(1)] * len(point)
    )  # every ReLU is decided, as at the point
    small = folded(
        AffineMatrices(network), Problem(network, [regions[0].rows(torch.tensor([0]))], only)
    )
    assert [bound.shape[1] for bound in small.hidden.lower] == [0, 0, 0]
    v = torch.eye(2)
    constants, at_input, _ = small.network.pull(3, v)
    value = constants + at_input @ x[0].flatten()
    assert_same(value, network.layers(x)[-1][0])
    lowest = optimized_bounds(
        small.rows(torch.zeros(2, dtype=torch.long)), v, OptimizerSettings(())
    )
    fall = 0.05 * at_input.abs().sum(1)  # of an affine function on the box of half-width 0.05
    assert (lowest < value).all() and (lowest >= value - fall - 1e-5).all()


def test_a_network_without_relus_is_folded_too():
    x, ptb = torch.rand(1, 6), PerturbationL2Box(0.3)
    bounded = BoundedModule(nn.Linear(6, 3).eval(), perturbations=[ptb])
    C = torch.tensor([[1.0, -1.0, 0.0], [1.0, 0.0, -1.0]])
    ((expected, _),) = bounded.compute_norm_bounds(x, C=C.unsqueeze(0), method="CROWN")
    assert torch.allclose(bounded.branch_and_bound(Region(x, ptb), C), expected[0], atol=1e-5)


def test_what_would_not_pay_is_left_as_it_is(monkeypatch):
    problem = prepared("strided").rows(torch.tensor([0]))
    matrices = AffineMatrices(problem.network)
    monkeypatch.setattr(folded_module, "WORTH", 0)
    assert folded(matrices, problem) is problem
    monkeypatch.setattr(folded_module, "WORTH", 1e9)
    assert folded(matrices, problem) is not problem
    sizes = matrices.sizes
    matrices.sizes = [1 << 33, *sizes[1:]]  # too many multiplications
    monkeypatch.setattr(matrices, "affordable", lambda layer: True)
    assert folded(matrices, problem) is problem


def test_splits_of_a_folded_network_are_those_of_the_network(monkeypatch):
    monkeypatch.setattr(folded_module, "WORTH", 1e9)
    whole, small = problems("dense", 2)
    signs = []
    for low, high in zip(whole.hidden.lower, whole.hidden.upper):
        sign = torch.randint(-1, 2, low.shape, generator=torch.Generator().manual_seed(0)).to(
            torch.int8
        )
        signs.append(torch.where((low < 0) & (high > 0), sign, 0))
    kept = [
        sign[:, ((low < 0) & (high > 0))[0]] for sign, low, high in zip(signs, *whole.hidden[:2])
    ]
    v = torch.tensor([[1.0, -1.0]])
    relaxations = Relaxation(whole, v, signs), Relaxation(small, v, kept)
    assert_same(*[each.value(each.first()) for each in relaxations], atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_products_with_sparse_matrices_and_their_gradients(dtype):
    torch.manual_seed(0)
    dense = torch.randn(7, 9, dtype=dtype) * (torch.rand(7, 9) < 0.2)
    v, weight = torch.randn(4, 7, dtype=dtype, requires_grad=True), torch.randn(4, 9, dtype=dtype)
    sparse = v @ SparseFactor(dense)
    (gradient,) = torch.autograd.grad((sparse * weight).sum(), v)
    assert_same([sparse, gradient], [v @ dense, weight @ dense.t()], atol=1e-6)
