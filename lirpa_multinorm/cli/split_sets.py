"""Transforms and patches on the command line."""

from __future__ import annotations

import argparse
from typing import Any

from ..errors import InvalidArgumentError
from ..perturbations.geometric import PerturbationGeometric
from ..perturbations.paper_transforms import paper_transforms, transform_names
from ..perturbations.patch import PerturbationPatch
from ..perturbations.split import SplitPerturbation
from .arguments import in_words_of_flags

#: The parameters of one set of transforms: what their numbers mean.
_PARAMETERS = {
    "rotation": "degrees, clockwise",
    "translation": "pixels, in x and in y",
    "scale": "share by which the size changes",
    "shear": "tangent of the shear of x along y",
    "contrast": "share by which the contrast changes",
    "brightness": "what is added to pixels in [0, 1]",
}


def add_split_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that name transforms and patches."""
    group = parser.add_argument_group(
        "transforms and patches",
        "sets beside the checkpoint's; --norms none leaves those out. The parameters given make "
        "one set of transforms: a number A means from -A to A",
    )
    for name, meaning in _PARAMETERS.items():
        group.add_argument(
            f"--{name}", type=float, metavar="A", help=f"{meaning} (default: unchanged)"
        )
    group.add_argument(
        "--transforms",
        nargs="+",
        metavar="NAME",
        help=f"of the paper's tables: {', '.join(transform_names())} (default: none)",
    )
    group.add_argument(
        "--patch", nargs="+", metavar="HxW", help="patches such as 5x5, anywhere (default: none)"
    )


def split_sets_of(args: argparse.Namespace) -> list[SplitPerturbation]:
    """Return the transforms and patches that the arguments name."""
    sets: list[SplitPerturbation] = []
    given: dict[str, Any] = {
        name: getattr(args, name) for name in _PARAMETERS if getattr(args, name, None) is not None
    }
    with in_words_of_flags(
        transforms="--transforms", **{name: f"--{name}" for name in _PARAMETERS}
    ):
        if given:
            sets.append(PerturbationGeometric(**given))
        for name in getattr(args, "transforms", None) or ():
            sets += paper_transforms(name)
    return sets + [_patch(size) for size in getattr(args, "patch", None) or ()]


def _patch(text: str) -> PerturbationPatch:
    """Return the patches that a text such as "5x5" names."""
    height, _, width = text.lower().partition("x")
    try:
        sizes = int(height), int(width)
    except ValueError:
        raise InvalidArgumentError(f"--patch {text}: give HEIGHTxWIDTH, such as 5x5") from None
    with in_words_of_flags(height="--patch", width="--patch"):
        return PerturbationPatch(*sizes)
