"""What a training run is made of, as data."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, Dict, List, Optional, Tuple

from ..data import augmentation
from ..errors import InvalidArgumentError
from ..perturbations import PerturbationLpBox
from .projection import Projection
from .schedule import Schedule

INITIALISATIONS = ("default", "shi")
_NESTED = {"schedule": Schedule, "projection": Projection}


@dataclass(frozen=True)
class TrainConfig:
    """Settings of one training run; the defaults are SABR's for MNIST.

    Args:
        loss: Name of a loss (see :mod:`lirpa_multinorm.losses.registry`).
        loss_options: Its options, such as ``ratio_inf``.
        epochs: Passes over the training set.
        batch_size: Examples per step, over all processes together.
        learning_rate: Of Adam.
        milestones: Numbers of epochs done after which the learning rate is multiplied by ``decay``.
        decay: See ``milestones``.
        l1: Weight of the sum of all parameters' absolute values.
        schedule: Radius and kappa over time.
        regularizer: Weight of Shi's regularisers while the radius grows; 0 leaves them out.
        initialization: "default" (torch's) or "shi"; only for training from scratch.
        projection: Gradient projection after annealing; None for none.
        clip_norm: Largest norm of the gradient; None does not clip.
        average_from: Number of epochs done from which on the weights are averaged; None does not average.
        precise_bn: Whether BatchNorm's running statistics are recomputed on the training set after every epoch.
        augment: Name of an augmentation: "none", "cifar" or "tinyimagenet".
        seed: Of weights, order, random starts and partitions.
    """

    loss: str = "max"
    loss_options: Dict[str, Any] = field(default_factory=dict)
    epochs: int = 70
    batch_size: int = 256
    learning_rate: float = 5e-4
    milestones: Tuple[int, ...] = (50, 60)
    decay: float = 0.2
    l1: float = 0.0
    schedule: Schedule = Schedule()
    regularizer: float = 0.0
    initialization: str = "default"
    projection: Optional[Projection] = None
    clip_norm: Optional[float] = None
    average_from: Optional[int] = None
    precise_bn: bool = False
    augment: str = "none"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise InvalidArgumentError(f"{name}={getattr(self, name)} must be at least 1")
        for name in ("learning_rate", "decay", "clip_norm"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise InvalidArgumentError(f"{name}={value} must be positive and finite")
        for name in ("l1", "regularizer"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InvalidArgumentError(f"{name}={getattr(self, name)} must be finite and not negative")
        if self.initialization not in INITIALISATIONS:
            raise InvalidArgumentError(f"initialization={self.initialization!r} is unknown; use "
                                       f"{' or '.join(INITIALISATIONS)}")
        if self.average_from is not None and not 0 <= self.average_from < self.epochs:
            raise InvalidArgumentError(f"average_from={self.average_from} must lie in [0, epochs={self.epochs})")
        augmentation(self.augment)  # raises where there is none of this name

    def to_dict(self) -> dict:
        """Return the settings as plain data (JSON)."""
        return dict(dataclasses.asdict(self), milestones=list(self.milestones))

    @classmethod
    def from_dict(cls, settings: dict) -> "TrainConfig":
        """Return the configuration that :meth:`to_dict` described."""
        unknown = set(settings) - {one.name for one in dataclasses.fields(cls)}
        if unknown:
            raise InvalidArgumentError(f"config has unknown settings: {', '.join(sorted(unknown))}")
        settings = dict(settings)
        for name, nested in _NESTED.items():
            if isinstance(settings.get(name), dict):
                settings[name] = _nested(nested, name, settings[name])
        if "milestones" in settings:
            settings["milestones"] = tuple(settings["milestones"])
        return cls(**settings)


def _nested(kind: type, name: str, settings: dict):
    unknown = set(settings) - {one.name for one in dataclasses.fields(kind)}
    if unknown:
        named = ", ".join(f"{name}.{one}" for one in sorted(unknown))
        raise InvalidArgumentError(f"config has unknown settings: {named}")
    return kind(**settings)


@dataclass(frozen=True)
class ModelSpec:
    """How to build a network again: the arguments of :func:`lirpa_multinorm.models.build_model`."""

    name: str
    in_shape: Tuple[int, ...]
    num_classes: int
    mean: Tuple[float, ...] = ()
    std: Tuple[float, ...] = ()
    options: Dict[str, Any] = field(default_factory=dict)

    def build(self):
        """Return a fresh network."""
        from ..models import build_model
        return build_model(self.name, self.in_shape, self.num_classes, self.mean or None, self.std or None,
                           **self.options)

    def to_dict(self) -> dict:
        """Return the arguments as plain data."""
        return {name: list(value) if isinstance(value, tuple) else value
                for name, value in dataclasses.asdict(self).items()}

    @classmethod
    def from_dict(cls, arguments: dict) -> "ModelSpec":
        """Return the specification that :meth:`to_dict` described."""
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in arguments.items()})


def describe_sets(perturbations: List[PerturbationLpBox]) -> List[dict]:
    """Return sets (scalar eps and clip) as plain data."""
    return [{"norm": str(one.norm), "eps": one.eps, "clip": None if one.clip is None else list(one.clip)}
            for one in perturbations]


def sets_from(described: List[dict]) -> List[PerturbationLpBox]:
    """Return the sets that :func:`describe_sets` described."""
    return [PerturbationLpBox(**one) for one in described]
