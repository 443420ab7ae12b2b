"""The command ``tune``."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from ..certification import METHODS, STAGES, CertifySettings
from ..data import ImageData
from ..errors import InvalidArgumentError
from ..experiments.comparison import QUICK_METHODS, Experiment
from ..experiments.flags import add_setting_groups, default_in, given
from ..experiments.rows import all_rows
from ..experiments.settings import config_of
from ..training import ModelSpec
from ..training.config import sets_from
from ..training.run_folder import digest
from ..tuning import Tuning, finished_points, front_of, space_of, train_chosen
from ..tuning.front import FILES
from ..tuning.study import recorded_settings
from ..utils.words import Choice
from .arguments import (
    add_data_arguments,
    add_device_arguments,
    check_device,
    data_from,
    guarded,
    in_words_of_flags,
)
from .runs import experiment_from
from .split_sets import add_split_arguments
from .training import DEFAULTS, rows_and_settings

LOSS, TRIALS = "Joint", 20
#: Share of the training images that is held out where no number is given.
SHARE = 5
#: Arguments of train that a study has no use for.
_OF_TRAIN: dict[str, Any] = {"initial": None, "extend": False, "seeds": [], "norms": None}


def add_tune_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``tune``."""
    add_data_arguments(parser, DEFAULTS["data"])
    _add_study_arguments(parser)
    _add_recipe_arguments(parser)
    add_device_arguments(parser)
    add_split_arguments(parser, "sets beside those of the radii; instead of the preset's")
    add_setting_groups(
        parser,
        "each flag from here on overrides the preset, or else the default, in all trials",
        default_in(DEFAULTS),
    )
    parser.set_defaults(**_OF_TRAIN)


def _add_study_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the study: its folder, trials, space and choice."""
    parser.add_argument(
        "--output",
        required=True,
        metavar="FOLDER",
        help=(
            "folder of the study (required); the same command again goes on with it, and several "
            "processes at the same time share it"
        ),
    )
    parser.add_argument(
        "--trials",
        type=int,
        default=TRIALS,
        metavar="N",
        help="how many trials, of all processes together (default: %(default)s)",
    )
    parser.add_argument(
        "--search",
        nargs="+",
        default=[],
        metavar="FLAG=RANGE",
        help=(
            "what is searched, by names of flags: ratio-inf=0.05:0.8, with :log evenly in the "
            'logarithm, or region-2=box,ball; beside "default" more than that '
            "(default: learning rate, l1, kappa and options of the loss)"
        ),
    )
    _add_choice_arguments(parser)


def _add_choice_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that choose a trial."""
    parser.add_argument(
        "--choose",
        type=int,
        metavar="TRIAL",
        help=(
            "train this trial's settings on all training images and certify on the test images, "
            "with other flags than those of data and certification left out (default: tune)"
        ),
    )
    parser.add_argument(
        "--train-best",
        action="store_true",
        help=(
            "--choose the trial of the front whose certified union accuracy is best (default: tune)"
        ),
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="with --choose: go on with what its folder holds (default: refuse that)",
    )


