"""Words of the command line and of preset files, turned into values, and values in words."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from fractions import Fraction

from .hints import did_you_mean


def duration(seconds: float) -> str:
    """Return a time in words.

    Example:
        >>> duration(42.3), duration(600), duration(9000)
        ('42 s', '10 min', '2.5 h')
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def number(word: str) -> float:
    """Return a number, which may be written as a fraction.

    Raises:
        ArgumentTypeError: The word is neither.

    Example:
        >>> number("1e-5"), number("8/255") == 8 / 255
        (1e-05, True)
    """
    try:
        return float(Fraction(word)) if "/" in word else float(word)
    except (ValueError, ZeroDivisionError, OverflowError):
        raise argparse.ArgumentTypeError(
            f"{word!r} is neither a number nor a fraction such as 8/255"
        ) from None


def whole(word: str) -> int:
    """Return a whole number.

    Raises:
        ArgumentTypeError: The word is none.
    """
    try:
        return int(word)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{word!r} is not a whole number") from None


def length(word: str) -> float | str:
    """Return a number of epochs, or a share of the run such as "50%" as it is."""
    return word if "%" in word else number(word)


def milestone(word: str) -> float | str:
    """Return a number of epochs, or a share of the run as "50%" or 0.5."""
    return int(word) if word.lstrip("-").isdigit() else length(word)


class Choice:
    """Takes a name among some that exist; the error says which do, and what was meant.

    Args:
        names: The names, such as a registry's; they are looked up at every call.

    Example:
        >>> Choice(["box", "ball"])("ball")
        'ball'
        >>> Choice(["box", "ball"])("bal")
        Traceback (most recent call last):
        ...
        argparse.ArgumentTypeError: 'bal' is unknown; did you mean 'ball'? Use box or ball
    """

    def __init__(self, names: Iterable[str]) -> None:
        self.names = names

    def __call__(self, word: str) -> str:
        """Return the name, or raise ArgumentTypeError where there is none of it."""
        names = list(self.names)
        if word in names:
            return word
        hint = did_you_mean(word, names, sentence=False)
        use = "Use" if hint else "use"
        raise argparse.ArgumentTypeError(f"{word!r} is unknown;{hint} {use} {either(names)}")


def either(names: Iterable[str], word: str = "or") -> str:
    """Return names as a list in words.

    Example:
        >>> either(["inf", "2", "1"], "and"), either(["box"])
        ('inf, 2 and 1', 'box')
    """
    *first, last = names
    return f"{', '.join(first)} {word} {last}" if first else last
