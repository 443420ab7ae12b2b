"""Student's and Wilson's intervals against tables and by how often they cover."""

from __future__ import annotations

import math
from statistics import stdev

import pytest
import torch

from lirpa_multinorm.errors import InvalidArgumentError
from lirpa_multinorm.utils.statistics import mean_interval, proportion_interval

# Two-sided quantiles of printed tables: degrees of freedom, then 90 %, 95 % and 99 %.
TABLE = {
    1: (6.3138, 12.7062, 63.6567),
    2: (2.9200, 4.3027, 9.9248),
    3: (2.3534, 3.1824, 5.8409),
    4: (2.1318, 2.7764, 4.6041),
    5: (2.0150, 2.5706, 4.0321),
    10: (1.8125, 2.2281, 3.1693),
    29: (1.6991, 2.0452, 2.7564),
    120: (1.6577, 1.9799, 2.6174),
}


@pytest.mark.parametrize("degrees", TABLE)
def test_quantiles_of_the_tables(degrees):
    values = [0.0] * degrees + [1.0]
    for confidence, want in zip((0.90, 0.95, 0.99), TABLE[degrees]):
        half = mean_interval(values, confidence)[1]
        assert half * math.sqrt(degrees + 1) / stdev(values) == pytest.approx(want, rel=3e-5)


def test_interval_by_hand():
    # Mean 82, deviations -1, 1, 0: s = 1, t(0.95, 2) = 4.3027, half-width t / sqrt 3.
    mean, half = mean_interval([81, 83, 82])
    assert mean == 82 and half == pytest.approx(4.3027 / math.sqrt(3), rel=1e-4)
    assert mean_interval([81, 83, 82], 0.9)[1] == pytest.approx(2.92 / math.sqrt(3), rel=1e-4)
    assert mean_interval([5.0, 5.0, 5.0]) == (5.0, 0.0)


def test_interval_covers_the_truth_as_often_as_it_says():
    runs = torch.randn(2000, 3, dtype=torch.float64) * 4 + 70
    covered = 0
    for values in runs.tolist():
        mean, half = mean_interval(values, 0.8)
        covered += abs(mean - 70) <= half
    assert covered / 2000 == pytest.approx(0.8, abs=4 * math.sqrt(0.16 / 2000))


def test_a_single_run_has_no_interval():
    assert mean_interval([7]) == (7, None)


@pytest.mark.parametrize(
    "values, confidence, message",
    [
        ([], 0.95, "values: none given"),
        ([1.0, math.nan], 0.95, "values: nan is not a finite number"),
        ([1.0, None], 0.95, "values: None"),
        ([1.0, True], 0.95, "values: True"),
        ([1.0, 2.0], 95, "confidence: 95. Pass a number between 0 and 1"),
        ([1.0, 2.0], 1.0, "confidence: 1.0"),
    ],
)
def test_bad_arguments(values, confidence, message):
    with pytest.raises(InvalidArgumentError, match=message):
        mean_interval(values, confidence)


# --- shares ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "successes, n, want",
    [
        (0, 10, (0.0, 0.277535)),
        (10, 10, (0.722465, 1.0)),
        (1, 1, (0.206543, 1.0)),
        (164, 200, (0.760880, 0.867060)),
        (0, 0, (0.0, 1.0)),
    ],
)
def test_wilson_by_hand(successes, n, want):
    """0 of n: z^2 / (n + z^2) = 3.841459 / 13.841459."""
    assert proportion_interval(successes, n) == pytest.approx(want, abs=1e-5)


def test_wilson_of_scipy():
    stats = pytest.importorskip("scipy.stats")
    for successes, n in ((0, 5), (3, 7), (500, 1000), (999, 1000)):
        for confidence in (0.5, 0.95, 0.999):
            want = stats.binomtest(successes, n).proportion_ci(confidence, "wilson")
            assert proportion_interval(successes, n, confidence) == pytest.approx(
                (want.low, want.high), abs=1e-9
            )


@pytest.mark.parametrize(
    "arguments, message",
    [((3, 2), "successes: 3 of n=2"), ((-1, 2), "successes: -1"), ((1, 2, 95), "confidence: 95")],
)
def test_what_is_no_share_is_refused(arguments, message):
    with pytest.raises(InvalidArgumentError, match=message):
        proportion_interval(*arguments)
