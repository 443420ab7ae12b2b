"""The command ``finetune``, and the command line of its example."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import InvalidArgumentError, LirpaMultinormError
from ..experiments.flags import add_setting_groups, given
from ..experiments.rows import shortened
from ..experiments.settings import merge, nested, with_epochs, with_radii
from ..losses import accepts
from ..perturbations.described import AnySet
from ..training import Checkpoint, TrainConfig, load_checkpoint
from ..training.checkpoint import read_weights
from .arguments import VALIDATION, add_data_arguments, guarded, in_words_of_flags, loadable_name
from .parser import Parser
from .run_files import add_run_file_argument
from .runs import (
    add_run_arguments,
    begun_epochs,
    check_flags,
    experiment_from,
    flag_of,
    train_and_report,
)
from .training import DEFAULTS

FINETUNE_SHARE = 0.2  # of the epochs of training from scratch, as in the paper
#: Defaults of fine-tuning that are not the checkpoint's.
_FINETUNING = {
    "train.epochs": "a fifth of the checkpoint's",
    "train.loss_options.eta": "0.5",
    "train.loss_options.combine": "max",
    "train.projection.beta": "no gradient projection",
}


def add_finetune_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``finetune``."""
    parser.add_argument(
        "initial",
        type=Path,
        metavar="CHECKPOINT",
        help=(
            "checkpoint of this package, or a plain state dict (then say --model, --data and radii)"
        ),
    )
    add_data_arguments(parser, "what the checkpoint was trained on")
    add_run_arguments(parser)
    add_setting_groups(
        parser,
        "each flag from here on overrides the checkpoint's setting, over a fifth of its epochs; a "
        "radius of a norm that it has no set of adds one",
        lambda setting: _FINETUNING.get(setting.path, "the checkpoint's"),
    )


@guarded
def run_finetuning(args: argparse.Namespace) -> None:
    """Fine-tune a network for the union of norms.

    The loss is Max with bound alignment, eta 0.5, over a fifth of the epochs.
    """
    flags = given(args)
    checkpoint = _checkpoint(args.initial)
    path = next((path for path in flags if path.startswith("model.")), None)
    if checkpoint is not None and path is not None:
        raise InvalidArgumentError(
            f"{flag_of(path)}: the checkpoint says which network it is; leave it out"
        )
    config = TrainConfig() if checkpoint is None else checkpoint.config
    kept = {name: value for name, value in config.loss_options.items() if accepts("cure", name)}
    train = dict(
        shortened(config, FINETUNE_SHARE).to_dict(),
        loss="cure",
        loss_options={"eta": 0.5, **kept},
        projection=None,
    )
    train = with_epochs(train, flags, begun_epochs(args))
    settings = merge(dict(DEFAULTS, train=train, data=_data_name(args, checkpoint)), nested(flags))
    rows = {"Finetune": {"loss": "cure"}}
    check_flags(flags, rows, settings)
    sets = _sets(checkpoint, nested(flags).get("eps", {}))
    with in_words_of_flags(initial="CHECKPOINT", target="--target"):
        spec = None if checkpoint is None else checkpoint.spec
        train_and_report(args, experiment_from(args, settings, spec, sets), rows)


def _checkpoint(path: Path) -> Checkpoint | None:
    """Return a checkpoint of this package; None for a plain state dict, which is loaded later."""
    try:
        return load_checkpoint(path)
    except LirpaMultinormError:
        with in_words_of_flags(initial="CHECKPOINT"):
            read_weights(path)  # says what is wrong with a file that is neither
        return None


def _data_name(args: argparse.Namespace, checkpoint: Checkpoint | None) -> str:
    """Return the data set that --data names, or the one that a checkpoint was trained on."""
    if hasattr(args, "data"):
        return args.data
    name = "" if checkpoint is None else str(checkpoint.run["origin"].get("data") or "")
    if args.validation is not None:
        name = name.removesuffix(VALIDATION)
    return loadable_name(name)


def _sets(checkpoint: Checkpoint | None, eps: Mapping[str, Any]) -> list[AnySet]:
    """Return a checkpoint's sets as they are, but for the radii that flags give."""
    sets = with_radii([] if checkpoint is None else checkpoint.perturbations, eps)
    names = {perturbation.name for perturbation in sets}
    if len(names) > 1:
        return sets
    if not names:
        raise InvalidArgumentError(
            "--eps-inf, --eps-2: a plain state dict comes without sets; give both radii"
        )
    flag = "--eps-2" if "l_2" not in names else "--eps-inf"
    raise InvalidArgumentError(
        f"{flag}: the checkpoint is for one norm only ({sets[0].title()}), and fine-tuning is "
        f"for the union of several; give the radius of another with {flag}"
    )


def finetune_example(description: str) -> int:
    """Parse the command line of the fine-tuning example, and run it; returns the exit code."""
    parser = Parser(
        usage="%(prog)s CHECKPOINT --output FOLDER [flag ...]",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_finetune_arguments(parser)
    add_run_file_argument(parser)
    return run_finetuning(parser.parse_args())
