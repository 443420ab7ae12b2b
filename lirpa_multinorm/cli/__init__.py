"""The command line ``lirpa-multinorm``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Callable, NamedTuple

from .arguments import EXIT_ERROR, EXIT_INTERRUPTED, guarded
from .certification import add_certification_arguments, run_certification
from .finetuning import add_finetune_arguments, finetune_example, run_finetuning
from .report import add_report_arguments, run_report
from .training import DEFAULTS, add_train_arguments, run_example, run_presets, run_training
from .verifier import add_export_arguments, add_import_arguments, run_export, run_import

__all__ = [
    "DEFAULTS",
    "EXIT_ERROR",
    "EXIT_INTERRUPTED",
    "finetune_example",
    "guarded",
    "main",
    "run_example",
]


class Command(NamedTuple):
    """A command: its line in the help, what adds its arguments, and what runs it."""

    name: str
    help: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


COMMANDS = (
    Command("presets", "list the recipes", lambda parser: None, run_presets),
    Command(
        "train",
        "train a preset, or losses side by side, and certify",
        lambda parser: add_train_arguments(parser, DEFAULTS),
        run_training,
    ),
    Command(
        "finetune",
        "fine-tune a single-norm network for the union of norms",
        add_finetune_arguments,
        run_finetuning,
    ),
    Command(
        "certify",
        "certify a checkpoint against one norm or a union of norms",
        add_certification_arguments,
        run_certification,
    ),
    Command(
        "report", "tables and figures of recorded certifications", add_report_arguments, run_report
    ),
    Command(
        "export",
        "write problems for the complete verifier alpha-beta-CROWN",
        add_export_arguments,
        run_export,
    ),
    Command(
        "import",
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
    parser = argparse.ArgumentParser(prog="lirpa-multinorm", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for command in COMMANDS:
        subparser = commands.add_parser(command.name, help=command.help)
        command.add_arguments(subparser)
        subparser.set_defaults(run=command.run)
    args = parser.parse_args(arguments)
    return args.run(args)
