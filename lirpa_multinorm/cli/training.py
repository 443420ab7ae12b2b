"""The commands ``train`` and ``presets``, and the command lines of the examples."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import InvalidArgumentError
from ..experiments.flags import add_setting_groups, default_in, given
from ..experiments.presets import load_preset, preset_names
from ..experiments.rows import ROWS, Rows, all_rows
from ..experiments.settings import Settings, merge, nested, norm_names, with_epochs
from ..experiments.split_sets import SPLIT_SETTINGS
from ..losses import accepts
from ..report import markdown_table
from ..utils.words import Choice
from .arguments import RenamedFlag, add_data_arguments, guarded, in_words_of_flags
from .parser import Parser
from .problem import NO_NORM
from .run_files import add_run_file_argument
from .runs import add_run_arguments, begun_epochs, check_flags, experiment_from, train_and_report
from .split_sets import add_split_arguments, split_settings

#: What ``train`` does without a preset: a small network on scikit-learn's digits.
DEFAULTS: Settings = {
    "data": "digits",
    "eps": {"inf": 0.1, "2": 0.4},
    "model": {"name": "cnn_small"},
    "train": {
        "epochs": 40,
        "batch_size": 64,
        "learning_rate": 2e-3,
        "milestones": [30, 36],
        "loss_options": {"ratio_inf": 0.6},
        "schedule": {"natural_epochs": 2, "anneal_epochs": 15},
    },
}


def add_train_arguments(parser: argparse.ArgumentParser, default: Settings) -> None:
    """Add the arguments of ``train`` and the examples."""
    add_data_arguments(parser, default["data"])
    add_split_arguments(
        parser, "sets beside those of the radii, which --norms chooses; instead of the preset's"
    )
    _add_norms(parser)
    _add_row_arguments(parser, default)
    add_run_arguments(parser)
    add_setting_groups(
        parser,
        "each flag from here on overrides the preset, or else the default",
        default_in(default),
    )


def _add_norms(parser: argparse.ArgumentParser) -> None:
    """Add the argument that leaves radii of the preset or the defaults out."""
    parser.add_argument(
        "--norms",
        nargs="+",
        type=Choice([*norm_names(), NO_NORM]),
        metavar="NORM",
        help=(
            f"train for the sets of these norms only: {', '.join(norm_names())}, or {NO_NORM} "
            "(default: for all that have a radius)"
        ),
    )


def _add_row_arguments(parser: argparse.ArgumentParser, default: Settings) -> None:
    """Add the arguments that say what is trained, and from where it starts."""
    rows = all_rows()
    row = Choice(rows)
    parser.add_argument(
        "--preset",
        metavar="NAME",
        help=(
            "a recipe of the paper or ours, by name (lirpa-multinorm presets lists them); with "
            "--losses these too, with its network, run and attack (default: a small network on "
            f"{default['data']})"
        ),
    )
    parser.add_argument(
        "--released",
        action="store_true",
        help="train a preset as the paper's released code does (default: as the paper says)",
    )
    parser.add_argument(
        "--losses",
        nargs="+",
        type=row,
        metavar="LOSS",
        help=(
            f"rows of the table: {', '.join(rows)} (default: {', '.join(ROWS)}, or the preset's)"
        ),
    )
    parser.add_argument(
        "--methods", action=RenamedFlag, new="--losses", dest="losses", nargs="+", type=row
    )
    parser.add_argument(
        "--initial",
        type=Path,
        metavar="FILE",
        help=(
            "weights to start from: a checkpoint, or a state dict, bare or under a usual key such "
            "as model_state_dict (default: from scratch, or from the row that a row names)"
        ),
    )


def rows_and_settings(args: argparse.Namespace, default: Settings) -> tuple[Rows, Settings]:
    """Return the rows to train and the settings: defaults or preset, then flags.

    Raises:
        InvalidArgumentError: Flags contradict each other, or leave nothing to train for.
    """
    flags = given(args)
    base, rows = _chosen_rows(args, default)
    check_flags(flags, rows, base)
    base = dict(base, train=with_epochs(base["train"], flags, begun_epochs(args)))
    common = flags
    if not base["train"].get("projection"):  # rows without projection take no flag of it
        common = {
            path: value for path, value in flags.items() if not path.startswith("train.projection.")
        }
    settings = merge(merge(base, nested(common)), split_settings(args))
    eps = _chosen_radii(args, settings)
    idle = [norm for norm in settings["eps"] if norm not in eps]
    return (
        {name: _without(idle, flags, _overridden(row, flags)) for name, row in rows.items()},
        dict(settings, eps=eps, train=_without(idle, flags, settings["train"])),
    )


def _without(norms: Sequence[str], flags: Mapping[str, Any], train: Settings) -> Settings:
    """Return training settings without the options of norms that are left out.

    What a flag gives stays, and is refused later.
    """
    options = train.get("loss_options")
    if not norms or not options:
        return train
    kept = {
        name: value
        for name, value in options.items()
        if name.rpartition("_")[2] not in norms or f"train.loss_options.{name}" in flags
    }
    return dict(train, loss_options=kept)


def _chosen_radii(args: argparse.Namespace, settings: Settings) -> dict[str, Any]:
    """Return the radii of the norms that are asked for."""
    eps, asked = settings["eps"], args.norms
    if asked is None:
        return eps
    if NO_NORM in asked and len(asked) > 1:
        raise InvalidArgumentError(
            f"--norms {' '.join(asked)}: {NO_NORM} leaves all balls out; give no norm beside it"
        )
    missing = next((norm for norm in asked if norm not in (*eps, NO_NORM)), None)
    if missing is not None:
        raise InvalidArgumentError(
            f"--norms {missing}: this norm has no radius; give it with --eps-{missing}"
        )
    if NO_NORM in asked and not any(settings.get(name) for name in SPLIT_SETTINGS):
        raise InvalidArgumentError(
            f"--norms {NO_NORM} leaves no set; give transforms or a patch, or leave it out"
        )
    return {norm: radius for norm, radius in eps.items() if norm in asked}


def _chosen_rows(
    args: argparse.Namespace, default: Settings
) -> tuple[Settings, dict[str, dict[str, Any]]]:
    """Return the settings of the defaults or the preset, and the rows that the flags name."""
    available = all_rows()
    if args.preset is None:
        if args.released:
            raise InvalidArgumentError(
                "--released needs --preset: it selects the released code's version of a recipe"
            )
        return default, {name: available[name] for name in args.losses or ROWS}
    preset = load_preset(args.preset, args.released)
    if preset.initial is not None and args.initial is None:
        raise InvalidArgumentError(
            f"--preset {args.preset} starts from a trained network; train --preset "
            f"{preset.initial} and give its checkpoint with --initial"
        )
    if not args.losses:
        return preset.settings(), {args.preset: {"loss": preset.train.loss}}
    base, row = without_method(preset.settings())
    return base, {**{name: available[name] for name in args.losses}, args.preset: row}


def without_method(settings: Settings) -> tuple[Settings, dict[str, Any]]:
    """Return a recipe without the settings of its loss, and the loss's row.

    Other losses train by these settings beside it: lengths of the run, network, optimiser, attack
    and sizes of the boxes.

    Example:
        >>> recipe, row = without_method(load_preset("mnist-union-0.1-0.5").settings())
        >>> sorted(recipe["train"]["loss_options"]), row["loss"], row["loss_options"]["region_2"]
        (['attack', 'ratio_inf'], 'joint', 'lipschitz')
    """
    train = dict(settings["train"])
    row = {name: train.pop(name) for name in ("projection", "loss_options") if train.get(name)}
    kept = {
        name: value
        for name, value in row.get("loss_options", {}).items()
        if name == "attack" or name.startswith("ratio_")
    }
    return dict(settings, train=dict(train, loss_options=kept)), {"loss": train["loss"], **row}


def _overridden(row: Mapping[str, Any], flags: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row in which flags replace the row's settings."""
    changes = {name: value for name, value in nested(flags).get("train", {}).items() if name in row}
    if "loss_options" in changes:
        changes["loss_options"] = {
            name: value
            for name, value in changes["loss_options"].items()
            if accepts(row["loss"], name)
        }
    return merge(row, changes)


@guarded
def run_training(args: argparse.Namespace, default: Settings = DEFAULTS) -> None:
    """Train and certify as the arguments say."""
    rows, settings = rows_and_settings(args, default)
    with in_words_of_flags(initial="--initial"):
        train_and_report(args, experiment_from(args, settings), rows)


def run_example(description: str, default: Settings) -> int:
    """Parse the command line of an example with other defaults, and run it.

    Args:
        description: The example's description, for its help.
        default: Its settings, instead of :data:`DEFAULTS`.

    Returns:
        The exit code.
    """
    parser = Parser(
        usage="%(prog)s --output FOLDER [flag ...]",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_train_arguments(parser, default)
    add_run_file_argument(parser)
    return run_training(parser.parse_args(), default)


def run_presets(_: argparse.Namespace) -> int:
    """Print the presets' names and titles; returns the exit code."""
    print(
        markdown_table(
            [{"preset": name, "title": load_preset(name).title} for name in preset_names()],
            ["preset", "title"],
        )
    )
    return 0
