"""The flags of the command line that change settings of a run."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, Callable, NamedTuple

from ..attacks.views import PRECISIONS
from ..data import AUGMENTATIONS
from ..losses.terms import BOUNDINGS, REGIONS
from ..models import MODELS

NORM_NAMES = ("inf", "2", "1")


class Setting(NamedTuple):
    """A flag and the setting that it gives, as a dotted path; ``options`` are argparse's."""

    flag: str
    path: str
    options: dict


def _of(kind: Callable[[str], Any], **more: Any) -> dict[str, Any]:
    """Return argparse's options of a flag whose value is of a type."""
    return {"type": kind, **more}


def _length(word: str) -> float | str:
    """Return a number of epochs, or a share such as "50%" as it is, which TrainConfig checks."""
    return word if "%" in word else float(word)


def _milestone(word: str) -> float | str:
    """Return a number of epochs, or a share of the run as "50%" or 0.5."""
    if "%" in word:
        return word
    return int(word) if word.lstrip("-").isdigit() else float(word)


#: Everything about a run that a flag can change. A flag that is not given changes nothing.
SETTINGS: list[Setting] = [
    Setting("--eps-inf", "eps.inf", _of(float, help="l_inf radius")),
    Setting("--eps-2", "eps.2", _of(float, help="l_2 radius")),
    Setting("--eps-1", "eps.1", _of(float, help="l_1 radius")),
    Setting("--model", "model.name", _of(str, help=f"network: {', '.join(MODELS)}")),
    Setting(
        "--width", "model.options.width", _of(int, help="channels or units of the first layer")
    ),
    Setting(
        "--saturation",
        "model.options.saturation",
        _of(
            float,
            nargs=2,
            metavar=("LOW", "HIGH"),
            help="make pixels up to LOW black and from HIGH on white, in front of the network",
        ),
    ),
    Setting(
        "--epochs",
        "train.epochs",
        _of(int, help="lengths and milestones that are not given follow in proportion"),
    ),
    Setting(
        "--batch-size", "train.batch_size", _of(int, help="examples per step, over all processes")
    ),
    Setting("--learning-rate", "train.learning_rate", _of(float)),
    Setting(
        "--milestones",
        "train.milestones",
        _of(
            _milestone,
            nargs="*",
            help="epochs done when the learning rate drops, or shares of the run: 70%% 90%%",
        ),
    ),
    Setting(
        "--decay", "train.decay", _of(float, help="factor on the learning rate at a milestone")
    ),
    Setting(
        "--natural-epochs",
        "train.schedule.natural_epochs",
        _of(_length, help="epochs before the radius grows, or a share of the run: 5%%"),
    ),
    Setting(
        "--anneal-epochs",
        "train.schedule.anneal_epochs",
        _of(_length, help="epochs in which it grows to its full size, or a share: 50%%"),
    ),
    Setting(
        "--partial-radius",
        "train.partial_radius",
        {
            "action": argparse.BooleanOptionalAction,
            "help": "let the run end before the radius is full",
        },
    ),
    Setting(
        "--kappa-start", "train.schedule.kappa_start", _of(float, help="share of the natural loss")
    ),
    Setting("--kappa-end", "train.schedule.kappa_end", _of(float)),
    Setting("--l1", "train.l1", _of(float)),
    Setting("--regularizer", "train.regularizer", _of(float, help="weight of Shi's regularisers")),
    Setting("--initialization", "train.initialization", _of(str, choices=["default", "shi"])),
    Setting("--clip-norm", "train.clip_norm", _of(float, help="largest norm of the gradient")),
    Setting(
        "--average-from",
        "train.average_from",
        _of(int, help="average the weights from this epoch on"),
    ),
    Setting(
        "--precise-bn",
        "train.precise_bn",
        {
            "action": argparse.BooleanOptionalAction,
            "help": "BatchNorm statistics of the whole training set after every epoch",
        },
    ),
    Setting("--augment", "train.augment", _of(str, choices=list(AUGMENTATIONS))),
    Setting("--seed", "train.seed", _of(int)),
    Setting("--ratio-inf", "train.loss_options.ratio_inf", _of(float, help="SABR's lambda")),
    Setting("--ratio-2", "train.loss_options.ratio_2", _of(float, help="CURE's lambda_2")),
    Setting(
        "--region-2",
        "train.loss_options.region_2",
        _of(
            str,
            choices=list(REGIONS),
            help="region propagated for l_2, such as the paper's box, or the small l_2 ball",
        ),
    ),
    Setting("--ratio-1", "train.loss_options.ratio_1", _of(float)),
    Setting(
        "--region-1",
        "train.loss_options.region_1",
        _of(str, choices=[region for region in REGIONS if region != "released"]),
    ),
    *(
        Setting(
            f"--eps-factor-{norm}",
            f"train.loss_options.eps_factor_{norm}",
            _of(float, help=f"radius in training as a multiple of --eps-{norm}"),
        )
        for norm in NORM_NAMES
    ),
    *(
        Setting(
            f"--bounding-{norm}",
            f"train.loss_options.bounding_{norm}",
            _of(str, choices=list(BOUNDINGS), help=f"how margins on the l_{norm} region are found"),
        )
        for norm in NORM_NAMES
    ),
    *(
        Setting(
            f"--crown-share-{norm}",
            f"train.loss_options.crown_share_{norm}",
            _of(
                float, help="share of CROWN-IBP's bound at the full radius, which is 1 at radius 0"
            ),
        )
        for norm in NORM_NAMES
    ),
    *(
        Setting(
            f"--taps-layers-{norm}",
            f"train.loss_options.taps_{norm}.layers",
            _of(int, help="activation layers that TAPS attacks, counted from the output"),
        )
        for norm in NORM_NAMES
    ),
    Setting(
        "--shrink-inf",
        "train.loss_options.shrink_inf",
        _of(float, help="shrinking ReLU on the l_inf box"),
    ),
    Setting(
        "--mix-2",
        "train.loss_options.mix_2",
        _of(str, choices=["mtl", "cc", "exp"], help="mix the l_2 bound with the adversarial point"),
    ),
    Setting(
        "--alpha-2",
        "train.loss_options.alpha_2",
        _of(float, help="weight of the bound in the l_2 mix"),
    ),
    Setting(
        "--alpha",
        "train.loss_options.alpha",
        _of(float, help="weight of the bound in MTL-, CC- and Exp-IBP"),
    ),
    Setting(
        "--weights",
        "train.loss_options.weights",
        _of(float, nargs="+", help="weight of each norm in Joint"),
    ),
    Setting("--eta", "train.loss_options.eta", _of(float, help="weight of bound alignment")),
    Setting(
        "--target",
        "train.loss_options.target",
        _of(str, choices=["inf", "2", "1", "both"], help="bottleneck norm of bound alignment"),
    ),
    Setting(
        "--detach",
        "train.loss_options.detach",
        {
            "action": argparse.BooleanOptionalAction,
            "help": "no gradient into the bottleneck norm's bounds",
        },
    ),
    Setting(
        "--attack-precision",
        "train.loss_options.attack.precision",
        _of(
            str,
            choices=list(PRECISIONS),
            help="what the training attack computes in; bounds are always float32",
        ),
    ),
    Setting(
        "--beta",
        "train.projection.beta",
        _of(float, help="gradient projection: share of the natural update"),
    ),
]


def add_setting_arguments(parser: argparse._ActionsContainer, paths: Sequence[str] = ("",)) -> None:
    """Add the flags of all settings whose path starts with a prefix.

    Args:
        parser: A parser, or a group of its arguments.
        paths: The prefixes.
    """
    for flag, path, options in SETTINGS:
        if path.startswith(tuple(paths)):
            parser.add_argument(flag, dest=path, default=argparse.SUPPRESS, **options)


def given(args: argparse.Namespace) -> dict[str, Any]:
    """Return the values that flags have given, by path."""
    return {path: getattr(args, path) for _, path, _ in SETTINGS if hasattr(args, path)}
