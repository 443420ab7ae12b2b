"""The command line ``lirpa-multinorm``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

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


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code.

    Args:
        arguments: Command-line arguments; None reads them from the process.

    Returns:
        0, or 2 after an error of the user's, or 130 after an interruption.
    """
    parser = argparse.ArgumentParser(prog="lirpa-multinorm", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("presets", help="list the recipes").set_defaults(run=run_presets)
    for name, add_arguments, run, about in (
        (
            "train",
            lambda command: add_train_arguments(command, DEFAULTS),
            run_training,
            "train a preset, or losses side by side, and certify",
        ),
        (
            "finetune",
            add_finetune_arguments,
            run_finetuning,
            "fine-tune a single-norm network for the union of norms",
        ),
        (
            "certify",
            add_certification_arguments,
            run_certification,
            "certify a checkpoint against one norm or a union of norms",
        ),
        (
            "report",
            add_report_arguments,
            run_report,
            "tables and figures of recorded certifications",
        ),
        (
            "export",
            add_export_arguments,
            run_export,
            "write problems for the complete verifier alpha-beta-CROWN",
        ),
        (
            "import",
            add_import_arguments,
            run_import,
            "take results of alpha-beta-CROWN into the records of certify",
        ),
    ):
        command = commands.add_parser(name, help=about)
        add_arguments(command)
        command.set_defaults(run=run)
    args = parser.parse_args(arguments)
    return args.run(args)
