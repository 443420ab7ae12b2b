"""Conversion of the host's perturbations to sets of this package."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from torch import Tensor

from .. import host
from ..errors import InvalidArgumentError
from .lp_box import PerturbationLpBox
from .split import SplitPerturbation
from .stack import PerturbationStack


def as_perturbation(perturbation) -> PerturbationLpBox:
    """Return a set of this package that contains exactly what the host's perturbation means.

    The host reads ``x_L``/``x_U`` for p = inf only, where they *are* the set; for finite p it
    ignores them and means the plain ball.

    Args:
        perturbation: One of our sets (returned as it is) or the host's ``PerturbationLpNorm``.

    Returns:
        The set.

    Raises:
        InvalidArgumentError: Neither of the two.
    """
    if isinstance(perturbation, PerturbationLpBox):
        return perturbation
    if isinstance(perturbation, SplitPerturbation):
        raise InvalidArgumentError(
            f"perturbations: {perturbation!r} is certified part by part; give it to certify, or "
            "in a SplitTerm to a loss, and balls to a BoundedModule"
        )
    if not isinstance(perturbation, host.PerturbationLpNorm) or isinstance(
        perturbation, PerturbationStack
    ):
        raise InvalidArgumentError(
            f"perturbations: {perturbation!r} is not supported; use PerturbationLinf,"
            " PerturbationL2Box, PerturbationL1Box, PerturbationLpBox or the host's"
            " PerturbationLpNorm"
        )
    if perturbation.norm != math.inf:
        return PerturbationLpBox(perturbation.norm, perturbation.eps, clip=None)
    x_L, x_U = perturbation.x_L, perturbation.x_U
    if isinstance(x_L, Tensor) and isinstance(x_U, Tensor):
        # From any point of the box the l_inf ball of its largest side covers it.
        return PerturbationLpBox(math.inf, float((x_U - x_L).max()), clip=(x_L, x_U))
    if x_L is not None or x_U is not None:
        raise InvalidArgumentError(
            "perturbations: a host PerturbationLpNorm with x_L and x_U needs both as tensors"
        )
    return PerturbationLpBox(math.inf, perturbation.eps, clip=None)


def as_perturbations(perturbations: Sequence) -> list[PerturbationLpBox]:
    """Return the list, not empty, with every entry converted by :func:`as_perturbation`."""
    if isinstance(perturbations, (PerturbationLpBox, host.Perturbation)):
        perturbations = [perturbations]
    if not isinstance(perturbations, Iterable):
        raise InvalidArgumentError(
            f"perturbations={perturbations!r} must be a list of sets, for example "
            "[PerturbationLinf(eps=0.1)]"
        )
    sets = [as_perturbation(perturbation) for perturbation in perturbations]
    if not sets:
        raise InvalidArgumentError(
            "perturbations is empty; give at least one set, for example "
            "[PerturbationLinf(eps=0.1), PerturbationL2Box(eps=0.5)]"
        )
    return sets
