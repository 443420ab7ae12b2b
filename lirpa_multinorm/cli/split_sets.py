"""Transforms, patches and l_0 sets on the command line."""

from __future__ import annotations

import argparse
from contextlib import AbstractContextManager
from typing import Any

from ..experiments.split_sets import split_sets_of
from ..perturbations.described import AnySet
from ..perturbations.paper_transforms import transform_names
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


def add_split_arguments(parser: argparse.ArgumentParser, description: str) -> None:
    """Add the arguments that name transforms, patches and l_0 sets.

    Args:
        parser: The parser.
        description: What the sets stand beside, for the help.
    """
    group = parser.add_argument_group(
        "transforms, patches and l_0 sets",
        f"{description}. The parameters given make one set of transforms: a number A means from -A "
        "to A",
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
    group.add_argument(
        "--eps-0",
        dest="l_0",
        nargs="+",
        type=int,
        metavar="N",
        help="sets of inputs in which at most N values change, of all channels (default: none)",
    )


def split_settings(args: argparse.Namespace) -> dict[str, Any]:
    """Return the transforms, patches and l_0 sets that the arguments name, as settings.

    A kind of which none is given is left out.
    """
    parameters = {
        name: getattr(args, name) for name in _PARAMETERS if getattr(args, name, None) is not None
    }
    names = getattr(args, "transforms", None) or []
    settings = {
        "transforms": [parameters, *names] if parameters else names,
        "patch": getattr(args, "patch", None) or [],
        "l_0": getattr(args, "l_0", None) or [],
    }
    return {name: value for name, value in settings.items() if value}


def given_split_sets(args: argparse.Namespace) -> list[AnySet]:
    """Return the transforms, patches and l_0 sets that the arguments name."""
    with in_words_of_split_flags():
        return split_sets_of(**split_settings(args))


def in_words_of_split_flags() -> AbstractContextManager:
    """Let errors of these sets name the flag that gave an argument."""
    flags = {name: f"--{name}" for name in (*_PARAMETERS, "transforms", "patch")}
    return in_words_of_flags(**flags, height="--patch", width="--patch", count="--eps-0")
