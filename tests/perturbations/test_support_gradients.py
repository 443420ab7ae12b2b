"""Support functions of large arrays, row by row, and their gradients."""

import pytest
import torch

from lirpa_multinorm.perturbations import support
from tests.checks import assert_same
from tests.perturbations.support_cases import both

#: With more elements than are worked on at once.
CHUNKED_SHAPES = {
    "rows": ((7, 120_000), (7, 120_000), (7,)),
    "shared_functionals": ((1, 3, 40_000), (7, 1, 40_000), (7, 1)),
    "shared_ends": ((7, 3, 40_000), (1, 1, 40_000), (7, 1)),
    "fewer_dimensions": ((120_000,), (7, 120_000), (7,)),
    "one_radius": ((7, 3, 40_000), (40_000,), ()),
}


@pytest.mark.parametrize("shapes", CHUNKED_SHAPES.values(), ids=CHUNKED_SHAPES)
@both
def test_chunks_change_nothing(function, norm, shapes, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    a_shape, end_shape, eps_shape = shapes
    a = torch.randn(a_shape, generator=generator, dtype=torch.float64)
    lo, hi = (s * torch.rand(end_shape, generator=generator, dtype=torch.float64) for s in (-1, 1))
    eps = 100 * torch.rand(eps_shape, generator=generator, dtype=torch.float64)
    leaves = (a, lo, hi, eps)

    def row_by_row(*inputs):
        size = torch.broadcast_shapes(a_shape, end_shape)
        *forms, radius = [t.expand(size) for t in inputs[:3]] + [inputs[3].expand(size[:-1])]
        return torch.stack([function(*row) for row in zip(*forms, radius)])

    def run(bound):
        inputs = [t.clone().requires_grad_() for t in leaves]
        value = bound(*inputs)
        weights = torch.arange(1.0, value.numel() + 1, dtype=torch.float64).view_as(value)
        return value.detach(), torch.autograd.grad((value * weights).sum(), inputs)

    whole, whole_gradients = run(row_by_row)
    calls, original = [], support.checkpoint
    monkeypatch.setattr(
        support, "checkpoint", lambda *args, **kw: calls.append(1) or original(*args, **kw)
    )
    parts, parts_gradients = run(function)
    assert len(calls) > 2, "the test means to reach the chunked path"
    assert_same([parts, function(*leaves)], [whole, whole], atol=1e-12)
    assert_same(parts_gradients, whole_gradients)  # as exact as the search for the scale


@pytest.mark.parametrize("eps", [0.3, 0.9, 9.0], ids=["ball_matters", "both_matter", "box_only"])
@both
def test_gradients_equal_finite_differences(function, norm, eps):
    generator = torch.Generator().manual_seed(1)
    a = torch.randn(3, 5, generator=generator, dtype=torch.float64)
    lo, hi = (
        s * (0.1 + torch.rand(3, 5, generator=generator, dtype=torch.float64)) for s in (-1, 1)
    )
    radius = eps * torch.tensor([1.0, 1.1, 1.2], dtype=torch.float64)
    inputs = [t.requires_grad_() for t in (a, lo, hi, radius)]
    assert torch.autograd.gradcheck(function, inputs, eps=1e-6, atol=1e-4)


@both
def test_gradient_is_a_feasible_maximiser_where_coordinates_are_equal(function, norm):
    """Equal coordinates, as pooling makes them, have many maximisers.

    The gradient must be one of the set's points.
    """
    a = torch.full((1, 6), 2.0, dtype=torch.float64, requires_grad=True)
    cap = torch.full((1, 6), 0.4, dtype=torch.float64)
    value = function(a, -cap, cap, torch.ones(1, dtype=torch.float64))
    (d,) = torch.autograd.grad(value.sum(), a)
    assert torch.linalg.vector_norm(d, norm) <= 1 + 1e-9
    assert (d.abs() <= cap + 1e-9).all()
    assert (a * d).sum().item() == pytest.approx(value.item())


@both
def test_gradients_are_finite_at_the_edges(function, norm):
    """Zero linear forms, coordinates that cannot move and radius 0: no NaN reaches the weights."""
    a = torch.tensor([[0.0, 0.0, 0.0], [1.0, -2.0, 0.0], [1.0, 1.0, 1.0]], requires_grad=True)
    lo = torch.tensor([[0.0, -1.0, -1.0], [0.0, 0.0, 0.0], [-1.0, -1.0, -1.0]])
    hi = torch.tensor([[0.0, 1.0, 1.0], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    eps = torch.tensor([0.5, 0.5, 0.0], requires_grad=True)
    value = function(a, lo, hi, eps)
    assert torch.allclose(value, torch.zeros(3), atol=1e-12)
    for gradient in torch.autograd.grad(value.sum(), (a, eps)):
        assert torch.isfinite(gradient).all()
