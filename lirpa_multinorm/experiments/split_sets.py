"""Transforms, patches and l_0 sets in settings, beside the radii of balls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import InvalidArgumentError
from ..perturbations import PerturbationL0
from ..perturbations.described import AnySet
from ..perturbations.geometric import PerturbationGeometric
from ..perturbations.paper_transforms import paper_transforms
from ..perturbations.patch import PerturbationPatch
from .settings import sets_of

#: Names of settings, in the order of the arguments of :func:`split_sets_of`.
SPLIT_SETTINGS = ("transforms", "patch", "l_0")


def all_sets_of(settings: Mapping[str, Any]) -> list[AnySet]:
    """Return the sets of settings: balls of the radii, then transforms, patches and l_0 sets.

    Example:
        >>> [entry.name for entry in all_sets_of({"eps": {"2": 0.5}, "patch": ["5x5"]})]
        ['l_2', '5x5 patch']
    """
    split = split_sets_of(*(settings.get(name) or () for name in SPLIT_SETTINGS))
    return [*sets_of(settings.get("eps") or {}), *split]


def split_sets_of(
    transforms: Sequence[str | Mapping[str, Any]] = (),
    patch: Sequence[str] = (),
    l_0: Sequence[int] = (),
) -> list[AnySet]:
    """Return the sets without a radius that settings name.

    Args:
        transforms: Names of the paper's columns, or parameters of one set each.
        patch: Sizes, height before width, such as "5x5".
        l_0: How many values may change.

    Raises:
        InvalidArgumentError: A name, a parameter or a size cannot be used.

    Example:
        >>> [entry.name for entry in split_sets_of([{"rotation": 5}, "mnist-r30"], ["2x2"])]
        ['R(5)', 'R(30)', '2x2 patch']
    """
    for name, value in zip(SPLIT_SETTINGS, (transforms, patch, l_0)):
        if not isinstance(value, (list, tuple)):
            raise InvalidArgumentError(f"{name}={value!r} must be a list, one entry per set")
    sets: list[AnySet] = []
    for entry in transforms:
        if isinstance(entry, str):
            sets += paper_transforms(entry)
        else:
            sets.append(_transforms(entry))
    return [*sets, *map(_patch, patch), *map(PerturbationL0, l_0)]


def _transforms(parameters: Any) -> PerturbationGeometric:
    """Return the transforms with some parameters; a list of two numbers is a range."""
    try:
        return PerturbationGeometric(**parameters)
    except TypeError as error:
        raise InvalidArgumentError(
            f"transforms: {parameters!r} must be a column of the paper, or an object of parameters "
            f"such as rotation ({error})"
        ) from error


def _patch(size: Any) -> PerturbationPatch:
    """Return the patches that a text such as "5x5" names."""
    try:
        height, width = map(int, size.lower().split("x"))
    except (AttributeError, ValueError):
        raise InvalidArgumentError(f"patch={size!r}: give HEIGHTxWIDTH, such as 5x5") from None
    return PerturbationPatch(height, width)
