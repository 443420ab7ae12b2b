"""The networks that benchmarks compare bounds on, with test images and radii."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lirpa_multinorm.cli import DEFAULTS
from lirpa_multinorm.data import load as load_data
from lirpa_multinorm.data import to_unit
from lirpa_multinorm.errors import InvalidArgumentError
from lirpa_multinorm.experiments.comparison import Experiment
from lirpa_multinorm.experiments.rows import MORE_ROWS, ROWS, shortened
from lirpa_multinorm.experiments.settings import config_of, sets_of, spec_of
from lirpa_multinorm.training import load_checkpoint, train

from . import certified
from .run import Places


class Subject(NamedTuple):
    """A network in eval mode, correctly classified test images, their labels, and radii for bounds.

    Args:
        model: The network.
        x: Images in [0, 1], (n, ...).
        y: Labels, (n,).
        eps_inf: Radius of the l_inf set.
        eps_2: Radius of the l_2 set.
    """

    model: nn.Module
    x: Tensor
    y: Tensor
    eps_inf: float
    eps_2: float


def subject(description: dict[str, Any], n: int, places: Places) -> Subject:
    """Return a network and its first correctly classified test images.

    Args:
        description: One of ``{"digits": row of a comparison, "epochs": how many}``, trained on the
            spot; ``{"run": a folder in places.runs, "data": data set, or an .npz file in
            places.data_dir}``; and ``{"published": name, "eps_inf": radius, "eps_2": radius}``, one
            of :data:`benchmarks.certified.NETWORKS`.
        n: How many images, of those that the network gets right.
        places: Where networks and data are.

    Raises:
        InvalidArgumentError: ``description`` is none of them.
    """
    if "digits" in description:
        model, sets = _digits(description["digits"], description["epochs"])
        return _right(model, "digits", sets, n, places)
    if "run" in description:
        checkpoint = load_checkpoint(places.runs / description["run"] / "checkpoint.pt")
        return _right(
            checkpoint.model.eval(), description["data"], checkpoint.perturbations, n, places
        )
    if "published" in description:
        model, x, y = certified.load(description["published"], places.reference)
        right = _correct(model, x, y)[:n]
        return Subject(model, x[right], y[right], description["eps_inf"], description["eps_2"])
    raise InvalidArgumentError(
        f"network={description!r} must have one of the keys digits, run and published"
    )


def _right(model: nn.Module, data: str, sets: list, n: int, places: Places) -> Subject:
    images = load_data(
        places.data_dir / data if data.endswith(".npz") else data, data_dir=places.data_dir
    )
    x, y = to_unit(images.x_test), images.y_test.long()
    right, eps = (
        _correct(model, x, y)[:n],
        {perturbation.norm: perturbation.eps for perturbation in sets},
    )
    return Subject(model, x[right], y[right], eps[float("inf")], eps[2.0])


@torch.no_grad()
def _correct(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return (model(x).argmax(1) == y).nonzero().squeeze(1)


@cache
def _digits(row: str, epochs: int) -> tuple:
    """Train a comparison's row on scikit-learn's digits, with the settings of train_digits.py."""
    data, sets = load_data("digits"), sets_of(DEFAULTS["eps"])
    config = config_of(DEFAULTS["train"])
    experiment = Experiment(
        data, spec_of(DEFAULTS["model"], data), sets, shortened(config, epochs / config.epochs)
    )
    model = train(
        experiment.spec,
        data,
        sets,
        experiment.row_config({**ROWS, **MORE_ROWS}[row]),
        progress=False,
    )
    return model, sets
