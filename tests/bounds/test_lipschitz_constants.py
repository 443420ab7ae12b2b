"""Lipschitz constants between norms, on sets: by hand, over all patterns, and by differences."""

import itertools
import math

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
from lirpa_multinorm.errors import InvalidArgumentError, NaNBoundError, UnsupportedModelError
from lirpa_multinorm.models import MinMax, cnn_small, liresnet
from lirpa_multinorm.verifier.lipschitz.mixed_norms import mixed_norm
from tests.networks import Skip, dense, with_parameters

NORMS = [1, 2, math.inf]
pairs = pytest.mark.parametrize("norms", list(itertools.product(NORMS, NORMS)), ids=str)
SETS = {
    "everywhere": None,
    "l_inf": PerturbationLinf(0.1),
    "l_2": PerturbationL2Box(0.2),
    "l_1": PerturbationL1Box(0.3),
    "a point": PerturbationLinf(0.0),
}
MODELS = {
    "mlp": (lambda: dense(4, 5, 4, 3), (4,)),
    "skips": (
        lambda: nn.Sequential(nn.Linear(4, 4), Skip(nn.ReLU(), nn.Linear(4, 4)), nn.Linear(4, 3)),
        (4,),
    ),
    "leaky": (lambda: nn.Sequential(nn.Linear(4, 6), nn.LeakyReLU(0.2), nn.Linear(6, 3)), (4,)),
    "MinMax": (lambda: nn.Sequential(nn.Linear(4, 6), MinMax(6), nn.Linear(6, 3)), (4,)),
    "cnn": (lambda: cnn_small((1, 6, 6), 3, width=2), (1, 6, 6)),
    "liresnet": (lambda: liresnet((1, 8, 8), 3, width=2, depth=1, hidden=[4]), (1, 8, 8)),
}


def points_of(perturbation, x, count=200):
    """Points of a set around inputs (B, ...), or anywhere near them: (count, B, ...)."""
    if perturbation is None:
        return x + 2 * torch.randn(count, *x.shape)
    lower, upper = perturbation.enclosing_box(x)
    steps = (lower + torch.rand(count, *x.shape) * (upper - lower)) - x
    flat = steps.flatten(2)
    length = torch.linalg.vector_norm(flat, perturbation.norm, dim=2).clamp(min=1e-12)
    share = (perturbation.eps / length).clamp(max=1).view(count, -1, *[1] * (x.ndim - 1))
    return x + steps * share


