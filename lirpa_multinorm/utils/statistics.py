"""Means over repeated runs and shares of images, with their uncertainty."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real
from statistics import NormalDist, fmean, stdev

from scipy.special import stdtrit

from ..errors import InvalidArgumentError


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float | None]:
    """Return the mean of runs that differ in their seed, and its confidence half-width.

    The interval is Student's, for independent and normally distributed values.

    Args:
        values: One result per run.
        confidence: Probability that the interval covers the true mean, between 0 and 1.

    Returns:
        Mean and half-width; the half-width is ``None`` for a single value, which says nothing of
        the spread.

    Raises:
        InvalidArgumentError: If there is no value, one is not a finite number, or ``confidence`` is
            not a probability.

    Example:
        >>> mean, half_width = mean_interval([81.0, 83.0, 82.0])
        >>> f"{mean:.1f} +- {half_width:.2f}"
        '82.0 +- 2.48'
    """
    values = list(values)
    if not values:
        raise InvalidArgumentError("values: none given. Pass the result of at least one run.")
    for value in values:
        if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
            raise InvalidArgumentError(
                f"values: {value!r} is not a finite number. Leave failed runs out, and say so."
            )
    _check_confidence(confidence)
    mean = fmean(values)
    if len(values) == 1:
        return mean, None
    quantile = float(stdtrit(len(values) - 1, (1 + confidence) / 2))  # of Student's t
    return mean, quantile * stdev(values) / math.sqrt(len(values))


def proportion_interval(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return Wilson's confidence interval of a share, also sensible where the share is 0 or 1.

    Args:
        successes: How many of the n have the property.
        n: How many there are; with none, nothing is known and the interval is (0, 1).
        confidence: Probability that the interval covers the true share, between 0 and 1.

    Returns:
        The lower and the upper end, both between 0 and 1.

    Raises:
        InvalidArgumentError: If ``successes`` is not among 0..n, or ``confidence`` is not a
            probability.

    Source: Wilson, Probable inference, the law of succession, and statistical inference, JASA 1927.

    Example:
        >>> lower, upper = proportion_interval(0, 10)
        >>> f"{lower:.3f} to {upper:.3f}"
        '0.000 to 0.278'
    """
    if not 0 <= successes <= n:
        raise InvalidArgumentError(
            f"successes: {successes} of n={n}. Pass a count between 0 and n."
        )
    _check_confidence(confidence)
    if n == 0:
        return 0.0, 1.0
    share, z = successes / n, NormalDist().inv_cdf((1 + confidence) / 2)
    middle = share + z * z / (2 * n)
    spread = z * math.sqrt(share * (1 - share) / n + (z / (2 * n)) ** 2)
    scale = 1 + z * z / n
    lower, upper = (middle - spread) / scale, (middle + spread) / scale
    # Rounding must not move exact ends.
    return 0.0 if successes == 0 else lower, 1.0 if successes == n else upper


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise InvalidArgumentError(
            f"confidence: {confidence}. Pass a number between 0 and 1, such as 0.95."
        )
