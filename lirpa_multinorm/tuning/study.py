"""Studies: trials are trained and certified on images held out of the training images."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..data import ImageData
from ..errors import InvalidArgumentError, NaNBoundError, OutputFolderError
from ..experiments.comparison import Experiment
from ..experiments.setting_sources import run_settings
from ..training import TrainConfig, train
from ..training.config import describe_sets
from ..training.preflight import check_run
from ..training.run_folder import digest
from ..utils.environment import environment
from ..utils.files import write_json
from .front import CLEAN, UNION, front_of, write_front
from .space import Dimension, with_values
from .storage import TRIALS, Claim, StudyFile

POINT = "point.json"


@dataclasses.dataclass(frozen=True)
class Tuning:
    """A study of one loss on one data set.

    Args:
        data: Training and test images; of the latter only the shape is looked at.
        experiment: Network, sets, settings (with the loss and its options), certification and
            device; its test images are images held out of the training images.
        space: The settings that are searched.
    """

    data: ImageData
    experiment: Experiment
    space: Sequence[Dimension]

    def settings(self) -> dict[str, Any]:
        """Return what the study is made of, as plain data."""
        experiment, held_out = self.experiment, self.experiment.data
        return {
            "name": self.data.name,
            "data": held_out.name,
            "n_train": len(held_out.x_train),
            "n": len(held_out.x_test),
            "train_sha256": digest(self.data.x_train, self.data.y_train),
            "model": experiment.spec.to_dict(),
            "perturbations": describe_sets(list(experiment.perturbations)),
            "train": experiment.config.to_dict(),
            "certification": experiment.certification,
            "space": {dimension.flag: dimension.described() for dimension in self.space},
        }

    def check(self) -> None:
        """Check the settings as they are, and with each end of each range.

        Raises:
            InvalidArgumentError: A trial could not be trained; says which value is why.
        """
        self._check(self.experiment.config)
        for dimension in self.space:
            for value in dimension.ends():
                try:
                    self._check(self.config_with({dimension.path: value}))
                except InvalidArgumentError as error:
                    raise InvalidArgumentError(
                        f"--search {dimension.flag}: {value!r} cannot be used: {error}"
                    ) from error

    def _check(self, config: TrainConfig) -> None:
        """Check the settings of a trial."""
        experiment = self.experiment
        check_run(
            experiment.spec, experiment.data, experiment.perturbations, config, experiment.device
        )

    def config_with(self, values: Mapping[str, Any]) -> TrainConfig:
        """Return the settings of a trial."""
        return config_with(self.experiment.config, values)

    def first(self) -> dict[str, Any]:
        """Return the values of the first trial: those of the settings, where the space has them."""
        train = {"train": self.experiment.config.to_dict()}
        defaults = {setting.path: setting.default for setting in run_settings()}
        weights = _shares(train, len(self.experiment.perturbations))
        values = {}
        for dimension in self.space:
            value = _at(train, dimension.path)
            if value is None:
                value = weights.get(dimension.path, defaults.get(dimension.path))
            if dimension.has(value):
                values[dimension.path] = value
        return values

    def run(self, folder: str | Path, trials: int, progress: bool = True) -> list[dict[str, Any]]:
        """Run trials until the study has so many, together with other processes; write the front.

        Args:
            folder: Folder of the study alone.
            trials: How many trials it has in all; those that are there count.
            progress: Whether to show progress bars.

        Returns:
            The finished trials.

        Raises:
            OutputFolderError: The folder cannot be written, or has a study of other settings.
            InvalidArgumentError: A setting cannot be used.
            MissingPackageError: optuna is not installed.
        """
        if trials < 1:
            raise InvalidArgumentError(f"--trials {trials}: give 1 or more")
        study = StudyFile(folder, self.experiment.config.seed)
        self.check()
        study.begin(self.settings(), self.space, self.first())
        going_on = True
        while going_on:
            with study.claimed(trials) as claim:
                going_on = claim is not None
                if claim is not None:
                    point = self._point(claim, progress and f"trial {claim.number}")
                    study.tell(claim.number, _objectives(point))
            with study.locked():
                points = finished_points(study.folder)
                if points:
                    write_front(study.folder, points, self.described())
        return points

    def described(self) -> dict[str, Any]:
        """Return what the front's file says of the study: settings, versions and the machine."""
        return {**self.settings(), "environment": environment(self.experiment.device)}

    def _point(self, claim: Claim, title: bool | str) -> dict[str, Any]:
        """Return a trial's result: what it was trained with and comes to, or why it has failed."""
        path = claim.folder / POINT
        with contextlib.suppress(OSError, ValueError):  # a process was killed before it told
            return json.loads(path.read_text(encoding="utf-8"))
        flags = {dimension.path: dimension.flag for dimension in self.space}
        point: dict[str, Any] = {
            "trial": claim.number,
            "values": {flags[path]: value for path, value in claim.values.items()},
            "paths": claim.values,
        }
        started = time.perf_counter()
        try:
            point.update(self._certified(claim, title))
        except NaNBoundError as error:  # a learning rate that is too large, say
            point["error"] = str(error)
        point["seconds"] = round(time.perf_counter() - started, 1)
        write_json(path, point)
        return point

    def _certified(self, claim: Claim, title: bool | str) -> dict[str, Any]:
        """Train a trial, or the rest of it, and certify it on the images held out."""
        experiment = self.experiment
        model = train(
            experiment.spec,
            experiment.data,
            experiment.perturbations,
            self.config_with(claim.values),
            claim.folder,
            experiment.device,
            title,
            resume=True,
        )
        return experiment.certified(model.to(experiment.device), title)


