"""Radius and kappa over time."""

import math

import pytest

from lirpa_multinorm.errors import InvalidArgumentError
from lirpa_multinorm.training import Schedule, smooth_ramp


def by_the_papers_formula(k, init, end, eps):
    """SABR's "exp" schedule.

    A (k - init)^4 over the first quarter, then linear to eps with the same slope.
    """
    mid = init + 0.25 * (end - init)
    t = (mid - init) ** 3
    A = eps / (4 * (end - mid) * t + (mid - init) * t)
    if k <= init:
        return 0.0
    if k < mid:
        return A * (k - init) ** 4
    return min(eps, A * (mid - init) ** 4 + 4 * A * t * (k - mid))


@pytest.mark.parametrize("position, value", [(-1, 0), (0, 0), (1, 1), (2, 1)])
def test_ends_and_beyond(position, value):
    assert smooth_ramp(position) == pytest.approx(value, abs=1e-15)


def test_the_ramp_is_the_papers_schedule():
    for k in range(121):
        result = 0.3 * smooth_ramp((k - 20) / 80)
        assert result == pytest.approx(by_the_papers_formula(k, 20, 100, 0.3), rel=1e-12, abs=1e-15)


def test_the_ramp_rises_without_jumps():
    values = [smooth_ramp(i / 10000) for i in range(10001)]
    steps = [after - before for before, after in zip(values, values[1:])]
    assert min(steps) > 0 and max(steps) < 2e-4


def test_slopes_match_where_the_line_starts():
    h = 1e-6
    left = (smooth_ramp(0.25) - smooth_ramp(0.25 - h)) / h
    right = (smooth_ramp(0.25 + h) - smooth_ramp(0.25)) / h
    assert left == pytest.approx(right, rel=1e-4)
    assert (smooth_ramp(0.9) - smooth_ramp(0.8)) / 0.1 == pytest.approx(right, rel=1e-4)


def test_natural_then_annealed_then_full():
    schedule = Schedule(natural_epochs=2, anneal_epochs=4)
    assert [schedule.eps_scale(t) for t in (0, 1, 1.999, 2)] == [0, 0, 0, 0]
    assert schedule.eps_scale(3) == pytest.approx(smooth_ramp(0.25))
    assert [schedule.eps_scale(t) for t in (6, 7, 100)] == pytest.approx([1, 1, 1])
    assert [schedule.kappa(t) for t in (0, 1.999, 2, 3, 6, 100)] == [1, 1, 0, 0, 0, 0]


def test_kappa_moves_linearly_while_annealing():
    schedule = Schedule(natural_epochs=1, anneal_epochs=10, kappa_start=0.8, kappa_end=0.3)
    assert [schedule.kappa(t) for t in (0.5, 1, 6, 11, 20)] == pytest.approx(
        [1, 0.8, 0.55, 0.3, 0.3]
    )


@pytest.mark.parametrize(
    "natural, times", [(0, {0: 1.0}), (1, {0: 0.0, 0.99: 0.0, 1: 1.0})], ids=["at_once", "after"]
)
def test_no_annealing_jumps_to_the_full_radius(natural, times):
    schedule = Schedule(natural_epochs=natural, anneal_epochs=0, kappa_start=0.5, kappa_end=0.25)
    assert {time: schedule.eps_scale(time) for time in times} == times
    assert schedule.kappa(natural) == 0.25


@pytest.mark.parametrize("name", ["natural_epochs", "anneal_epochs"])
@pytest.mark.parametrize(
    "value",
    [math.inf, True, None, "5", "half", "%", "-5%", "101%", "nan%", "5%%", [1], 1j],
    ids=str,
)
def test_lengths_are_finite_numbers_or_shares(name, value):
    with pytest.raises(InvalidArgumentError, match=f"^{name}="):
        Schedule(**{name: value})


def test_shares_need_the_length_of_the_run():
    schedule = Schedule("25%", "50%", kappa_start=0.5)
    for ask in (schedule.eps_scale, schedule.kappa):
        with pytest.raises(InvalidArgumentError, match="in_epochs"):
            ask(1.0)
    result = schedule.in_epochs(8)
    assert (result.eps_scale(2), result.eps_scale(6), result.full_at()) == (0, 1, 6)
    assert (result.kappa(2), result.kappa(6)) == (0.5, 0)


BAD = {
    "negative_natural": {"natural_epochs": -1},
    "negative_anneal": {"anneal_epochs": -0.5},
    "nan_natural": {"natural_epochs": math.nan},
    "nan_anneal": {"anneal_epochs": math.nan},
    "kappa_start": {"kappa_start": 1.5},
    "kappa_end": {"kappa_end": -0.1},
    "kappa_nan": {"kappa_end": math.nan},
    "kappa_bool": {"kappa_end": True},
}


@pytest.mark.parametrize("arguments", BAD.values(), ids=BAD)
def test_unusable_settings_are_refused(arguments):
    ((name, value),) = arguments.items()
    with pytest.raises(InvalidArgumentError, match=f"{name}={value}"):
        Schedule(**arguments)


def test_the_radius_is_full_when_the_shares_of_a_run_say_so():
    """Shares add up to a little less than they say in floating point."""
    for epochs in range(3, 101):
        for natural in range(0, 100, 5):
            for anneal in range(5, 101 - natural, 5):
                schedule = Schedule(f"{natural}%", f"{anneal}%").in_epochs(epochs)
                full = (natural + anneal) * epochs / 100
                assert schedule.eps_scale(full) == 1, (epochs, natural, anneal)
                assert schedule.eps_scale(full - 0.01) < 1


def test_emma_rises_linearly_from_a_tenth_of_the_radius():
    """eps (0.1 + (m - 0.1) min(2 t / T, 1)) of Hu et al. 2023, with m = 1.5."""
    schedule = Schedule(0, "50%", ramp="linear", radius_start=0.1 / 1.5).in_epochs(40)
    for epoch in (0, 1, 7.5, 19, 20, 33, 40):
        wanted = 0.1 + (1.5 - 0.1) * min(2 * epoch / 40, 1)
        assert 1.5 * schedule.eps_scale(epoch) == pytest.approx(wanted)


def test_no_radius_in_natural_training_whatever_it_starts_from():
    schedule = Schedule(2, 4, radius_start=0.5)
    assert schedule.eps_scale(1.9) == 0 and schedule.eps_scale(2) == 0.5
    assert schedule.eps_scale(6) == 1


def test_unknown_ramps_are_named():
    with pytest.raises(InvalidArgumentError, match="ramp='steep'.*smooth or linear"):
        Schedule(ramp="steep")
    with pytest.raises(InvalidArgumentError, match="radius_start"):
        Schedule(radius_start=1.5)
