"""Linear forms and sets of every kind, for the tests of support functions."""

import pytest
import torch

from lirpa_multinorm.perturbations.support import support_l1_box, support_l2_box

FUNCTIONS = {"l1": (support_l1_box, 1), "l2": (support_l2_box, 2)}


both = pytest.mark.parametrize("function,norm", FUNCTIONS.values(), ids=FUNCTIONS)


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
