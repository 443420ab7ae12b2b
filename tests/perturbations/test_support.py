"""Support functions of l_1 and l_2 balls cut with a box, against three references.

The references are solvers, feasible points and finite differences.
"""

import math

import pytest
import torch

from lirpa_multinorm.perturbations import support
from lirpa_multinorm.perturbations.support import support_box, support_l1_box, support_l2_box

FUNCTIONS = {"l1": (support_l1_box, 1), "l2": (support_l2_box, 2)}
both = pytest.mark.parametrize("function,norm", FUNCTIONS.values(), ids=FUNCTIONS)


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


# Each entry draws (a, lo, hi, eps) for 12 rows of 5 coordinates.
def _plain(draw):
    return draw(12, 5) * 2 - 1, -draw(12, 5), draw(12, 5), draw(12) * 1.5


def _zero_row(draw):
    a, lo, hi, eps = _plain(draw)
    a[::2] = 0
    return a, lo, hi, eps


def _stuck_coordinates(draw):
    a, lo, hi, eps = _plain(draw)
    lo[:, :2], hi[:, 1:3] = 0, 0  # coordinate 1 cannot move at all, 0 and 2 one way only
    return a, lo, hi, eps


def _box_inside_ball(draw):
    a, lo, hi, _ = _plain(draw)
    return a, lo, hi, torch.full((12,), 6.0).to(a)


def _box_corner_on_ball(draw):
    a, lo, hi, _ = _plain(draw)
    return a, lo, hi, torch.where(a >= 0, hi, lo).norm(dim=1)


def _ball_inside_box(draw):
    a, lo, hi, _ = _plain(draw)
    return a, lo - 1, hi + 1, draw(12)


def _no_radius(draw):
    a, lo, hi, _ = _plain(draw)
    return a, lo, hi, torch.zeros(12).to(a)


def _large_functionals(draw):
    a, lo, hi, eps = _plain(draw)
    return a * 1e6, lo, hi, eps


def _small_functionals(draw):
    a, lo, hi, eps = _plain(draw)
    return a * 1e-6, lo, hi, eps


def _large_sets(draw):
    a, lo, hi, eps = _plain(draw)
    return a, lo * 1e6, hi * 1e6, eps * 1e6


def _small_sets(draw):
    a, lo, hi, eps = _plain(draw)
    return a, lo * 1e-6, hi * 1e-6, eps * 1e-6


def _mixed_sizes(draw):
    a, lo, hi, eps = _plain(draw)
    return a * 10 ** (draw(12, 5) * 6 - 3), lo, hi, eps


def _equal_coordinates(draw):
    a, lo, hi, eps = _plain(draw)
    return a.sign(), lo, hi, eps


