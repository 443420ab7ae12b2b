"""Settings that must be numbers: refused by name where they are not."""

from __future__ import annotations

import math
from numbers import Integral, Real

from ..errors import InvalidArgumentError


def checked_number(
    name: str, value, low: float = 0.0, high: float = math.inf, above: bool = False
) -> float:
    """Return a setting as a number of Python, which must be finite and in [low, high].

    No bool and no text is one, and NumPy's scalars, which checkpoints cannot hold, become numbers
    of Python. Any other value raises InvalidArgumentError.

    Args:
        name: The setting's name.
        value: Its value.
        low: Smallest value.
        high: Largest value.
        above: Whether ``low`` itself is refused.

    Example:
        >>> checked_number("beta", 0.5, 0, 1)
        0.5
    """
    number = isinstance(value, Real) and not isinstance(value, bool)
    if (
        number and low <= value <= high and abs(value) < math.inf and not (above and value == low)
    ):  # also NaN
        return int(value) if isinstance(value, int) else float(value)
    wanted = (
        f"lie in [{low:g}, {high:g}]"
        if high < math.inf
        else (
            "be positive and finite"
            if above
            else "be finite and not negative"
            if low == 0
            else f"be finite and at least {low:g}"
        )
    )
    raise InvalidArgumentError(
        f"{name}={value!r} must {'' if number else 'be a number and '}{wanted}"
    )


def checked_whole(name: str, value, low: int, high: int | None = None) -> int:
    """Return a setting as an int, which must be a whole number in [low, high].

    Anything else raises InvalidArgumentError.

    Example:
        >>> checked_whole("epochs", 70, 1)
        70
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise InvalidArgumentError(
            f"{name}={value!r} must be a whole number (an int) of at least {low}"
        )
    if value < low:
        raise InvalidArgumentError(f"{name}={value} must be at least {low}")
    if high is not None and value > high:
        raise InvalidArgumentError(f"{name}={value} must be at most {high}")
    return int(value)
