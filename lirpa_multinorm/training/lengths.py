"""Lengths of time in a run: numbers of epochs, or shares of the run such as "50%"."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Union

from ..errors import InvalidArgumentError

Length = Union[float, str]  # epochs, or a share of the run: "50%"


def share_of(length: Length) -> float | None:
    """Return a share such as "50%" as a number; None for a number of epochs.

    Example:
        >>> share_of("12.5%"), share_of(20)
        (0.125, None)
    """
    return float(length[:-1]) / 100 if isinstance(length, str) else None


def checked_length(name: str, length) -> Length:
    """Return a length, or raise InvalidArgumentError.

    A finite number of epochs >= 0, or "0%" to "100%".

    Example:
        >>> checked_length("anneal_epochs", 20), checked_length("anneal_epochs", " 50 %")
        (20, '50%')
    """
    remedy = (
        f"{name}={length!r} must be a finite number of epochs, not negative, or a share of the run"
        ' such as "50%"'
    )
    if isinstance(length, str):
        number, percent, rest = length.strip().partition("%")
        try:
            share = float(number)
        except ValueError as error:
            raise InvalidArgumentError(remedy) from error
        if not percent or rest or not 0 <= share <= 100:
            raise InvalidArgumentError(remedy)
        return f"{share:.12g}%"
    if isinstance(length, bool) or not isinstance(length, Real) or not 0 <= length < math.inf:
        raise InvalidArgumentError(remedy)
    return length


def checked_milestone(length) -> Length:
    """Return a milestone.

    A whole number of epochs, or a share as "70%" or as a number between 0 and 1.

    Example:
        >>> checked_milestone(50), checked_milestone(0.7), checked_milestone("90%")
        (50, '70%', '90%')
    """
    if isinstance(length, Real) and not isinstance(length, (bool, Integral)) and 0 < length < 1:
        return f"{100 * length:.12g}%"
    if isinstance(length, str):
        return checked_length("milestones", length)
    if isinstance(length, bool) or not isinstance(length, Integral) or length < 0:
        raise InvalidArgumentError(
            f"milestones: {length!r} is neither a whole number of epochs nor a share of the run "
            'such as 0.7 or "70%"'
        )
    return int(length)


def epochs_of(length: Length, epochs: int) -> float:
    """Return a length in epochs of a run.

    Example:
        >>> epochs_of("50%", 40), epochs_of(20, 40)
        (20.0, 20)
    """
    share = share_of(length)
    return length if share is None else share * epochs


def milestones_of(milestones: Sequence[Length], epochs: int) -> tuple[int, ...]:
    """Return milestones in epochs.

    Those given as shares are rounded to epochs in which the run is still going on.

    Example:
        >>> shares = "70%", "90%"
        >>> milestones_of(shares, 40), milestones_of(shares, 5), milestones_of((50,), 5)
        ((28, 36), (4, 4), (50,))
    """
    whole = (
        length if share_of(length) is None else within(share_of(length) * epochs, epochs)
        for length in milestones
    )
    return tuple(length for length in whole if length is not None)


def within(length: float, epochs: int) -> int | None:
    """Return the whole number from 1 to ``epochs - 1`` that is nearest to a length, or None.

    It lies after the first epoch and before the last one ends.

    Example:
        >>> within(0.2, 5), within(4.9, 5), within(0.9, 1)
        (1, 4, None)
    """
    return min(max(1, round(length)), epochs - 1) if epochs > 1 else None
