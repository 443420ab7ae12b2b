"""Hints for names that are unknown: what was meant, by spelling."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: object, names: Iterable[str], count: int = 1, cutoff: float = 0.6) -> list[str]:
    """Return the names that are spelled most like an unknown one, the nearest first.

    Args:
        name: What was given; anything that is no text is compared by its text.
        names: The names that exist.
        count: Largest number of names to return.
        cutoff: Least similarity, between 0 and 1.

    Example:
        >>> nearest("crwon", ["crown", "ibp"])
        ['crown']
    """
    return difflib.get_close_matches(str(name), list(names), n=count, cutoff=cutoff)


def did_you_mean(name: object, names: Iterable[str], sentence: bool = True) -> str:
    """Return the question whether the nearest name was meant, with a space before it.

    Args:
        name: What was given.
        names: The names that exist.
        sentence: Whether the question is a sentence of its own and starts with a capital letter.

    Returns:
        The question, or "" where no name is near.

    Example:
        >>> did_you_mean("mnits", ["mnist", "cifar10"]), did_you_mean("svhn", ["mnist"])
        (" Did you mean 'mnist'?", '')
    """
    match = nearest(name, names)
    return f" {'Did' if sentence else 'did'} you mean {match[0]!r}?" if match else ""
