"""Registration of our classes under auto_LiRPA's names, on request only."""

from __future__ import annotations

from .. import host
from ..errors import InvalidArgumentError
from ..perturbations import (
    PerturbationL1Box,
    PerturbationL2Box,
    PerturbationLinf,
    PerturbationLpBox,
)
from .module import BoundedModule

_SETS = (PerturbationLpBox, PerturbationLinf, PerturbationL2Box, PerturbationL1Box)
_MISSING = object()
_replaced: dict = {}  # (module, name) -> the class before, or _MISSING


def _registrations() -> list[tuple]:
    """Return (module, name, class) of all classes that are registered."""
    sets = [
        (module, ours.__name__, ours)
        for module in (host.namespace, host.namespace.perturbations)
        for ours in _SETS
    ]
    return sets + [(host.namespace, "BoundedModule", BoundedModule)]


def register(force: bool = False) -> None:
    """Put the perturbation sets and the multi-norm BoundedModule under auto_LiRPA's names.

    Afterwards ``from auto_LiRPA import BoundedModule, PerturbationL2Box`` gives ours. Calling it
    again changes nothing; :func:`unregister` undoes it. Importing this package never does it by
    itself.

    Args:
        force: Replace classes of other packages that stand under these names.

    Raises:
        InvalidArgumentError: A name is taken by something that is neither ours nor the host's own.

    Example:
        >>> register()
        >>> import auto_LiRPA
        >>> auto_LiRPA.BoundedModule is BoundedModule
        True
        >>> unregister()
        >>> auto_LiRPA.BoundedModule is BoundedModule
        False
    """
    registrations = _registrations()
    strangers = [
        f"{module.__name__}.{name}"
        for module, name, ours in registrations
        if getattr(module, name, ours) not in (ours, host.HostModule)
    ]
    if strangers and not force:
        raise InvalidArgumentError(
            f"{', '.join(strangers)}: taken by another package; use register(force=True) to "
            "replace it"
        )
    for module, name, ours in registrations:
        if getattr(module, name, None) is not ours:
            _replaced[module, name] = getattr(module, name, _MISSING)
            setattr(module, name, ours)


def unregister() -> None:
    """Undo :func:`register`; without a registration nothing happens."""
    while _replaced:
        (module, name), before = _replaced.popitem()
        if before is _MISSING:
            delattr(module, name)
        else:
            setattr(module, name, before)
