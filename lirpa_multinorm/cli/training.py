"""The commands ``train``, ``finetune`` and ``presets``, and the command lines of the examples."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..certification import METHODS, CertifySettings
from ..errors import InvalidArgumentError
from ..experiments.comparison import MORE_ROWS, QUICK_METHODS, ROWS, Experiment
from ..experiments.dry_run import plan
from ..experiments.presets import load_preset, preset_names
from ..experiments.settings import (
    SETTINGS,
    Settings,
    add_setting_arguments,
    config_of,
    given,
    merge,
    nested,
    sets_of,
    spec_of,
    with_epochs,
)
from ..losses import accepts
from ..report import markdown_table
from ..training.run_folder import check_choices, described_run
from ..utils import distributed
from .arguments import add_data_arguments, check_device, data_from, guarded, in_words_of_flags

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


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of training that are no settings of the result."""
    parser.add_argument(
        "--output", required=True, help="folder for checkpoints, logs and the table"
    )
    parser.add_argument(
        "--resume", action="store_true", help="go on with what the output folder holds"
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="remove the runs that the output folder holds first",
    )
    parser.add_argument(
        "--extend",
        action="store_true",
        help="with --resume: train runs that had fewer epochs up to the number given now",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help=(
            "check everything, print radius, kappa, learning rate "
            "and the estimated time of every row, and write nothing"
        ),
    )
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[], help="train with each and report means"
    )
    parser.add_argument(
        "--certify-methods",
        nargs="+",
        default=list(QUICK_METHODS),
        metavar="METHOD",
        help=f"bounds that the trained networks are certified by, in order (default: "
        f'{" ".join(QUICK_METHODS)}); "default" is the cascade of certify: {" ".join(METHODS)}',
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--timeout",
        type=float,
        default=distributed.TIMEOUT_SECONDS,
        help="seconds to wait for other processes (torchrun; default: %(default)s)",
    )
    parser.add_argument("--no-progress", action="store_true", help="no progress bars")


def add_train_arguments(parser: argparse.ArgumentParser, default: Settings) -> None:
    """Add everything that ``train`` and the examples understand."""
    add_data_arguments(parser, default["data"])
    parser.add_argument(
        "--preset",
        help=(
            "a recipe of the paper or ours, by name (lirpa-multinorm presets lists them); "
            "with --methods these too, with its network, run and attack"
        ),
    )
    parser.add_argument(
        "--released", action="store_true", help="train as the paper's released code does"
    )
    parser.add_argument(
        "--methods",
        nargs="+",
        choices=[*ROWS, *MORE_ROWS],
        metavar="METHOD",
        help=f"rows of the table (default: {', '.join(ROWS)}; also: {'; '.join(MORE_ROWS)})",
    )
    parser.add_argument(
        "--initial",
        type=Path,
        help=(
            "weights to start from: a checkpoint, or a state dict, bare "
            "or under a usual key such as model_state_dict"
        ),
    )
    add_run_arguments(parser)
    add_setting_arguments(
        parser.add_argument_group("settings", "each overrides the preset or the defaults")
    )


def begun_epochs(args: argparse.Namespace) -> int | None:
    """Return how many epochs the runs in the output folder began with.

    None unless they are to be given more.
    """
    described = described_run(Path(args.output)) if args.extend else None
    if not described:
        return None
    return [
        *(change["epochs"] for change in described.get("continuations", [])),
        described["train"]["epochs"],
    ][0]


def rows_and_settings(args: argparse.Namespace, default: Settings) -> tuple:
    """Return the rows to train and the settings: defaults or preset, then flags."""
    flags, known = given(args), {**ROWS, **MORE_ROWS}
    if args.preset is None:
        if args.released:
            raise InvalidArgumentError(
                "--released needs --preset: it selects the released code's version of a recipe"
            )
        base, rows = default, {name: known[name] for name in args.methods or ROWS}
    else:
        preset = load_preset(args.preset, args.released)
        if preset.initial is not None and args.initial is None:
            raise InvalidArgumentError(
                f"--preset {args.preset} starts from a trained network; train --preset "
                f"{preset.initial} and give its checkpoint with --initial"
            )
        base, rows = preset.settings(), {args.preset: {"loss": preset.train.loss}}
        if args.methods:
            base, row = without_method(base)
            rows = {**{name: known[name] for name in args.methods}, args.preset: row}
    check_flags(flags, rows, base)
    base = dict(base, train=with_epochs(base["train"], flags, begun_epochs(args)))
    common = (
        flags
        if base["train"].get("projection")
        else {
            path: value for path, value in flags.items() if not path.startswith("train.projection.")
        }
    )
    return {name: _overridden(row, flags) for name, row in rows.items()}, merge(
        base, nested(common)
    )


def without_method(settings: Settings) -> tuple[Settings, dict[str, Any]]:
    """Return a recipe without what belongs to its method, and the method's row.

    What other methods train by beside it.

    Lengths of the run, network, optimiser, attack and sizes of the boxes stay.

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
    """Return a row in which flags replace what the row itself says."""
    said = {name: value for name, value in nested(flags).get("train", {}).items() if name in row}
    if "loss_options" in said:
        said["loss_options"] = {
            name: value
            for name, value in said["loss_options"].items()
            if accepts(row["loss"], name)
        }
    return merge(row, said)


def check_flags(
    flags: Mapping[str, Any], rows: Mapping[str, Mapping[str, Any]], settings: Settings
) -> None:
    """Refuse flags that none of the rows could use."""
    losses, words = [row["loss"] for row in rows.values()], {one.path: one.flag for one in SETTINGS}
    for path in flags:
        if path.startswith("train.loss_options.") and not any(
            accepts(loss, path.split(".")[2]) for loss in losses
        ):
            raise InvalidArgumentError(
                f"{words[path]}: no method asked for has this option "
                f"({', '.join(dict.fromkeys(losses))}); leave it out"
            )
    if "train.projection.beta" in flags and not any(
        row.get("projection") or (settings["train"].get("projection") and loss != "natural")
        for row, loss in zip(rows.values(), losses)
    ):
        raise InvalidArgumentError("--beta: no method asked for projects gradients; leave it out")


def experiment_from(
    args: argparse.Namespace, settings: Settings, spec=None, sets=None
) -> Experiment:
    """Build the experiment that settings and arguments describe.

    ``spec`` and ``sets`` win over the settings'.
    """
    check_device(args.device)
    data = data_from(args, settings["data"])
    methods = METHODS if args.certify_methods == ["default"] else args.certify_methods
    return Experiment(
        data,
        spec or spec_of(settings["model"], data),
        sets or sets_of(settings["eps"]),
        config_of(settings["train"]),
        CertifySettings(methods),
        args.device,
        args.seeds,
        args.initial,
    )


def train_and_report(
    args: argparse.Namespace, experiment: Experiment, rows: dict[str, dict[str, Any]]
) -> None:
    """Train and certify, print the table and say where everything is.

    With --dry-run print the plan alone.
    """
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


@guarded
def run_training(args: argparse.Namespace, default: Settings = DEFAULTS) -> None:
    """Train and certify what the arguments ask for."""
    rows, settings = rows_and_settings(args, default)
    with in_words_of_flags(initial="--initial"):
        train_and_report(args, experiment_from(args, settings), rows)


def run_example(description: str, default: Settings) -> int:
    """Parse the command line of an example with its own defaults, and run it.

    Returns the exit code.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_train_arguments(parser, default)
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
