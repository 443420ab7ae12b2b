"""The estimate of Lipschitz constants in training, against exact norms and differences."""

import copy

import pytest
import torch

from lirpa_multinorm import BoundedModule, build_loss
from lirpa_multinorm.verifier.lipschitz.constants import lipschitz_bounds
from lirpa_multinorm.verifier.lipschitz.estimate import LipschitzEstimate
from lirpa_multinorm.verifier.relu_network import ReluNetwork
from tests.checks import assert_differentiable, assert_same
from tests.losses.lipschitz_cases import L1, L2, images, network, networks


def exact_falls(model, x, norm=2):
    """(K, K) by exact norms, as the certifying method has them."""
    relus = ReluNetwork(model, x)
    constants = [1.0, *lipschitz_bounds(relus, x, norm).activations]
    relus = relus.paired()
    falls = torch.zeros(3, 3, dtype=x.dtype)
    eye = torch.eye(3, dtype=x.dtype)
    v = (eye.unsqueeze(1) - eye.unsqueeze(0)).flatten(0, 1)
    _, at_input, at_relus = relus.maps(len(v), x).pull(len(relus.shapes) - 1, v)
    for i, (part, constant) in enumerate(zip([at_input, *at_relus], constants)):
        if part is not None:
            dual = float("inf") if norm == 1 and i == 0 else 2
            falls += constant * torch.linalg.vector_norm(part.flatten(1), dual, dim=1).view(3, 3)
    return falls


@networks
def test_constants_converge_to_the_exact_norms_from_below(name):
    model, (x, _) = network(name), images()
    estimate = LipschitzEstimate(model, x[:1])
    for _ in range(10):
        result = estimate.class_falls(norms=(2, 1))
    for falls, norm in zip(result, (2, 1)):
        exact = exact_falls(model, x, norm)
        assert bool((falls <= exact * (1 + 1e-9)).all())
        assert torch.allclose(falls, exact, rtol=1e-3)
        assert torch.equal(falls.diagonal(), torch.zeros(3, dtype=x.dtype))
    assert bool((result[1] <= result[0]).all())


@networks
@pytest.mark.parametrize("norm", [2, 1])
def test_gradients_are_those_of_the_last_step(name, norm):
    """``sigma = u . (A v)``, or the length of the longest column, by differences in each weight.

    From the same vectors the best one of their span moves, but that does not count: the envelope
    theorem.
    """
    model, (x, _), vectors = network(name), images(), {}
    estimate = LipschitzEstimate(model, x[:1], vectors)
    for _ in range(5):
        estimate.class_falls(norms=(norm,))
    converged = {pair: vector.clone() for pair, vector in vectors.items()}

    def value():
        vectors.update({pair: vector.clone() for pair, vector in converged.items()})
        [falls] = estimate.class_falls(norms=(norm,))
        return falls[0, 2] + falls[1, 2]

    for weight in model.parameters():
        if weight.ndim > 1:
            assert_differentiable(value, weight, 1, 1e-6, atol=1e-6)


def test_within_one_per_cent_of_the_exact_norms_while_weights_move():
    torch.manual_seed(0)
    model, (x, y) = network("strided", torch.float32).train(), images(32, torch.float32)
    bounded = BoundedModule(model, perturbations=[L2, L1])
    loss = build_loss("joint", [L2, L1], region_2="lipschitz", region_1="lipschitz")
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(150):
        optimizer.zero_grad()
        loss(bounded, x, y).value.backward()
        optimizer.step()
    for result, norm in zip(bounded.class_falls(x, (2, 1)), (2, 1)):
        result, exact = result.detach(), exact_falls(copy.deepcopy(model).eval(), x, norm)
        assert float((result / exact).fill_diagonal_(1).min()) > 0.99 and bool(
            (result <= exact * 1.0001).all()
        )


def test_the_vectors_are_kept_and_restored():
    model, (x, _) = network("strided"), images()
    first, second = BoundedModule(model), BoundedModule(copy.deepcopy(model))
    for _ in range(3):
        first.class_falls(x, (2, 1))
    second.lipschitz_vectors.update(
        {pair: vector.clone() for pair, vector in first.lipschitz_vectors.items()}
    )
    for _ in range(3):
        assert_same(first.class_falls(x, (1, 2)), second.class_falls(x, (1, 2)), 0, 0)
    assert not torch.equal(BoundedModule(model).class_falls(x)[0], first.class_falls(x)[0])
