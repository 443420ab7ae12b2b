"""Checks of values on a device, deferred so that Python waits for the device once.

``bool(tensor)`` waits until a GPU has done all that it was asked for, and leaves it idle
afterwards. :func:`require` does it at once; inside :func:`deferred_checks` all requirements are
read together, at the end of the block or by :func:`read_deferred`.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Callable, TypeVar, cast

import torch
from torch import Tensor

Function = TypeVar("Function", bound=Callable)


class _Deferred:
    """Requirements that were not read yet, and labels that were checked."""

    def __init__(self) -> None:
        self.passed: list[Tensor] = []
        self.explain: list[Callable[[], None]] = []
        self.labels: list[tuple[Tensor, int]] = []


_ACTIVE: ContextVar[_Deferred | None] = ContextVar("deferred", default=None)


def require(passed: Tensor, explain: Callable[[], None]) -> None:
    """Raise an error unless a value on a device is true, at once or with other requirements.

    Args:
        passed: A bool of shape ().
        explain: Called where it is false: raises the error, or finds on a closer look that there is
            none.

    Example:
        >>> def explain():
        ...     raise ValueError("x is negative")
        >>> with deferred_checks():
        ...     require(torch.tensor(1.0) >= 0, explain)
    """
    active = _ACTIVE.get()
    if active is not None:
        active.passed.append(passed)
        active.explain.append(explain)
    elif not bool(passed):
        explain()


def is_deferred() -> bool:
    """Return whether requirements are read later."""
    return _ACTIVE.get() is not None


def read_deferred(*values: Tensor) -> list[bool]:
    """Read requirements that were deferred, and further values with them.

    Args:
        *values: Bools of shape ().

    Returns:
        The values.

    Raises:
        Exception: A requirement is not met: what its ``explain`` raises.
    """
    active = _ACTIVE.get()
    passed, explain = ([], []) if active is None else (active.passed, active.explain)
    flags = _read([*passed, *values])
    wrong = [look for look, flag in zip(explain, flags) if not flag]
    count = len(passed)
    if active is not None:
        active.passed, active.explain = [], []
    for look in wrong:
        look()
    return flags[count:]


def _read(flags: list[Tensor]) -> list[bool]:
    """Return bools by one look at their device."""
    if not flags:
        return []
    return torch.stack([flag.detach().to(flags[-1].device) for flag in flags]).tolist()


@contextlib.contextmanager
def deferred_checks() -> Iterator[None]:
    """Read the requirements of a block together; those of a block inside another, at its end.

    A block that fails raises the error of the first requirement that is not met, if there is one,
    from its own: what is computed from values that should have been refused can fail in any way.
    """
    if _ACTIVE.get() is not None:
        yield
        return
    token = _ACTIVE.set(_Deferred())
    try:
        try:
            yield
        except Exception as error:
            _raise_first(error)
            raise
        read_deferred()
    finally:
        _ACTIVE.reset(token)


def _raise_first(cause: Exception) -> None:
    """Raise the error of the first requirement that is not met, if there is one."""
    try:
        read_deferred()
    except Exception as error:
        raise error from cause


def checked_together(function: Function) -> Function:
    """Run a function inside :func:`deferred_checks`."""

    @functools.wraps(function)
    def call(*arguments, **options):
        """Call the function, with its checks read together."""
        with deferred_checks():
            return function(*arguments, **options)

    return cast(Function, call)


def labels_checked(labels: Tensor, classes: int) -> bool:
    """Return whether the labels were noted in this block, for as many classes."""
    active = _ACTIVE.get()
    noted = () if active is None else active.labels
    return any(known is labels and count == classes for known, count in noted)


def note_labels(labels: Tensor, classes: int) -> None:
    """Note labels whose values were checked, so that this block does not check them again."""
    active = _ACTIVE.get()
    if active is not None:
        active.labels.append((labels, classes))