def _add_recipe_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that say which loss is tuned, from which settings on."""
    parser.add_argument(
        "--preset",
        metavar="NAME",
        help=(
            "the recipe whose settings are the first trial, and the others' but for what is "
            f"searched (default: a small network on {DEFAULTS['data']})"
        ),
    )
    parser.add_argument(
        "--released",
        action="store_true",
        help="take a preset as the paper's released code does (default: as the paper says)",
    )
    parser.add_argument(
        "--loss",
        type=Choice(all_rows()),
        metavar="LOSS",
        help=f"what is tuned: {', '.join(all_rows())} (default: {LOSS}, or the preset's)",
    )
    parser.add_argument(
        "--certify-methods",
        nargs="+",
        metavar="METHOD",
        help=(
            f"bounds that trials are certified by, in order: {', '.join(STAGES)}; "
            f'"default" is the cascade of certify, {" ".join(METHODS)} '
            f"(default: {' '.join(QUICK_METHODS)}; with --choose those of the study)"
        ),
    )


@guarded
def run_tuning(args: argparse.Namespace) -> None:
    """Run trials and print the front, or train and certify a chosen trial."""
    if args.train_best and args.choose is not None:
        raise InvalidArgumentError(
            "--choose and --train-best contradict each other; give only one of them"
        )
    if args.train_best or args.choose is not None:
        _choose(args)
        return
    if args.resume:
        raise InvalidArgumentError(
            "--resume goes with --choose; a study goes on by the same command again"
        )
    points = tuning_from(args).run(args.output, args.trials, not args.no_progress)
    folder = Path(args.output)
    if not points:
        raise InvalidArgumentError(
            f"--trials {args.trials}: none has come to a result; {folder / 'trials'} says why"
        )
    print(f"\n{(folder / FILES[1]).read_text(encoding='utf-8')}")
    print(f"front and trials: {folder} ({', '.join(FILES)})")


def tuning_from(args: argparse.Namespace) -> Tuning:
    """Return the study that the arguments describe."""
    args = argparse.Namespace(**vars(args))
    if args.certify_methods is None:
        args.certify_methods = list(QUICK_METHODS)
    args.losses = [args.loss or LOSS] if args.loss or not args.preset else None
    rows, settings = rows_and_settings(args, DEFAULTS)
    name = args.loss or args.preset or LOSS
    row = rows[name]
    if "initial" in row:
        raise InvalidArgumentError(
            f"--loss {name} starts from another row's network; tune its loss, --loss {row['loss']}"
        )
    validation, args.validation = args.validation, None
    experiment = experiment_from(args, settings)
    data = experiment.data
    with in_words_of_flags(n_validation="--validation"):
        count = len(data.x_train) // SHARE if validation is None else validation
        held_out = data.split(count)
    config = experiment.row_config(row)
    space = space_of(args.search, config, experiment.perturbations, given(args))
    return Tuning(data, dataclasses.replace(experiment, data=held_out, config=config), space)


def _choose(args: argparse.Namespace) -> None:
    """Train and certify the trial that is chosen, and print its table."""
    for name in ("preset", "loss", "search", "validation"):
        _refuse(name, getattr(args, name) not in (None, []))
    for path in given(args):
        _refuse(path.rpartition(".")[2], True)
    check_device(args.device)
    settings = recorded_settings(args.output)
    data = data_from(args, settings["name"])
    _check_images(data, settings)
    experiment = _recorded_experiment(args, settings, data)
    trial = _best(Path(args.output)) if args.train_best else args.choose
    train_chosen(args.output, trial, data, experiment, not args.no_progress, args.resume)
    folder = Path(args.output) / f"chosen_{trial}"
    print(f"\n{(folder / 'table.md').read_text(encoding='utf-8')}")
    print(
        f"trial {trial}, trained on all {len(data.x_train)} training images and certified on "
        f"{len(data.x_test)} test images, which no trial has seen: {folder}"
    )


def _refuse(name: str, is_given: bool) -> None:
    """Raise InvalidArgumentError for a flag that contradicts --choose."""
    if is_given:
        raise InvalidArgumentError(
            f"--{name.replace('_', '-')} contradicts --choose, which takes the study's settings; "
            "leave it out"
        )


def _check_images(data: ImageData, settings: dict[str, Any]) -> None:
    """Raise InvalidArgumentError unless the training images are the study's."""
    if digest(data.x_train, data.y_train) != settings["train_sha256"]:
        raise InvalidArgumentError(
            f"--data: the {len(data.x_train)} training images of {data.name!r} are not those of "
            f"the study ({settings['name']}, {settings['n_train'] + settings['n']}); give its "
            "--data and --n-train"
        )


def _recorded_experiment(
    args: argparse.Namespace, settings: dict[str, Any], data: ImageData
) -> Experiment:
    """Return a study's experiment, with the methods of certification that flags give."""
    methods = args.certify_methods or settings["certification"]["methods"]
    return Experiment(
        data,
        ModelSpec.from_dict(settings["model"]),
        sets_from(settings["perturbations"]),
        config_of(settings["train"]),
        CertifySettings(METHODS if methods == ["default"] else methods),
        args.device,
    )


def _best(folder: Path) -> int:
    """Return the trial of the front that certifies most."""
    front = front_of(finished_points(folder))
    if not front:
        raise InvalidArgumentError(f"--train-best: the study in {str(folder)!r} has no front yet")
    return front[-1]["trial"]