def config_with(config: TrainConfig, values: Mapping[str, Any]) -> TrainConfig:
    """Return settings of training with a trial's values, by path."""
    return TrainConfig.from_dict(with_values(config.to_dict(), values))


def finished_points(folder: Path) -> list[dict[str, Any]]:
    """Return the results of the trials that have one, in their order.

    Args:
        folder: The study's folder.
    """
    points = []
    for path in sorted((folder / TRIALS).glob(f"*/{POINT}")):
        with contextlib.suppress(ValueError):  # damaged
            point = json.loads(path.read_text(encoding="utf-8"))
            points += [point] if _objectives(point) else []
    return points


def train_chosen(
    folder: str | Path,
    trial: int,
    data: ImageData,
    experiment: Experiment,
    progress: bool = True,
    resume: bool = False,
) -> list[dict]:
    """Train a trial's settings on all training images, and certify on the test images.

    Args:
        folder: The study's folder; the run goes into "chosen_TRIAL" in it.
        trial: The trial's number.
        data: All training images, which must be the study's, and the test images.
        experiment: The study's, with its settings.
        progress: Whether to show progress bars.
        resume: Whether to go on with what the folder holds.

    Returns:
        The row of the table, see :meth:`Experiment.run`.

    Raises:
        InvalidArgumentError: There is no such trial, or it has no result.
        OutputFolderError: The folder holds a run already and ``resume`` is not given.
    """
    folder = Path(folder).expanduser()
    points = {point["trial"]: point for point in finished_points(folder)}
    if trial not in points:
        front = ", ".join(str(point["trial"]) for point in front_of(list(points.values())))
        raise InvalidArgumentError(
            f"--choose {trial}: there is no finished trial of this number in {str(folder)!r}; the "
            f"front has {front or 'none'}"
        )
    config = config_with(experiment.config, points[trial]["paths"])
    row = {"loss": config.loss, "loss_options": config.loss_options}
    chosen = dataclasses.replace(experiment, data=data, config=config)
    return chosen.run(folder / f"chosen_{trial}", {f"trial {trial}": row}, progress, resume)


def recorded_settings(folder: str | Path) -> dict[str, Any]:
    """Return what the study in a folder is made of.

    Raises:
        OutputFolderError: There is none, or it cannot be read.
        MissingPackageError: optuna is not installed.
    """
    study = StudyFile(folder)
    settings = study.settings() if study.path.is_file() else None
    if settings is None:
        raise OutputFolderError(
            f"output: the folder {str(folder)!r} holds no study; run tune without --choose first"
        )
    return settings


def _objectives(point: Mapping[str, Any]) -> tuple[float, float] | None:
    """Return clean and union certified accuracy of a trial; None for one that has failed."""
    return None if "error" in point else (point[CLEAN], point[UNION])


def _at(settings: Mapping[str, Any], path: str) -> Any:
    """Return the value at a path, or None."""
    level: Any = settings
    for name in path.split("."):
        level = level.get(name) if isinstance(level, Mapping) else None
    return level


def _shares(settings: Mapping[str, Any], sets: int) -> dict[str, float]:
    """Return the shares that weights of a loss come from, by the paths of their dimensions."""
    path = "train.loss_options.weights"
    weights = _at(settings, path) or [1.0] * sets
    return {
        f"{path}.{index + 1}": weight / sum(weights[index:])
        for index, weight in enumerate(weights[:-1])
    }
