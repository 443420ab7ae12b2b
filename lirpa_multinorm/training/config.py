"""The settings of a training run, as data: network, sets, and everything about training."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import nn

from ..data import augmentation
from ..errors import InvalidArgumentError
from ..perturbations.described import AnySet, describe_set, set_from
from .lengths import (
    Length,
    checked_milestone,
    milestones_of,
    scaled_length,
    scaled_milestones,
    within,
)
from .numbers import checked_number, checked_whole
from .optimizer import AdamSettings, cosine_factor
from .projection import Projection
from .schedule import Schedule

INITIALISATIONS = ("default", "shi")
_LARGEST = 1e36  # learning rate or decay; larger ones overflow in the optimiser
_NESTED = {"schedule": Schedule, "projection": Projection, "adam": AdamSettings}


@dataclass(frozen=True)
class TrainConfig:
    """Settings of one training run; the defaults are SABR's for MNIST.

    Args:
        loss: Name of a loss (see :mod:`lirpa_multinorm.losses.registry`).
        loss_options: Its options, such as ``ratio_inf``.
        epochs: Passes over the training set.
        batch_size: Examples per step, over all processes together.
        learning_rate: Of Adam.
        milestones: Numbers of epochs done after which the learning rate is multiplied by ``decay``;
            or shares of the run, such as 0.7 or "70%".
        decay: Factor on the learning rate at a milestone.
        adam: The optimiser's other settings.
        l1: Weight of the sum of all parameters' absolute values.
        schedule: Radius and kappa over time.
        regularizer: Weight of Shi's regularisers while the radius grows; 0 leaves them out.
        initialization: "default" (torch's) or "shi"; only for training from scratch.
        projection: Gradient projection after annealing; None for none.
        clip_norm: Largest norm of the gradient, longer ones are scaled down; None does not clip.
        average_from: Number of epochs done from which on the weights are averaged; None does not
            average.
        precise_bn: Whether BatchNorm's running statistics are recomputed on the training set after
            every epoch.
        augment: Name of an augmentation of the training images.
        seed: Of weights, order, random starts and partitions.
        partial_radius: Whether a run may end before the radius is full; otherwise :func:`train`
            refuses it.
    """

    loss: str = "max"
    loss_options: dict[str, Any] = field(default_factory=dict)
    epochs: int = 70
    batch_size: int = 256
    learning_rate: float = 5e-4
    milestones: tuple[Length, ...] = (50, 60)
    decay: float = 0.2
    adam: AdamSettings = AdamSettings()
    l1: float = 0.0
    schedule: Schedule = Schedule()
    regularizer: float = 0.0
    initialization: str = "default"
    projection: Projection | None = None
    clip_norm: float | None = None
    average_from: int | None = None
    precise_bn: bool = False
    augment: str = "none"
    seed: int = 0
    partial_radius: bool = False

    def __post_init__(self) -> None:
        for name, nested in _NESTED.items():
            self._set(name, _nested(nested, name, getattr(self, name)))
        if isinstance(self.milestones, (str, bytes)) or not isinstance(self.milestones, Iterable):
            raise InvalidArgumentError(
                f"milestones={self.milestones!r} must be a list, such as (50, 60) or (0.7, 0.9)"
            )
        self._set(
            "milestones", tuple(checked_milestone(milestone) for milestone in self.milestones)
        )
        self._check_numbers()
        if not isinstance(self.loss_options, Mapping) or not all(
            isinstance(name, str) for name in self.loss_options
        ):
            raise InvalidArgumentError(
                f'loss_options={self.loss_options!r} must be a dict, such as {{"ratio_inf": 0.4}}'
            )
        for name in ("precise_bn", "partial_radius"):
            if not isinstance(getattr(self, name), (bool, np.bool_)):
                raise InvalidArgumentError(f"{name}={getattr(self, name)!r} must be True or False")
        if not isinstance(self.loss, str):
            raise InvalidArgumentError(
                f"loss={self.loss!r} must be the name of a loss, such as 'max'"
            )
        if self.initialization not in INITIALISATIONS:
            raise InvalidArgumentError(
                f"initialization={self.initialization!r} is unknown; use "
                f"{' or '.join(INITIALISATIONS)}"
            )
        augmentation(self.augment)  # raises where there is none of this name

    def _check_numbers(self) -> None:
        """Check the settings that are numbers, and store them as numbers of Python."""
        for name, least, largest in (
            ("epochs", 1, None),
            ("batch_size", 1, None),
            ("seed", 0, 2**63 - 2),
        ):
            self._set(name, checked_whole(name, getattr(self, name), least, largest))
        for name in ("learning_rate", "decay"):
            self._set(name, checked_number(name, getattr(self, name), upper=_LARGEST, above=True))
        if self.clip_norm is not None:
            self._set("clip_norm", checked_number("clip_norm", self.clip_norm, above=True))
        for name in ("l1", "regularizer"):
            self._set(name, checked_number(name, getattr(self, name)))
        if self.average_from is not None:
            self._set("average_from", checked_whole("average_from", self.average_from, 0))
            if self.average_from >= self.epochs:
                raise InvalidArgumentError(
                    f"average_from={self.average_from} must lie in [0, epochs={self.epochs}): "
                    "averaging would never start"
                )

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)  # the class is frozen

    def in_epochs(self) -> TrainConfig:
        """Return the same settings with every share of the run turned into epochs.

        Example:
            >>> schedule = Schedule("5%", "50%")
            >>> config = TrainConfig(epochs=40, milestones=(0.7, 0.9), schedule=schedule)
            >>> config.in_epochs().milestones
            (28, 36)
        """
        return dataclasses.replace(
            self,
            milestones=milestones_of(self.milestones, self.epochs),
            schedule=self.schedule.in_epochs(self.epochs),
        )

    def learning_rate_at(self, epoch: float) -> float:
        """Return the learning rate after a number of epochs, with fractions for a cosine.

        Example:
            >>> config = TrainConfig(learning_rate=1.0, milestones=(50, 60), decay=0.5)
            >>> config.learning_rate_at(49), config.learning_rate_at(60)
            (1.0, 0.25)
        """
        if self.adam.cosine:
            return self.learning_rate * cosine_factor(epoch, self.epochs)
        milestones = milestones_of(self.milestones, self.epochs)
        drops = sum(epoch >= milestone for milestone in milestones)
        return self.learning_rate * self.decay**drops

    def scaled(self, epochs: int) -> TrainConfig:
        """Return the settings of a run of another length.

        Natural and annealing epochs, milestones and the start of averaging keep their proportions;
        milestones that were never reached are left out.

        Example:
            >>> config = TrainConfig(epochs=70, milestones=(50, 60), schedule=Schedule(1, 20))
            >>> config = config.scaled(35)
            >>> config.milestones, config.schedule.natural_epochs, config.schedule.anneal_epochs
            ((25, 30), 0.5, 10.0)
        """
        epochs = checked_whole("epochs", epochs, 1)
        if epochs == self.epochs:
            return self
        ratio = epochs / self.epochs
        schedule = dataclasses.replace(
            self.schedule,
            natural_epochs=scaled_length(self.schedule.natural_epochs, ratio),
            anneal_epochs=scaled_length(self.schedule.anneal_epochs, ratio),
        )
        start = self.average_from
        return dataclasses.replace(
            self,
            epochs=epochs,
            schedule=schedule,
            milestones=scaled_milestones(self.milestones, self.epochs, epochs),
            average_from=start if not start else within(ratio * start, epochs) or 0,
        )

    def to_dict(self) -> dict:
        """Return the settings as plain data (JSON)."""
        return dict(dataclasses.asdict(self), milestones=list(self.milestones))

    @classmethod
    def from_dict(cls, settings: dict) -> TrainConfig:
        """Return the configuration that :meth:`to_dict` described."""
        unknown = set(settings) - {entry.name for entry in dataclasses.fields(cls)}
        if unknown:
            raise InvalidArgumentError(f"config has unknown settings: {', '.join(sorted(unknown))}")
        return cls(**settings)


def _nested(kind: type, name: str, settings: Any) -> Any:
    """Return a Schedule or Projection, made from a dict of its fields where that is given."""
    if isinstance(settings, kind) or (settings is None and name == "projection"):
        return settings
    if not isinstance(settings, Mapping):
        raise InvalidArgumentError(
            f"{name}={settings!r} must be a {kind.__name__}, or a dict of its fields"
        )
    unknown = set(settings) - {entry.name for entry in dataclasses.fields(kind)}
    if unknown:
        paths = ", ".join(f"{name}.{key}" for key in sorted(unknown))
        raise InvalidArgumentError(f"config has unknown settings: {paths}")
    return kind(**settings)


@dataclass(frozen=True)
class ModelSpec:
    """How to build a network again: the arguments of :func:`lirpa_multinorm.models.build_model`."""

    name: str
    in_shape: tuple[int, ...]
    num_classes: int
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)

    def build(self) -> nn.Sequential:
        """Return a fresh network."""
        from ..models import build_model

        return build_model(
            self.name,
            self.in_shape,
            self.num_classes,
            self.mean or None,
            self.std or None,
            **self.options,
        )

    def to_dict(self) -> dict:
        """Return the arguments as plain data."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in dataclasses.asdict(self).items()
        }

    @classmethod
    def from_dict(cls, arguments: dict) -> ModelSpec:
        """Return the specification that :meth:`to_dict` described."""
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in arguments.items()
        }
        return cls(**values)


def describe_sets(perturbations: Sequence[AnySet]) -> list[dict]:
    """Return sets (scalar eps and clip) as plain data."""
    return [describe_set(perturbation) for perturbation in perturbations]


def sets_from(described: list[dict]) -> list[AnySet]:
    """Return the sets that :func:`describe_sets` described."""
    return [set_from(arguments) for arguments in described]
