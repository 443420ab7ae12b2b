"""The command ``report``."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..report import certification_report
from .arguments import guarded


def add_report_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``report``."""
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help=(
            "folder with records.jsonl, written by certify "
            "--output; NAME=FOLDER gives it another name than the folder's"
        ),
    )
    parser.add_argument(
        "--output",
        metavar="FOLDER",
        help="for report.md, report.json and figures (default: print the report only)",
    )


@guarded
def run_report(args: argparse.Namespace) -> None:
    """Print the report, and write it if asked to."""
    runs = [
        tuple(run.split("=", 1)) if "=" in run and not Path(run).exists() else run
        for run in args.runs
    ]
    print(certification_report(runs, args.output))
    if args.output is not None:
        print(f"\nreport.md, report.json and figures: {args.output}")
