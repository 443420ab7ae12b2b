"""The command ``certify``."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from ..attacks import AttackSettings
from ..certification import EVALUATION_ATTACKS, NOT_RUN, CertifySettings, certify, certify_to
from ..data import to_unit
from ..errors import InvalidArgumentError
from ..experiments.flags import add_certification_settings, given
from ..utils import distributed
from ..utils.environment import environment
from .arguments import add_device_arguments, check_device, guarded
from .problem import add_problem_arguments, problem_of
from .split_sets import add_split_arguments
from .summary import show

#: How long the processes of torchrun may differ in their work: they exchange nothing.
_PATIENCE_SECONDS = 7 * 24 * 3600.0


def add_certification_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``certify``."""
    add_problem_arguments(parser)
    add_split_arguments(parser, "sets beside the checkpoint's; --norms none leaves those out")
    add_device_arguments(parser)
    _add_record_arguments(parser)
    add_cascade_arguments(parser)


def add_cascade_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of attacks and bounds."""
    losses = " and ".join(attack.loss for attack in EVALUATION_ATTACKS)
    settings = parser.add_argument_group(
        "certification",
        f"what is tried on every image: attacks with the losses {losses} in turn, then bounds",
    )
    settings.add_argument(
        "--no-attack",
        action="store_true",
        help="search no adversarial examples (default: search them first)",
    )
    add_certification_settings(settings)


def _add_record_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the output folder and of the processes that share it."""
    parser.add_argument(
        "--output",
        metavar="FOLDER",
        help=(
            "for records.jsonl (one line per image, as they come), summary.json and summary.md "
            "(default: print the summary only)"
        ),
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on with the records that the output folder holds (default: refuse such a folder)",
    )
    parser.add_argument(
        "--shard",
        metavar="I/N",
        help=(
            "do every Nth batch from the Ith on (from 0), for N processes "
            "with the same output folder; the last one merges (default: do all)"
        ),
    )


@guarded
def run_certification(args: argparse.Namespace) -> None:
    """Certify a checkpoint, print the accuracies, and record everything if asked to."""
    shard = _shard_of(args)
    settings = settings_of(args)
    check_device(args.device)
    network, sets, data = problem_of(args)
    about = {
        "checkpoint": network.name,
        "data": data.name,
        "settings": settings,
        "environment": environment(args.device),
    }
    progress = not args.no_progress
    with distributed.process_group(args.device, _PATIENCE_SECONDS):
        images = to_unit(data.x_test).to(args.device), data.y_test.to(args.device)
        problem = network.model.to(args.device), *images, sets, settings
        if args.output is None:
            show(certify(*problem, progress), about)
            return
        result = certify_to(
            args.output, *problem, shard=shard, resume=args.resume, progress=progress
        )
        open_images = int(result.is_status(NOT_RUN).any(0).sum())
        if open_images and (shard or distributed.world_size() > 1):
            print(
                f"{len(result) - open_images} of {len(result)} images are recorded by this shard in"
                f" {args.output}; the last shard to finish merges all"
            )
            return
        show(result, about, Path(args.output))


def settings_of(args: argparse.Namespace) -> CertifySettings:
    """Return how to certify, as the flags say."""
    flags = given(args, "certify.")
    fields = {name: value for name, value in flags.items() if not name.startswith("attack.")}
    return CertifySettings(**{"attack": _attacks_of(args), **fields})


def _shard_of(args: argparse.Namespace) -> tuple[int, int] | None:
    """Return (i, n) of --shard, and check what needs an output folder."""
    if args.output is None and (args.resume or args.shard):
        raise InvalidArgumentError(
            f"{'--resume' if args.resume else '--shard'} needs --output: the folder of records"
        )
    if args.output is not None and Path(args.output).suffix in (".json", ".jsonl", ".md"):
        raise InvalidArgumentError(
            f"--output {args.output}: name a folder; summary.json is written in it"
        )
    if args.shard is None:
        return None
    index, _, count = args.shard.partition("/")
    try:
        return int(index), int(count)
    except ValueError:
        raise InvalidArgumentError(
            f"--shard {args.shard}: give I/N, such as 0/4 for the first of four"
        ) from None


def _attacks_of(args: argparse.Namespace) -> tuple[AttackSettings, ...] | None:
    """Return the attacks that the flags describe; None for no attack."""
    flags = given(args, "certify.attack.")
    if args.no_attack:
        if flags:
            flag = f"--attack-{next(iter(flags)).replace('_', '-')}"
            raise InvalidArgumentError(
                f"--no-attack and {flag} contradict each other; leave one of them out"
            )
        return None
    return tuple(dataclasses.replace(attack, **flags) for attack in EVALUATION_ATTACKS)
