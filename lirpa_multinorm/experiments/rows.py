"""The rows of a comparison: losses by name, and the training runs that they stand for."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import InvalidArgumentError
from ..losses import LOSSES, accepts
from ..training import TrainConfig
from .settings import merge

Rows = Mapping[str, Mapping[str, Any]]

#: The rows of a comparison. Beside settings of TrainConfig a row may name the row whose network it
#: starts from ("initial") and the share of the epochs it then trains for ("share").
ROWS: dict[str, dict[str, Any]] = {
    "natural": {"loss": "natural"},
    "SABR l_inf": {"loss": "sabr"},
    "CURE-l2": {"loss": "cure_l2", "regularizer": 0.0},
    "Joint": {"loss": "joint"},
    "Max": {"loss": "max"},
    "Random": {"loss": "random"},
    "Scratch": {"loss": "cure", "projection": {"beta": 0.5}},
    "Finetune": {
        "loss": "cure",
        "loss_options": {"eta": 0.5},
        "initial": "SABR l_inf",
        "share": 0.2,
    },
}
#: Rows that a comparison has only if asked for.
MORE_ROWS: dict[str, dict[str, Any]] = {
    "Max ball": {"loss": "max", "loss_options": {"region_2": "ball", "ratio_2": 0.5}},
    "MTL-IBP": {"loss": "mtl_ibp"},
    "CC-IBP": {"loss": "cc_ibp"},
    "Exp-IBP": {"loss": "exp_ibp"},
    "IBP": {"loss": "ibp"},
    "CROWN-IBP": {"loss": "crown_ibp"},
    "TAPS": {"loss": "taps"},
    "STAPS": {"loss": "staps"},
}


def all_rows() -> dict[str, dict[str, Any]]:
    """Return the rows that there are by name, with one for every other loss that is registered."""
    rows = {**ROWS, **MORE_ROWS}
    losses = {row["loss"] for row in rows.values()}
    return {**rows, **{loss: {"loss": loss} for loss in LOSSES if loss not in losses}}


class Job(NamedTuple):
    """A training run of a comparison."""

    name: str
    config: TrainConfig
    folder: Path
    initial: Path | None


def jobs_of(
    rows: Rows, folder: Path, config: TrainConfig, seeds: Sequence[int], initial: Path | None
) -> list[Job]:
    """Return the runs of a comparison; a row that starts from another row's network comes after it.

    Args:
        rows: The rows.
        folder: Folder of the comparison.
        config: Training settings common to all rows.
        seeds: Seeds of every row; empty: the configuration's own.
        initial: File of weights that every row starts from, instead of another row's.

    Raises:
        InvalidArgumentError: A seed is named twice, or a row cannot have a folder or a start.
    """
    if len(set(seeds)) < len(seeds):
        raise InvalidArgumentError(
            f"seeds={list(seeds)} names one twice; the runs would be the same"
        )
    jobs = []
    names: dict[str, str] = {}
    for name, row in rows.items():
        _check_folder(name, names.setdefault(row_folder(name), name))
        start = row.get("initial") if initial is None else None
        if start is not None and start not in rows:
            raise InvalidArgumentError(
                f"losses: {name!r} starts from the network of {start!r}; add that one, "
                "or give a checkpoint with --initial"
            )
        for seed in seeds or [config.seed]:
            subfolder = Path(f"seed_{seed}") if seeds else Path()
            weights = initial
            if start is not None:
                weights = folder / row_folder(start) / subfolder / "checkpoint.pt"
            settings = dataclasses.replace(row_config(config, row), seed=seed)
            jobs.append(Job(name, settings, folder / row_folder(name) / subfolder, weights))
    return sorted(jobs, key=lambda job: rows[job.name].get("initial") in rows)


def _check_folder(name: str, other: str) -> None:
    """Raise InvalidArgumentError where a row's folder is another row's, or no folder."""
    folder = row_folder(name)
    if other != name or Path(folder).name != folder or folder == "..":
        raise InvalidArgumentError(
            f"rows: {name!r} cannot have the folder {folder!r}"
            f"{'' if other == name else f', which {other!r} has'}; rename it"
        )


def row_folder(name: str) -> str:
    """Return the name of a row's folder."""
    return name.lower().replace(" ", "_")


def row_config(config: TrainConfig, row: Mapping[str, Any]) -> TrainConfig:
    """Return the training settings of a row, from those common to all rows."""
    common = {
        name: value for name, value in config.loss_options.items() if accepts(row["loss"], name)
    }
    options = {**common, **row.get("loss_options", {})}
    rest = {
        name: value
        for name, value in row.items()
        if name not in ("loss", "loss_options", "initial", "share")
    }
    base = config if "share" not in row else shortened(config, row["share"])
    settings = dict(base.to_dict(), loss=row["loss"], loss_options=options)
    return TrainConfig.from_dict(merge(settings, rest))


def shortened(config: TrainConfig, share: float) -> TrainConfig:
    """Return the settings of fine-tuning: a share of the epochs, robust from the start.

    Lengths and milestones keep their proportions.
    """
    config = config.scaled(max(1, round(share * config.epochs)))
    schedule = dataclasses.replace(
        config.schedule, natural_epochs=0, kappa_start=config.schedule.kappa_end
    )
    return dataclasses.replace(
        config, schedule=schedule, initialization="default", average_from=None
    )


def check_extension(rows: Rows, initial: Path | None) -> None:
    """Raise InvalidArgumentError where a row starts from a network that more epochs change."""
    for name, row in rows.items():
        if initial is None and row.get("initial") is not None:
            raise InvalidArgumentError(
                f"extend: {name!r} starts from the network of {row['initial']!r}, which more "
                "epochs change; leave that row out, or train all anew by --overwrite "
                "(overwrite=True)"
            )
