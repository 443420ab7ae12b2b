"""Settings that must be numbers: any other value is refused by the setting's name."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any

from ..errors import InvalidArgumentError


def is_number(value: Any) -> bool:
    """Return whether a value is a real number, of Python or NumPy, and no bool."""
    return isinstance(value, Real) and not isinstance(value, bool)


def is_whole(value: Any) -> bool:
    """Return whether a value is a whole number, of Python or NumPy, and no bool."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def checked_number(
    name: str, value: Any, lower: float = 0.0, upper: float = math.inf, above: bool = False
) -> float:
    """Return a setting as a number of Python, which must be finite and in [lower, upper].

    NumPy's scalars, which checkpoints cannot hold, become numbers of Python. A bool, a text or any
    other value raises InvalidArgumentError.

    Args:
        name: The setting's name.
        value: Its value.
        lower: Smallest value.
        upper: Largest value.
        above: Whether ``lower`` itself is refused.

    Example:
        >>> checked_number("beta", 0.5, 0, 1)
        0.5
    """
    number = is_number(value)
    inside = number and lower <= value <= upper and abs(value) < math.inf  # false for NaN
    if inside and not (above and value == lower):
        return int(value) if isinstance(value, int) else float(value)
    range_in_words = _range_in_words(lower, upper, above)
    raise InvalidArgumentError(
        f"{name}={value!r} must {'' if number else 'be a number and '}{range_in_words}"
    )


def _range_in_words(lower: float, upper: float, above: bool) -> str:
    """Return what a number in a range must do, in words."""
    if upper < math.inf:
        return f"lie in [{lower:g}, {upper:g}]"
    if above:
        return "be positive and finite"
    if lower == 0:
        return "be finite and not negative"
    return f"be finite and at least {lower:g}"


def checked_whole(name: str, value: Any, lower: int, upper: int | None = None) -> int:
    """Return a setting as an int, which must be a whole number in [lower, upper].

    Any other value raises InvalidArgumentError.

    Example:
        >>> checked_whole("epochs", 70, 1)
        70
    """
    if not is_whole(value):
        raise InvalidArgumentError(
            f"{name}={value!r} must be a whole number (an int) of at least {lower}"
        )
    if value < lower:
        raise InvalidArgumentError(f"{name}={value} must be at least {lower}")
    if upper is not None and value > upper:
        raise InvalidArgumentError(f"{name}={value} must be at most {upper}")
    return int(value)
