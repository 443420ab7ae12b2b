"""The command line ``lirpa-multinorm``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Callable, NamedTuple

from .arguments import EXIT_ERROR, EXIT_INTERRUPTED, guarded
from .certification import add_certification_arguments, run_certification
from .finetuning import add_finetune_arguments, finetune_example, run_finetuning
from .parser import Parser
from .pretrained import add_pretrained_arguments, run_pretrained
from .radii import add_radius_arguments, run_radius
from .report import add_report_arguments, run_report
from .run_files import add_run_file_argument
from .training import DEFAULTS, add_train_arguments, run_example, run_presets, run_training
from .tuning import add_tune_arguments, run_tuning
from .verifier import add_export_arguments, add_import_arguments, run_export, run_import

__all__ = [
    "COMMANDS",
    "DEFAULTS",
    "EXIT_ERROR",
    "EXIT_INTERRUPTED",
    "finetune_example",
    "guarded",
    "main",
    "run_example",
]


class Command(NamedTuple):
    """A command: how it is called, its line in the help, what adds its arguments and runs it."""

    name: str
    usage: str
    help: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


COMMANDS = (
    Command("presets", "", "list the recipes", lambda parser: None, run_presets),
    Command(
        "pretrained",
        "[NAME]",
        "list the pretrained networks, or print a network's card",
        add_pretrained_arguments,
        run_pretrained,
    ),
    Command(
        "train",
        "--output FOLDER [flag ...]",
        "train a preset, or losses side by side, and certify",
        lambda parser: add_train_arguments(parser, DEFAULTS),
        run_training,
    ),
    Command(
        "tune",
        "--output FOLDER [flag ...]",
        "search settings of a loss by clean against certified accuracy",
        add_tune_arguments,
        run_tuning,
    ),
    Command(
        "finetune",
        "CHECKPOINT --output FOLDER [flag ...]",
        "fine-tune a single-norm network for the union of norms",
        add_finetune_arguments,
        run_finetuning,
    ),
    Command(
        "certify",
        "NETWORK [flag ...]",
        "certify a network against one norm or a union of norms",
        add_certification_arguments,
        run_certification,
    ),
    Command(
        "radius",
        "NETWORK [flag ...]",
        "find the largest certified radius of every image by bisection",
        add_radius_arguments,
        run_radius,
    ),
    Command(
        "report",
        "RUN [RUN ...] [flag ...]",
        "tables and figures of recorded certifications",
        add_report_arguments,
        run_report,
    ),
    Command(
        "export",
        "NETWORK --output FOLDER [flag ...]",
        "write problems for the complete verifier alpha-beta-CROWN",
        add_export_arguments,
        run_export,
    ),
    Command(
        "import",
        "NETWORK --records FOLDER --problem FOLDER --results PATH [flag ...]",
        "take results of alpha-beta-CROWN into the records of certify",
        add_import_arguments,
        run_import,
    ),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code.

    Args:
        arguments: Command-line arguments; None reads them from the process.

    Returns:
        0, or 2 after an error of the user's, or 130 after an interruption.
    """
    parser = Parser(prog="lirpa-multinorm", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for command in COMMANDS:
        subparser = commands.add_parser(
            command.name,
            help=command.help,
            description=f"{command.help[0].upper()}{command.help[1:]}.",
            usage=f"%(prog)s {command.usage}".strip(),
        )
        command.add_arguments(subparser)
        if command.name != "presets":
            add_run_file_argument(subparser)
        subparser.set_defaults(run=command.run)
    args = parser.parse_args(arguments)
    return args.run(args)
