"""Support functions of l_1 and l_2 balls cut with a box, against three references.

The references are solvers, feasible points and finite differences.
"""

import math

import pytest
import torch

from lirpa_multinorm.perturbations.support import support_box, support_l1_box, support_l2_box
from tests.perturbations.support_cases import both, drawn, every_case
from tests.slow_support import farthest


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


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
    result = optimize.minimize(
        lambda d: -(a @ d),
        a * 0,
        jac=lambda d: -a,
        bounds=list(zip(lo, hi)),
        constraints=[ball],
        method="SLSQP",
        options={"ftol": 1e-12, "maxiter": 300},
    )
    return -float(result.fun) * unit_a * unit_d


def solved_l1(a, lo, hi, eps):
    """A linear program in the positive and the negative part of every offset."""
    optimize = pytest.importorskip("scipy.optimize")
    unit = max(float(hi.max()), -float(lo.min()), 1e-30)
    unit_a = max(float(a.abs().max()), 1e-30)
    a, lo, hi = a.numpy() / unit_a, lo.numpy() / unit, hi.numpy() / unit
    bounds = [(0, end) for end in hi] + [(0, -end) for end in lo]
    result = optimize.linprog(
        [*-a, *a], A_ub=[[1.0] * 2 * len(a)], b_ub=[float(eps) / unit], bounds=bounds
    )
    return -float(result.fun) * unit * unit_a


@pytest.mark.parametrize(
    "function,solved", [(support_l1_box, solved_l1), (support_l2_box, solved_l2)], ids=["l1", "l2"]
)
@every_case
def test_equals_a_solver(case, function, solved):
    a, lo, hi, eps = drawn(case)
    expected = torch.tensor([solved(*row) for row in zip(a, lo, hi, eps)], dtype=torch.float64)
    slow = farthest(a, lo, hi, eps, 1 if function is support_l1_box else 2)
    for result in (function(a, lo, hi, eps), slow):
        excess = (result - expected) / size_of(a, hi, lo, eps)
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
