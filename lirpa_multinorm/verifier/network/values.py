"""The values of a graph that is being read: constants, and steps of those that move."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Callable, NamedTuple


class Moving(NamedTuple):
    """A value that depends on the network's input: the index of its step."""

    step: int


class Results(NamedTuple):
    """The results of an operator that returns several, as a function of the index."""

    result: Callable[[int], Any]


def is_moving(value: Any) -> bool:
    """Return whether a value depends on the network's input."""
    return isinstance(value, Moving)


def moving_values(arguments: Any) -> list[Moving]:
    """Return the values in arguments that depend on the input, in the order of :func:`replaced`."""
    values: list[Moving] = []
    _mapped(arguments, values.append)
    return values


def replaced(arguments: Any, values: Sequence[Any]) -> Any:
    """Return arguments with ``values``, in order, instead of those that depend on the input.

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
    if isinstance(arguments, dict):
        return {key: _mapped(entry, function) for key, entry in arguments.items()}
    return arguments
