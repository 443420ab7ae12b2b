"""Lengths of time in a run: numbers of epochs, or shares of the run such as "50%"."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Union

from ..errors import InvalidArgumentError
from .numbers import is_number, is_whole

Length = Union[float, str]  # epochs, or a share of the run: "50%"


def share_of(text: str) -> float:
    """Return a share such as "50%" as a number.

    Example:
        >>> share_of("12.5%")
        0.125
    """
    return float(text[:-1]) / 100


def checked_length(name: str, length: Any) -> Length:
    """Return a finite number of epochs >= 0, or a share from "0%" to "100%".

    Any other value raises InvalidArgumentError.

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
    if not is_number(length) or not 0 <= length < math.inf:
        raise InvalidArgumentError(remedy)
    return length


def checked_milestone(length: Any) -> Length:
    """Return a milestone: a whole number of epochs, or a share, also given as a number below 1.

    Example:
        >>> checked_milestone(50), checked_milestone(0.7), checked_milestone("90%")
        (50, '70%', '90%')
    """
    if is_number(length) and not is_whole(length) and 0 < length < 1:
        return f"{100 * length:.12g}%"
    if isinstance(length, str):
        return checked_length("milestones", length)
    if not is_whole(length) or length < 0:
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
    return share_of(length) * epochs if isinstance(length, str) else length


def milestones_of(milestones: Sequence[Length], epochs: int) -> tuple[int, ...]:
    """Return milestones in epochs; shares are rounded to epochs before the run's end.

    Example:
        >>> shares = "70%", "90%"
        >>> milestones_of(shares, 40), milestones_of(shares, 5), milestones_of((50,), 5)
        ((28, 36), (4, 4), (50,))
    """
    numbers = (
        within(share_of(length) * epochs, epochs) if isinstance(length, str) else int(length)
        for length in milestones
    )
    return tuple(number for number in numbers if number is not None)


def scaled_length(length: Length, ratio: float) -> Length:
    """Return a number of epochs times a ratio; a share of the run stays as it is.

    Example:
        >>> scaled_length(20, 0.5), scaled_length("50%", 0.5)
        (10.0, '50%')
    """
    return length if isinstance(length, str) else ratio * length


def scaled_milestones(
    milestones: Sequence[Length], old_epochs: int, epochs: int
) -> tuple[Length, ...]:
    """Return the milestones of a run of another length, in proportion.

    Milestones that the old run never reached are left out.

    Example:
        >>> scaled_milestones((50, 60, 90), 70, 35)
        (25, 30)
    """
    ratio = epochs / old_epochs
    scaled: list[Length] = []
    for length in milestones:
        if isinstance(length, str) or length == 0:
            scaled.append(length)
        elif length < old_epochs:
            number = within(ratio * length, epochs)
            scaled += [] if number is None else [number]
    return tuple(scaled)


def within(length: float, epochs: int) -> int | None:
    """Return the whole number from 1 to ``epochs - 1`` that is nearest to a length, or None.

    It lies after the first epoch and before the last one ends.

    Example:
        >>> within(0.2, 5), within(4.9, 5), within(0.9, 1)
        (1, 4, None)
    """
    return min(max(1, round(length)), epochs - 1) if epochs > 1 else None
