"""Sets as plain data, and the sets that a certification takes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Union

import torch

from ..errors import InvalidArgumentError
from .convert import as_perturbation, as_perturbations
from .geometric import PerturbationGeometric
from .l0 import PerturbationL0
from .lp_box import PerturbationLpBox
from .patch import PerturbationPatch
from .split import SplitPerturbation

if TYPE_CHECKING:
    from typing_extensions import TypeGuard

AnySet = Union[PerturbationLpBox, SplitPerturbation]

#: Sets that are no balls, by the kind that their description names.
KINDS = {"geometric": PerturbationGeometric, "patch": PerturbationPatch}


def certifiable_sets(perturbations: Sequence) -> list[AnySet]:
    """Return the list of sets, not empty, with those of the host converted.

    Raises:
        InvalidArgumentError: There is none, or something else is among them.
    """
    if isinstance(perturbations, SplitPerturbation):
        return [perturbations]
    if not isinstance(perturbations, Iterable) or not list(perturbations):
        return list(as_perturbations(perturbations))
    return [
        perturbation
        if isinstance(perturbation, SplitPerturbation)
        else as_perturbation(perturbation)
        for perturbation in perturbations
    ]


def balls_of(sets: Sequence[AnySet]) -> list[PerturbationLpBox]:
    """Return the balls among sets, or one of radius 0: a BoundedModule is always of balls."""
    balls = [perturbation for perturbation in sets if isinstance(perturbation, PerturbationLpBox)]
    return balls or [PerturbationLpBox("inf", 0.0)]


def has_radius(perturbation: AnySet) -> TypeGuard[PerturbationLpBox]:
    """Return whether a set is a ball with a radius; l_0's number of values is none."""
    return isinstance(perturbation, PerturbationLpBox) and not isinstance(
        perturbation, PerturbationL0
    )


def describe_set(perturbation: AnySet) -> dict[str, Any]:
    """Return a set as plain data; tensors of a set stay tensors.

    Example:
        >>> describe_set(PerturbationLpBox(2, 0.5))
        {'norm': '2', 'eps': 0.5, 'clip': [0.0, 1.0]}
    """
    if isinstance(perturbation, (SplitPerturbation, PerturbationL0)):
        return perturbation.described()
    clip = perturbation.clip
    return {
        "norm": str(perturbation.norm),
        "eps": perturbation.eps,
        "clip": None if clip is None else list(clip),
    }


def set_from(described: Mapping[str, Any]) -> AnySet:
    """Return the set that :func:`describe_set` described.

    Raises:
        InvalidArgumentError: The kind of the set is unknown.
    """
    arguments = dict(described)
    if "kind" not in arguments:
        if isinstance(arguments["eps"], list):
            arguments["eps"] = torch.tensor(arguments["eps"], device="cpu")
        if str(arguments["norm"]) == PerturbationL0.described_norm:
            return PerturbationL0(arguments["eps"], arguments["clip"])
        return PerturbationLpBox(**arguments)
    kind = arguments.pop("kind")
    if kind not in KINDS:
        raise InvalidArgumentError(f"kind={kind!r} of a set is unknown; use {', '.join(KINDS)}")
    return KINDS[kind](**arguments)
