"""The command ``radius``."""

from __future__ import annotations

import argparse

from ..certification import certified_radii
from ..certification.radii import STEPS
from ..data import to_unit
from ..errors import InvalidArgumentError
from ..perturbations.described import has_radius
from ..report import markdown_table
from ..utils.words import whole
from .arguments import add_device_arguments, check_device, guarded
from .certification import add_cascade_arguments, settings_of
from .problem import add_problem_arguments, problem_of


def add_radius_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``radius``."""
    add_problem_arguments(parser)
    add_device_arguments(parser)
    parser.add_argument(
        "--steps",
        type=whole,
        default=STEPS,
        metavar="N",
        help=(
            "bisections after the largest radius, which is that of the set; each halves the gap "
            f"between certified and not certified (default: {STEPS})"
        ),
    )
    parser.add_argument(
        "--output",
        metavar="FOLDER",
        help="for radii.json and the records of every step (default: print the summary only)",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on with the records that the output folder holds (default: refuse such a folder)",
    )
    add_cascade_arguments(parser)


@guarded
def run_radius(args: argparse.Namespace) -> None:
    """Find the largest certified radius of every image, and print what they are in the mean."""
    if args.resume and args.output is None:
        raise InvalidArgumentError("--resume needs --output: the folder of records")
    settings = settings_of(args)
    check_device(args.device)
    network, sets, data = problem_of(args)
    balls = [entry for entry in sets if has_radius(entry)]
    if len(balls) < len(sets):
        raise InvalidArgumentError(
            "radius takes balls only; name the norms of the checkpoint with --norms"
        )
    radii = certified_radii(
        network.model.to(args.device),
        to_unit(data.x_test).to(args.device),
        data.y_test.to(args.device),
        balls,
        settings,
        steps=args.steps,
        folder=args.output,
        resume=args.resume,
        progress=not args.no_progress,
    )
    print(f"{network.name} on {len(data.x_test)} images of {data.name}\n")
    rows = radii.summary()
    print(markdown_table(rows, list(rows[0]), dict.fromkeys(list(rows[0])[1:], ".4g")))
    if args.output is not None:
        print(f"\nradii.json and records of every step: {args.output}")
