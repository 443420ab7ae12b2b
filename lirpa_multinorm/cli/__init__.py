"""Command line: ``lirpa-multinorm train``, ``finetune``, ``presets``, ``certify``, ``report``, ``export`` and
``import``."""

from __future__ import annotations

import argparse
from typing import Optional, Sequence

from .arguments import EXIT_ERROR, EXIT_INTERRUPTED, guarded
from .certification import add_certification_arguments, run_certification
from .report import add_report_arguments, run_report
from .training import (DEFAULTS, add_finetune_arguments, add_train_arguments, finetune_example, run_example,
                       run_finetuning, run_presets, run_training)
from .verifier import add_export_arguments, add_import_arguments, run_export, run_import

__all__ = ["DEFAULTS", "EXIT_ERROR", "EXIT_INTERRUPTED", "finetune_example", "guarded", "main", "run_example"]


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Run the command line; returns the exit code.

    Args:
        arguments: Command-line arguments; None reads them from the process.

    Returns:
        0, or 2 after an error of the user's, or 130 after an interruption.
    """
    parser = argparse.ArgumentParser(prog="lirpa-multinorm", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    training = commands.add_parser("train", help="train a preset, or losses side by side, and certify")
    add_train_arguments(training, DEFAULTS)
    training.set_defaults(run=run_training)
    finetuning = commands.add_parser("finetune", help="fine-tune a single-norm network for the union of norms")
    add_finetune_arguments(finetuning)
    finetuning.set_defaults(run=run_finetuning)
    commands.add_parser("presets", help="list the recipes").set_defaults(run=run_presets)
    certification = commands.add_parser("certify", help="certify a checkpoint against one norm or a union of norms")
    add_certification_arguments(certification)
    certification.set_defaults(run=run_certification)
    report = commands.add_parser("report", help="tables and figures of recorded certifications")
    add_report_arguments(report)
    report.set_defaults(run=run_report)
    export = commands.add_parser("export", help="write problems for the complete verifier alpha-beta-CROWN")
    add_export_arguments(export)
    export.set_defaults(run=run_export)
    taking = commands.add_parser("import", help="take results of alpha-beta-CROWN into the records of certify")
    add_import_arguments(taking)
    taking.set_defaults(run=run_import)
    args = parser.parse_args(arguments)
    return args.run(args)
