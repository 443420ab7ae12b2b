"""The command ``report``."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..report import certification_report, write_csv
from .arguments import guarded, in_words_of_flags


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
    parser.add_argument(
        "--csv",
        metavar="FILE",
        help="for a table of all runs, one line per image and set (default: none)",
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
    if args.csv is not None:
        with in_words_of_flags(path="--csv"):
            print(f"\none line per image and set: {write_csv(runs, args.csv)}")
