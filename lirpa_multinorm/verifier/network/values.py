"""The values of a graph that is being read.

Constants, and places of those that depend on the input.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Callable, NamedTuple


class Moving(NamedTuple):
    """A value that depends on the network's input: the place of its step."""

    place: int


class Parts(NamedTuple):
    """The values of an operator that returns several: a function of which is asked for."""

    part: Callable[[int], Any]


def is_moving(value: Any) -> bool:
    """Return whether a value depends on the network's input."""
    return isinstance(value, Moving)


def moving_values(arguments: Any) -> list[Moving]:
    """Return the values in arguments that depend on the input, in the order of :func:`replaced`."""
    found: list[Moving] = []
    _mapped(arguments, lambda value: found.append(value))
    return found


def replaced(arguments: Any, values: Sequence[Any]) -> Any:
    """Return arguments with ``values``, in order, in place of those that depend on the input.

    Example:
        >>> replaced({"tensors": [Moving(0), 5], "dim": 1}, [7])
        {'tensors': [7, 5], 'dim': 1}
    """
    following: Iterator[Any] = iter(values)
    return _mapped(arguments, lambda value: next(following))


def _mapped(arguments: Any, function: Callable[[Moving], Any]) -> Any:
    if is_moving(arguments):
        return function(arguments)
    if isinstance(arguments, (list, tuple)):
        return [_mapped(entry, function) for entry in arguments]
    return (
        {key: _mapped(entry, function) for key, entry in arguments.items()}
        if isinstance(arguments, dict)
        else arguments
    )
