"""The paper's ablations, one command each.

lambda_2, eta, beta, Joint's alpha, and the components of CURE-Scratch.

    python -m benchmarks.ablation eta --output results/ablation/eta --seeds 0 1 2
    python -m benchmarks.ablation components --data mnist --output runs/components --epochs 70

Each trains and certifies one network per value (and seed) and writes table.json, table.md,
table.png and figure.png. The default is scikit-learn's digits with the settings of
examples/train_digits.py.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lirpa_multinorm.cli import DEFAULTS, guarded
from lirpa_multinorm.cli.arguments import add_data_arguments, in_words_of_flags
from lirpa_multinorm.cli.runs import add_run_arguments, experiment_from
from lirpa_multinorm.experiments.dry_run import plan
from lirpa_multinorm.experiments.flags import add_setting_arguments, given
from lirpa_multinorm.experiments.settings import merge, nested, with_epochs
from lirpa_multinorm.report import line_chart
from lirpa_multinorm.report.methods import SPREAD

LAMBDA_2, ETA, BETA, ALPHA = (
    (1e-5, 0.01, 0.1, 0.3, 0.5, 0.7, 1.0),
    (0, 0.5, 1, 2, 4),
    (0, 0.2, 0.5, 0.8),
    (0, 0.25, 0.5, 0.75, 1),
)
Rows = dict[str, dict[str, Any]]

#: What is varied, and the rows of its table by value; names that are no numbers give bars instead
#: of lines.
ABLATIONS: dict[str, Rows] = {
    "lambda_2": {f"{v:g}": {"loss": "max", "loss_options": {"ratio_2": v}} for v in LAMBDA_2},
    "lambda_2_ball": {
        f"{v:g}": {"loss": "max", "loss_options": {"ratio_2": v, "region_2": "ball"}}
        for v in LAMBDA_2
    },
    "eta": {f"{v:g}": {"loss": "cure", "loss_options": {"eta": v}} for v in ETA},
    "beta": {f"{v:g}": {"loss": "cure", "projection": {"beta": v}} for v in BETA},
    "alpha": {f"{v:g}": {"loss": "joint", "loss_options": {"weights": [1 - v, v]}} for v in ALPHA},
    "components": {
        "Max": {"loss": "max"},
        "Max + BA": {"loss": "cure"},
        "Max + BA + GP": {"loss": "cure", "projection": {"beta": 0.5}},
    },
}


def draw(name: str, table: list, folder: Path) -> None:
    """Draw accuracy against the value that is varied."""
    if name == "components":
        return  # the bars of table.png show it
    columns = [
        column
        for column in table[0]
        if column.startswith(("clean", "certified")) and not column.endswith(SPREAD)
    ]
    values = [float(row["method"]) for row in table]
    line_chart(
        {column: (values, [row[column] for row in table]) for column in columns},
        folder / "figure.png",
        f"Ablation of {name} (n = {table[0]['n']})",
        name,
        "% of test images",
    )


@guarded
def run(args: argparse.Namespace) -> None:
    """Train and certify the values of one ablation."""
    flags = given(args)
    settings = merge(dict(DEFAULTS, train=with_epochs(DEFAULTS["train"], flags)), nested(flags))
    experiment = experiment_from(args, settings)
    if args.dry_run:
        print(plan(experiment, ABLATIONS[args.ablation], args.output))
        return
    with in_words_of_flags(initial="--initial"):
        table = experiment.run(
            args.output,
            ABLATIONS[args.ablation],
            not args.no_progress,
            args.resume,
            args.overwrite,
            args.extend,
        )
    draw(args.ablation, table, Path(args.output))
    print((Path(args.output) / "table.md").read_text(encoding="utf-8"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("ablation", choices=list(ABLATIONS))
    parser.add_argument("--initial", type=Path, help="weights to start from")
    add_data_arguments(parser, DEFAULTS["data"])
    add_run_arguments(parser)
    add_setting_arguments(parser)
    return run(parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
