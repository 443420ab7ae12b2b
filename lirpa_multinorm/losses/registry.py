"""Losses by name."""

from __future__ import annotations

import difflib
from typing import Callable, Dict, Optional, Sequence

from ..errors import InvalidArgumentError
from ..perturbations import PerturbationLpBox, as_perturbations
from .branches import Branch
from .multinorm import MultiNormLoss

#: Factories by name: ``(perturbations, **options) -> loss``; None is natural training.
LOSSES: Dict[str, Callable[..., Optional[MultiNormLoss]]] = {}

CURE_RATIO = 1e-5  # lambda_2 of every experiment of the paper


def register_loss(name: str) -> Callable:
    """Return a decorator that adds a factory ``(perturbations, **options)`` to :data:`LOSSES`.

    Args:
        name: The loss's name; a name already taken is refused.

    Example:
        >>> @register_loss("first_set_only")
        ... def first_set_only(perturbations):
        ...     return MultiNormLoss([Branch(perturbations[0], "set")])
        >>> _ = LOSSES.pop("first_set_only")
    """
    def add(factory: Callable) -> Callable:
        if name in LOSSES:
            raise InvalidArgumentError(f"name={name!r} is already a loss; choose another")
        LOSSES[name] = factory
        return factory
    return add


def build_loss(name: str, perturbations: Sequence[PerturbationLpBox], **options) -> Optional[MultiNormLoss]:
    """Return a loss by name.

    Args:
        name: One of :data:`LOSSES`: "natural", "ibp", "sabr", "cure_l2", "joint", "max", "random".
        perturbations: The sets; single-norm losses use the one of their norm.
        **options: ``ratio_inf`` (SABR's lambda), ``ratio_2`` (lambda_2), ``region_2`` ("box" as in the paper, or
            "ball"), ``weights`` (of Joint).

    Returns:
        The loss, or None for natural training.

    Raises:
        InvalidArgumentError: Unknown name or option, or no set of the norm the loss needs.

    Example:
        >>> from lirpa_multinorm import PerturbationLinf, PerturbationL2Box
        >>> loss = build_loss("max", [PerturbationLinf(0.1), PerturbationL2Box(0.5)], ratio_inf=0.4)
        >>> [branch.ratio for branch in loss.branches]
        [0.4, 1e-05]
    """
    if name not in LOSSES:
        near = difflib.get_close_matches(str(name), LOSSES, n=3) or list(LOSSES)
        raise InvalidArgumentError(f"loss {name!r} is unknown; nearest: {', '.join(near)}")
    try:
        return LOSSES[name](as_perturbations(perturbations), **options)
    except TypeError as error:
        raise InvalidArgumentError(f"loss {name!r}: {error}") from error


def branches_for(perturbations: Sequence[PerturbationLpBox], ratio_inf: float = 0.4, ratio_2: float = CURE_RATIO,
                 region_2: str = "box") -> list:
    """Return one branch per set: SABR's small box for l_inf, ``region_2`` of size ``ratio_2`` for the others."""
    return [Branch(one, "box", ratio_inf) if one.norm == float("inf") else Branch(one, region_2, ratio_2)
            for one in perturbations]


def _of_norm(perturbations: Sequence[PerturbationLpBox], norm: float, loss: str) -> list:
    found = [one for one in perturbations if one.norm == norm]
    if not found:
        raise InvalidArgumentError(f"perturbations has no set of norm {norm}, which the loss {loss!r} needs")
    return found[:1]


@register_loss("natural")
def _natural(perturbations) -> None:
    return None


@register_loss("ibp")
def _ibp(perturbations, weights=None) -> MultiNormLoss:
    return MultiNormLoss([Branch(one, "set") for one in perturbations], "joint", weights)


@register_loss("sabr")
def _sabr(perturbations, ratio_inf: float = 0.4) -> MultiNormLoss:
    return MultiNormLoss(branches_for(_of_norm(perturbations, float("inf"), "sabr"), ratio_inf))


@register_loss("cure_l2")
def _cure_l2(perturbations, ratio_2: float = CURE_RATIO, region_2: str = "box") -> MultiNormLoss:
    return MultiNormLoss(branches_for(_of_norm(perturbations, 2, "cure_l2"), ratio_2=ratio_2, region_2=region_2))


@register_loss("joint")
def _joint(perturbations, weights=None, **options) -> MultiNormLoss:
    return MultiNormLoss(branches_for(perturbations, **options), "joint", weights)


@register_loss("max")
def _max(perturbations, **options) -> MultiNormLoss:
    return MultiNormLoss(branches_for(perturbations, **options), "max")


@register_loss("random")
def _random(perturbations, **options) -> MultiNormLoss:
    return MultiNormLoss(branches_for(perturbations, **options), "random")
