"""Means over repeated runs, with their uncertainty."""

from __future__ import annotations

import math
from statistics import fmean, stdev
from typing import Sequence

from ..errors import InvalidArgumentError
from ._rows import is_number


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float | None]:
    """Mean of runs that differ in their seed, and the half-width of its confidence interval.

    The interval is Student's, for independent and normally distributed values.

    Args:
        values: One result per run.
        confidence: Probability that the interval covers the true mean, between 0 and 1.

    Returns:
        Mean and half-width; the half-width is ``None`` for a single value, which says nothing of the spread.

    Raises:
        InvalidArgumentError: If there is no value, one is not a finite number, or ``confidence`` is not a probability.

    Example:
        >>> mean, half_width = mean_interval([81.0, 83.0, 82.0])
        >>> f"{mean:.1f} +- {half_width:.2f}"
        '82.0 +- 2.48'
    """
    values = list(values)
    if not values:
        raise InvalidArgumentError("values: none given. Pass the result of at least one run.")
    for value in values:
        if not is_number(value) or not math.isfinite(value):
            raise InvalidArgumentError(f"values: {value!r} is not a finite number. Leave failed runs out, and say so.")
    if not 0 < confidence < 1:
        raise InvalidArgumentError(f"confidence: {confidence}. Pass a number between 0 and 1, such as 0.95.")
    mean = fmean(values)
    if len(values) == 1:
        return mean, None
    return mean, _student_quantile(confidence, len(values) - 1) * stdev(values) / math.sqrt(len(values))


def _student_quantile(confidence: float, degrees: int) -> float:
    """The t with P(-t < T < t) = confidence, by bisection over the angle atan(t / sqrt(degrees))."""
    low, high = 0.0, math.pi / 2
    for _ in range(100):
        middle = (low + high) / 2
        if _student_probability(middle, degrees) < confidence:
            low = middle
        else:
            high = middle
    return math.sqrt(degrees) * math.tan(low)


def _student_probability(angle: float, degrees: int) -> float:
    """P(-t < T < t) in closed form for whole degrees of freedom; Abramowitz and Stegun, 26.7.3 and 26.7.4."""
    odd = degrees % 2
    term = math.cos(angle) if odd else 1.0
    total = term if degrees > 1 else 0.0
    for k in range(2 + odd, degrees - 1, 2):
        term *= math.cos(angle) ** 2 * (k - 1) / k
        total += term
    total *= math.sin(angle)
    return 2 / math.pi * (angle + total) if odd else total
