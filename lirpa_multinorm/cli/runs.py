"""What ``train`` and ``finetune`` share: the flags of a run, its experiment and its report."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..certification import METHODS, STAGES, CertifySettings
from ..errors import InvalidArgumentError
from ..experiments.comparison import QUICK_METHODS, Experiment
from ..experiments.dry_run import plan
from ..experiments.rows import Rows
from ..experiments.setting_sources import run_settings
from ..experiments.settings import Settings, config_of, spec_of
from ..experiments.split_sets import all_sets_of
from ..losses import accepts
from ..perturbations.described import AnySet
from ..training import ModelSpec
from ..training.run_folder import check_choices, described_run
from ..utils import distributed
from .arguments import add_device_arguments, check_device, data_from
from .split_sets import in_words_of_split_flags


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of training that do not change the networks."""
    _add_folder_arguments(parser)
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help=(
            "check everything, print radius, kappa, learning rate "
            "and the estimated time of every row, and write nothing (default: train)"
        ),
    )
    parser.add_argument(
        "--seeds",
        type=int,
        nargs="+",
        default=[],
        metavar="N",
        help="train every row with each and report means (default: --seed alone)",
    )
    parser.add_argument(
        "--certify-methods",
        nargs="+",
        default=list(QUICK_METHODS),
        metavar="METHOD",
        help=(
            f"bounds that the trained networks are certified by, in order: {', '.join(STAGES)}; "
            f'"default" is the cascade of certify, {" ".join(METHODS)} '
            f"(default: {' '.join(QUICK_METHODS)})"
        ),
    )
    add_device_arguments(parser)
    parser.add_argument(
        "--timeout",
        type=float,
        default=distributed.TIMEOUT_SECONDS,
        metavar="SECONDS",
        help="how long to wait for other processes of torchrun (default: %(default)s)",
    )


def _add_folder_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the output folder and of the runs that it holds already."""
    parser.add_argument(
        "--output",
        required=True,
        metavar="FOLDER",
        help="folder for checkpoints, logs and the table (required)",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on with what the output folder holds (default: refuse a folder with runs)",
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="remove the runs that the output folder holds first (default: refuse such a folder)",
    )
    parser.add_argument(
        "--extend",
        action="store_true",
        help=(
            "with --resume: train runs that had fewer epochs up to the number given now "
            "(default: refuse another number of epochs)"
        ),
    )


def begun_epochs(args: argparse.Namespace) -> int | None:
    """Return how many epochs the runs in the output folder began with; None without --extend."""
    described = described_run(Path(args.output)) if args.extend else None
    if not described:
        return None
    continuations = described.get("continuations", [])
    first = continuations[0] if continuations else described["train"]
    return first["epochs"]


def flag_of(path: str) -> str:
    """Return the flag that gives a setting of a run."""
    return next(setting.flag for setting in run_settings() if setting.path == path)


def check_flags(flags: Mapping[str, Any], rows: Rows, settings: Settings) -> None:
    """Raise InvalidArgumentError for a flag that none of the rows can use."""
    losses = [row["loss"] for row in rows.values()]
    for path in flags:
        if path.startswith("train.loss_options.") and not any(
            accepts(loss, path.split(".")[2]) for loss in losses
        ):
            raise InvalidArgumentError(
                f"{flag_of(path)}: no method asked for has this option "
                f"({', '.join(dict.fromkeys(losses))}); leave it out"
            )
    projection = next((path for path in flags if path.startswith("train.projection.")), None)
    if projection is not None and not any(
        row.get("projection") or (settings["train"].get("projection") and loss != "natural")
        for row, loss in zip(rows.values(), losses)
    ):
        raise InvalidArgumentError(
            f"{flag_of(projection)}: no method asked for projects gradients; leave it out"
        )


def experiment_from(
    args: argparse.Namespace,
    settings: Settings,
    spec: ModelSpec | None = None,
    sets: Sequence[AnySet] | None = None,
) -> Experiment:
    """Build the experiment that settings and arguments describe.

    Args:
        args: The arguments.
        settings: Data, sets, network and training settings.
        spec: A network instead of the settings'.
        sets: Sets instead of the settings'.
    """
    check_device(args.device)
    data = data_from(args, settings["data"])
    methods = METHODS if args.certify_methods == ["default"] else args.certify_methods
    with in_words_of_split_flags():
        sets = sets or all_sets_of(settings)
    return Experiment(
        data,
        spec or spec_of(settings["model"], data),
        sets,
        config_of(settings["train"]),
        CertifySettings(methods),
        args.device,
        args.seeds,
        args.initial,
    )


def train_and_report(args: argparse.Namespace, experiment: Experiment, rows: Rows) -> None:
    """Train and certify, and print the table and the files; with --dry-run print the plan alone."""
    check_choices(args.resume, args.overwrite, args.extend)
    if args.dry_run:
        print(plan(experiment, rows, args.output))
        return
    with distributed.process_group(args.device, args.timeout):
        table = experiment.run(
            args.output, rows, not args.no_progress, args.resume, args.overwrite, args.extend
        )
    if table:
        print(f"\n{(Path(args.output) / 'table.md').read_text(encoding='utf-8')}")
        print(
            f"table, figure, checkpoints and logs: {args.output} (table.json, table.md, table.png)"
        )