@pairs
@pytest.mark.parametrize(
    "where",
    [
        *("everywhere", "l_2", "a point"),
        pytest.param("l_inf", marks=pytest.mark.slow),
        pytest.param("l_1", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("name", MODELS)
def test_no_pair_of_points_is_further_apart(name, where, norms):
    torch.manual_seed(0)
    make, shape = MODELS[name]
    model, x, perturbation = make().eval(), torch.rand(2, *shape), SETS[where]
    C = margin_matrix(torch.tensor([0, 2]), 3)
    result = BoundedModule(model).lipschitz_constants(x, perturbation, *norms, C=C)
    first, second = points_of(perturbation, x), points_of(perturbation, x)
    with torch.no_grad():
        change = (model(first.flatten(0, 1)) - model(second.flatten(0, 1))).view(
            *first.shape[:2], 3
        )
    change = torch.linalg.vector_norm((C @ change.unsqueeze(3)).squeeze(3), norms[1], dim=2)
    moved = torch.linalg.vector_norm((first - second).flatten(2), norms[0], dim=2)
    assert result.shape == (2,) and result.dtype == torch.float64
    assert bool((change <= result * moved + 1e-5).all())


def jacobians(layers, slopes):
    """The Jacobian of Linear layers with ReLUs between them for each pattern of slopes."""
    for pattern in itertools.product(*slopes):
        matrix, pattern = layers[0].weight.detach().double(), list(pattern)
        for layer in layers[1:]:
            diagonal = torch.tensor([pattern.pop(0) for _ in range(len(matrix))]).double()
            matrix = layer.weight.detach().double() @ (diagonal.unsqueeze(1) * matrix)
        yield matrix


@pairs
def test_the_slow_maximum_over_all_patterns(norms):
    torch.manual_seed(1)
    model, x = dense(3, 4, 3, 2).eval(), torch.rand(1, 3)
    layers = [layer for layer in model if isinstance(layer, nn.Linear)]
    bounded, ball = BoundedModule(model), PerturbationLinf(0.05, clip=None)
    exact = norms[0] == 1 or norms[1] == math.inf or norms == (2, 2)
    for perturbation in (None, ball):
        hidden = 7 * [(0, 1)]
        if perturbation is not None:
            values = points_of(ball, x, 2000)[:, 0]
            first = layers[0](values)
            both = torch.cat([first, layers[1](first.relu())], 1)
            hidden = [(int(low > 0), int(high > 0)) for low, high in zip(*both.aminmax(dim=0))]
            hidden = [sorted(set(slopes)) for slopes in hidden]
        largest = max(mixed_norm(matrix, None, *norms) for matrix in jacobians(layers, hidden))
        [result] = bounded.lipschitz_constants(x, perturbation, *norms).tolist()
        assert result >= largest * (1 - 1e-9) or not exact
        assert result <= 3 * largest


def test_two_neurons_by_hand():
    """f = 2 ReLU(x) + 3 ReLU(-y - 1): 2 near the origin, and the root of 13 everywhere."""
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
    with_parameters(model, [[1.0, 0.0], [0.0, -1.0]], [0.0, -1.0], [[2.0, 3.0]], 0.0)
    bounded, x = BoundedModule(model), torch.zeros(1, 2)
    near = bounded.lipschitz_constants(x, PerturbationLinf(0.5, clip=None))
    far = bounded.lipschitz_constants(x)
    assert float(near) == pytest.approx(2, rel=1e-5)
    assert float(far) == pytest.approx(13**0.5, rel=1e-5)
    assert float(bounded.lipschitz_constants(x, None, math.inf, 1)) == pytest.approx(5, rel=1e-5)
    assert float(bounded.lipschitz_constants(x, None, 1, 1)) == pytest.approx(3, rel=1e-5)


@pairs
def test_where_all_neurons_are_stable_it_is_the_jacobian(norms):
    model, x = dense(4, 5, 3).eval(), torch.rand(3, 4)
    result = BoundedModule(model).lipschitz_constants(x, PerturbationLinf(1e-6), *norms)
    for example, constant in zip(x, result):
        jacobian = torch.autograd.functional.jacobian(model, example.unsqueeze(0)).view(3, 4)
        expected = mixed_norm(jacobian.double(), None, *norms)
        assert float(constant) == pytest.approx(expected, rel=1e-4)


def test_a_batch_is_its_rows():
    model, x = dense(4, 5, 4, 3).eval(), torch.rand(3, 4)
    bounded, ball = BoundedModule(model), PerturbationL2Box(0.3)
    together = bounded.lipschitz_constants(x, ball)
    alone = torch.cat([bounded.lipschitz_constants(row.unsqueeze(0), ball) for row in x])
    torch.testing.assert_close(together, alone, rtol=1e-6, atol=0)
    assert bool((together <= bounded.lipschitz_constants(x) * (1 + 1e-9)).all())


@pytest.mark.parametrize("seed", range(5))
@pairs
def test_norms_of_matrices_are_never_too_small(norms, seed):
    generator = torch.Generator().manual_seed(seed)
    center = torch.randn(3, 4, generator=generator).double()
    radius = torch.rand(3, 4, generator=generator).double()
    for around in (None, radius):
        bound = mixed_norm(center, around, *norms)
        matrices = center + (0 if around is None else around) * (
            2 * torch.randint(0, 2, (500, 3, 4), generator=generator) - 1
        )
        x = torch.randn(4, 300, generator=generator).double()
        x = torch.cat([x, x.sign(), torch.eye(4).double()], 1)
        x = x / torch.linalg.vector_norm(x, norms[0], dim=0)
        assert float(torch.linalg.vector_norm(matrices @ x, norms[1], dim=1).max()) <= bound


def test_bad_calls_are_named():
    bounded, x = BoundedModule(dense(4, 3).eval()), torch.rand(1, 4)
    with pytest.raises(InvalidArgumentError, match="norm_in=3 must be 1, 2 or inf"):
        bounded.lipschitz_constants(x, norm_in=3)
    with pytest.raises(InvalidArgumentError, match="norm_out='two' must be"):
        bounded.lipschitz_constants(x, norm_out="two")
    curved = BoundedModule(nn.Sequential(nn.Linear(4, 3), nn.Tanh()).eval())
    with pytest.raises(UnsupportedModelError, match="tanh at '1'"):
        curved.lipschitz_constants(x)
    huge = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 3)).double().eval()
    for layer in huge[::2]:
        nn.init.constant_(layer.weight, 1e200)
    with pytest.raises(NaNBoundError, match="infinite or NaN"):
        BoundedModule(huge).lipschitz_constants(x.double())
