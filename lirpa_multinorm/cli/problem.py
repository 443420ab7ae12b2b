"""What ``certify``, ``export`` and ``import`` are about: a network, images and sets."""

from __future__ import annotations

import argparse
from typing import NamedTuple, cast

from ..data import ImageData
from ..errors import InvalidArgumentError
from ..experiments.flags import add_setting_arguments, given
from ..experiments.settings import nested, norm_names, sets_of, with_radii
from ..perturbations import PerturbationLpBox
from ..perturbations.described import AnySet, has_radius
from ..training.radii import check_radii
from ..utils.words import Choice
from .arguments import VALIDATION, add_data_arguments, data_from, loadable_name
from .networks import Network, add_network_arguments, network_of
from .split_sets import given_split_sets

NO_NORM = "none"
_DATA = "digits"  # where a network does not say what it was trained on


def add_problem_arguments(parser: argparse.ArgumentParser, sets: bool = True) -> None:
    """Add the arguments that name a network, images and, if wanted, sets."""
    add_network_arguments(parser)
    add_data_arguments(parser, f"what the checkpoint was trained on; for --model, {_DATA}")
    if sets:
        add_setting_arguments(
            parser.add_argument_group(
                "radii",
                "each instead of the checkpoint's, whose other sets stay; --norms leaves sets out",
            ),
            ["eps."],
            lambda setting: "the checkpoint's",
        )
        parser.add_argument(
            "--norms",
            nargs="+",
            type=Choice([*norm_names(), NO_NORM]),
            metavar="NORM",
            help=(
                "certify against the sets of these norms only: "
                f"{', '.join(norm_names())}, or {NO_NORM} (default: of all)"
            ),
        )
        parser.add_argument(
            "--no-clip",
            action="store_true",
            help=(
                "certify the plain balls (default: the checkpoint's sets, which are cut with the "
                "range of pixels)"
            ),
        )


class Problem(NamedTuple):
    """A network, sets and images."""

    network: Network
    sets: list[AnySet]
    data: ImageData


def problem_of(args: argparse.Namespace) -> Problem:
    """Load the network, the sets and the images that the arguments name."""
    network = network_of(args)
    trained = network.perturbations
    balls = _chosen(cast("list[PerturbationLpBox]", list(filter(has_radius, trained))), args)
    if getattr(args, "no_clip", False):
        balls = [PerturbationLpBox(ball.norm, ball.eps, clip=None) for ball in balls]
    sets: list[AnySet] = [*balls, *given_split_sets(args)]
    if getattr(args, "norms", None) is None:
        sets[len(balls) : len(balls)] = [entry for entry in trained if not has_radius(entry)]
    if not sets and not trained:
        raise InvalidArgumentError(
            f"{network.name} comes without sets; give a radius, such as --eps-inf 0.1"
        )
    if not sets:
        raise InvalidArgumentError(
            f"--norms {NO_NORM} leaves no set; give transforms or a patch, or leave it out"
        )
    data = _data(args, network)
    if network.in_shape not in (None, data.in_shape):
        raise InvalidArgumentError(
            f"data {data.name!r} has images {data.in_shape}; the checkpoint's model takes "
            f"{network.in_shape}. Choose the data it was trained on"
        )
    check_radii(sets, data.x_test, data.y_test)
    return Problem(network, sets, data)


def _data(args: argparse.Namespace, network: Network) -> ImageData:
    """Load the images that --data names, or those that the network was trained on."""
    name = network.trained_on.removesuffix(VALIDATION)  # the test images are the same
    if hasattr(args, "data") or not name:
        return data_from(args, _DATA)
    return data_from(args, loadable_name(name))


def _chosen(sets: list[PerturbationLpBox], args: argparse.Namespace) -> list[PerturbationLpBox]:
    """Return a checkpoint's sets of the norms asked for, with the radii that flags give."""
    eps = nested(given(args)).get("eps", {})
    new = [perturbation.norm for perturbation in sets_of(eps)]
    sets = cast("list[PerturbationLpBox]", with_radii(sets, eps))  # balls stay balls
    asked = getattr(args, "norms", None)
    if asked is None:
        return sets
    if NO_NORM in asked:
        if len(asked) > 1 or new:
            raise InvalidArgumentError(
                f"--norms {' '.join(asked)}: {NO_NORM} leaves all balls out; give no norm and no "
                "radius beside it"
            )
        return []
    norms = {perturbation.norm for perturbation in sets}
    missing = [norm for norm in asked if float(norm) not in norms]
    if missing:
        raise InvalidArgumentError(
            f"--norms {missing[0]}: the checkpoint has no set of this norm; give its radius "
            f"with --eps-{missing[0]}"
        )
    for norm in new:
        if norm not in set(map(float, asked)):
            raise InvalidArgumentError(
                f"--norms {' '.join(asked)} leaves out the l_{norm:g} set whose radius is "
                "given; name it too, or leave its radius out"
            )
    return [perturbation for perturbation in sets if perturbation.norm in set(map(float, asked))]