CASES = {
    function.__name__.strip("_"): function
    for function in (
        _plain,
        _zero_row,
        _stuck_coordinates,
        _box_inside_ball,
        _box_corner_on_ball,
        _ball_inside_box,
        _no_radius,
        _large_functionals,
        _small_functionals,
        _large_sets,
        _small_sets,
        _mixed_sizes,
        _equal_coordinates,
    )
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def drawn(case, dtype=torch.float64):
    generator = torch.Generator().manual_seed(5)
    return tuple(
        t.to(dtype)
        for t in case(lambda *shape: torch.rand(*shape, generator=generator, dtype=torch.float64))
    )


def size_of(a, hi, lo, eps):
    """What a value is compared with: the bound without the other half of the set, never 0."""
    return (eps * a.norm(dim=-1)).clamp(min=1e-12) + (a.abs() * torch.maximum(hi, -lo)).sum(-1)


def solved_l2(a, lo, hi, eps):
    optimize = pytest.importorskip("scipy.optimize")
    # In units of its own size each problem is easy for the solver, whatever the scale of the case.
    unit_a, unit_d = max(float(a.abs().max()), 1e-30), max(float(hi.max()), -float(lo.min()), 1e-30)
    a, lo, hi, eps = (
        a.numpy() / unit_a,
        lo.numpy() / unit_d,
        hi.numpy() / unit_d,
        float(eps) / unit_d,
    )
    ball = {"type": "ineq", "fun": lambda d: eps * eps - d @ d, "jac": lambda d: -2 * d}
    found = optimize.minimize(
        lambda d: -(a @ d),
        a * 0,
        jac=lambda d: -a,
        bounds=list(zip(lo, hi)),
        constraints=[ball],
        method="SLSQP",
        options={"ftol": 1e-12, "maxiter": 300},
    )
    return -float(found.fun) * unit_a * unit_d


def solved_l1(a, lo, hi, eps):
    """A linear program in the positive and the negative part of every offset."""
    optimize = pytest.importorskip("scipy.optimize")
    unit = max(float(hi.max()), -float(lo.min()), 1e-30)
    unit_a = max(float(a.abs().max()), 1e-30)
    a, lo, hi = a.numpy() / unit_a, lo.numpy() / unit, hi.numpy() / unit
    bounds = [(0, end) for end in hi] + [(0, -end) for end in lo]
    found = optimize.linprog(
        [*-a, *a], A_ub=[[1.0] * 2 * len(a)], b_ub=[float(eps) / unit], bounds=bounds
    )
    return -float(found.fun) * unit * unit_a


@pytest.mark.parametrize(
    "function,solved", [(support_l1_box, solved_l1), (support_l2_box, solved_l2)], ids=["l1", "l2"]
)
@every_case
def test_equals_a_solver(case, function, solved):
    a, lo, hi, eps = drawn(case)
    expected = torch.tensor([solved(*row) for row in zip(a, lo, hi, eps)], dtype=torch.float64)
    excess = (function(a, lo, hi, eps) - expected) / size_of(a, hi, lo, eps)
    assert excess.max() < 1e-6  # tight
    assert excess.min() > -1e-6  # sound, up to the solver's own tolerance


def feasible_points(a, lo, hi, eps, norm, count=200):
    """Points of the set.

    clip(s a) for many s, cut back into the ball (the box holds 0, so it keeps them).
    """
    scales = torch.logspace(-8, 8, count, dtype=torch.float64).view(-1, 1, 1)
    unit = eps / a.norm(dim=-1).clamp(min=1e-30)
    points = torch.minimum(torch.maximum(a * unit.unsqueeze(-1) * scales, lo), hi)
    length = torch.linalg.vector_norm(points, norm, dim=-1, keepdim=True)
    return points * (eps.unsqueeze(-1) / length.clamp(min=1e-300)).clamp(max=1.0)


def filled_points(a, lo, hi, eps):
    """The knapsack's own answer, coordinate by coordinate in plain Python."""
    rows = []
    for a_row, lo_row, hi_row, budget in zip(a.tolist(), lo.tolist(), hi.tolist(), eps.tolist()):
        d = [0.0] * len(a_row)
        for i in sorted(range(len(a_row)), key=lambda i: -abs(a_row[i])):
            room = min(budget, hi_row[i] if a_row[i] >= 0 else -lo_row[i])
            d[i], budget = math.copysign(room, a_row[i]), budget - room
        rows.append(d)
    return torch.tensor([rows], dtype=torch.float64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@both
@every_case
def test_no_feasible_point_beats_it(case, function, norm, dtype):
    a, lo, hi, eps = drawn(case, dtype)
    exact = tuple(t.double() for t in (a, lo, hi, eps))
    points = feasible_points(*exact, norm)
    if norm == 1:
        points = torch.cat([points, filled_points(*exact)])
    best = (exact[0] * points).sum(-1).amax(0)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    assert (function(a, lo, hi, eps).double() >= best - tolerance * best.abs()).all()


@pytest.mark.parametrize(
    "dtype,tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-12)], ids=["float32", "float64"]
)
@both
@every_case
def test_never_more_than_ball_or_box(case, function, norm, dtype, tolerance):
    a, lo, hi, eps = drawn(case, dtype)
    value = function(a, lo, hi, eps)
    ball = eps * torch.linalg.vector_norm(a, 2 if norm == 2 else math.inf, dim=-1)
    box = support_box(a, lo, hi)
    tiny = 1e-12  # absolute, for rows whose value is 0
    assert (value <= torch.minimum(ball, box) * (1 + tolerance) + tiny).all()
    assert (value >= -tiny).all()


@pytest.mark.parametrize("spread", [1.5, 4.0], ids=["narrow", "wide"])
@pytest.mark.parametrize("share", [0.3, 0.9, 0.999, 1.0], ids=str)
def test_l2_search_ends_on_geometric_boxes(spread, share):
    """Boxes at which one coordinate after the other meets its end.

    The worst case of the search for the scale.
    """
    powers = spread ** -torch.arange(40, dtype=torch.float64)
    a, cap = powers.sqrt(), powers
    eps = share * cap.norm()
    low, high = 0.0, 1e20
    for _ in range(200):  # plain bisection
        middle = (low + high) / 2
        low, high = (
            (middle, high) if torch.minimum(middle * a, cap).norm() <= eps else (low, middle)
        )
    best = (a * torch.minimum(low * a, cap)).sum().item()
    assert support_l2_box(a, -cap, cap, eps).item() == pytest.approx(best, rel=1e-9)


@pytest.mark.parametrize("tail", [0, 4, 10], ids=["even", "uneven", "heavy_tailed"])
@both
def test_float32_is_as_tight_as_float64(function, norm, tail):
    """Pixels in [0, 1] and linear forms of very different coordinates.

    Rounding costs no tightness either.
    """
    generator = torch.Generator().manual_seed(5)
    x = (torch.rand(6, 1, 27, generator=generator) * 3 - 1).clamp(0, 1)
    a = (
        torch.randn(6, 8, 27, generator=generator)
        * torch.rand(6, 8, 27, generator=generator) ** tail
    )
    for eps in (1e-3, 0.1, 0.5, 2.0, 10.0):
        radius = torch.full((6, 1), eps)
        value = function(a, -x, 1 - x, radius).double()
        exact = function(a.double(), -x.double(), (1 - x).double(), radius.double())
        assert ((value - exact).abs() <= 2e-6 * exact).all()


HAND = {
    # ||(3, 4)|| = 5 at radius 1, box far away.
    "l2_ball": (support_l2_box, (3.0, 4.0), (-9.0, -9.0), (9.0, 9.0), 1.0, 5.0),
    # The second coordinate is held at 0.6, which leaves sqrt(1 - 0.36) = 0.8 for the first: 2.4 +
    # 2.4.
    "l2_one_end": (support_l2_box, (3.0, 4.0), (-9.0, -9.0), (9.0, 0.6), 1.0, 4.8),
    # Negative coordinate, lower end -0.6.
    "l2_lower_end": (support_l2_box, (3.0, -4.0), (-9.0, -0.6), (9.0, 9.0), 1.0, 4.8),
    "l2_corner": (support_l2_box, (3.0, -4.0), (-0.5, -0.5), (0.5, 0.5), 1.0, 3.5),
    "l2_nothing": (support_l2_box, (0.0, 0.0), (-1.0, -1.0), (1.0, 1.0), 1.0, 0.0),
    "l1_ball": (support_l1_box, (3.0, 4.0), (-9.0, -9.0), (9.0, 9.0), 1.0, 4.0),
    # 0.6 of the budget at 4, the other 0.4 at 3.
    "l1_one_end": (support_l1_box, (3.0, 4.0), (-9.0, -9.0), (9.0, 0.6), 1.0, 3.6),
    "l1_lower_end": (support_l1_box, (3.0, -4.0), (-9.0, -0.6), (9.0, 9.0), 1.0, 3.6),
    "l1_corner": (support_l1_box, (3.0, -4.0), (-0.25, -0.25), (0.25, 0.25), 1.0, 1.75),
    "l1_nothing": (support_l1_box, (0.0, 0.0), (-1.0, -1.0), (1.0, 1.0), 1.0, 0.0),
    "box": (
        lambda a, lo, hi, _: support_box(a, lo, hi),
        (3.0, -4.0),
        (-1.0, -0.5),
        (2.0, 9.0),
        0.0,
        8.0,
    ),
}


@pytest.mark.parametrize("function,a,lo,hi,eps,expected", HAND.values(), ids=HAND)
def test_hand_numbers(function, a, lo, hi, eps, expected):
    value = function(tensor(*a), tensor(*lo), tensor(*hi), torch.tensor(eps, dtype=torch.float64))
    assert value.shape == ()
    assert value.item() == pytest.approx(expected, abs=1e-9)


@both
def test_broadcasts_rows_ends_and_radii(function, norm):
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(1, 4, 3, generator=generator)
    lo, hi = -torch.rand(5, 1, 3, generator=generator), torch.rand(5, 1, 3, generator=generator)
    eps = torch.rand(5, 1, generator=generator)
    value = function(a, lo, hi, eps)
    assert value.shape == (5, 4)
    expected = [
        [function(a[0, s], lo[b, 0], hi[b, 0], eps[b, 0]) for s in range(4)] for b in range(5)
    ]
    assert torch.allclose(value, torch.tensor(expected), atol=1e-6)


CHUNKED_SHAPES = {
    "rows": ((7, 4), (7, 4), (7,)),
    "shared_functionals": ((1, 3, 4), (7, 1, 4), (7, 1)),
    "shared_ends": ((7, 3, 4), (1, 1, 4), (7, 1)),
    "fewer_dimensions": ((4,), (7, 4), (7,)),
    "one_radius": ((7, 3, 4), (4,), ()),
}


@pytest.mark.parametrize("shapes", CHUNKED_SHAPES.values(), ids=CHUNKED_SHAPES)
@both
def test_chunks_change_nothing(function, norm, shapes, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    a_shape, end_shape, eps_shape = shapes
    a = torch.randn(a_shape, generator=generator, dtype=torch.float64)
    lo, hi = (s * torch.rand(end_shape, generator=generator, dtype=torch.float64) for s in (-1, 1))
    leaves = (a, lo, hi, torch.rand(eps_shape, generator=generator, dtype=torch.float64))

    def run():
        inputs = [t.clone().requires_grad_() for t in leaves]
        value = function(*inputs)
        weights = torch.arange(1.0, value.numel() + 1, dtype=torch.float64).view_as(value)
        return (
            value.detach(),
            torch.autograd.grad((value * weights).sum(), inputs),
            function(*leaves),
        )

    whole, whole_gradients, _ = run()
    calls = []
    original = getattr(support, f"_l{norm}_box_dual")
    monkeypatch.setattr(support, "_CHUNK", 24)
    monkeypatch.setattr(
        support, f"_l{norm}_box_dual", lambda *inputs: calls.append(1) or original(*inputs)
    )
    parts, parts_gradients, untracked = run()
    assert len(calls) > 2, "the test means to reach the chunked path"
    assert torch.allclose(parts, whole, atol=1e-12)
    assert torch.allclose(untracked, whole, atol=1e-12)
    for one, other in zip(parts_gradients, whole_gradients):
        assert torch.allclose(one, other, atol=1e-10)


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
