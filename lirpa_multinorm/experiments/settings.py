"""Settings of a run as nested data: those of examples and presets, changed by flags."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from ..data import ImageData
from ..errors import InvalidArgumentError
from ..models import MODELS
from ..perturbations import NORMS, PerturbationLpBox
from ..perturbations.described import AnySet, has_radius
from ..training import ModelSpec, TrainConfig
from ..utils.words import either

#: {"data", "eps": {norm: radius}, "model": {"name", "options"}, "train": {...}}, and "transforms",
#: "patch" and "l_0" as :func:`.split_sets.split_sets_of` takes them.
Settings = dict[str, Any]


def nested(values: Mapping[str, Any]) -> Settings:
    """Return {"a.b": 1} as {"a": {"b": 1}}."""
    settings: Settings = {}
    for path, value in values.items():
        *parents, name = path.split(".")
        level = settings
        for parent in parents:
            level = level.setdefault(parent, {})
        level[name] = value
    return settings


def merge(base: Mapping[str, Any], patch: Mapping[str, Any]) -> Settings:
    """Return ``base`` changed by ``patch`` (RFC 7396).

    Mappings are merged, other values replaced, and None removes a name.

    Example:
        >>> merge({"a": 1, "b": {"c": 2, "d": 3}}, {"a": None, "b": {"d": 4}})
        {'b': {'c': 2, 'd': 4}}
    """
    merged = dict(base)
    for name, value in patch.items():
        if isinstance(value, Mapping):
            old = merged.get(name)
            merged[name] = merge(old if isinstance(old, Mapping) else {}, value)
        elif value is None:
            merged.pop(name, None)
        else:
            merged[name] = value
    return merged


def norm_names() -> list[str]:
    """Return the names of the norms that are registered, in settings and flags.

    Example:
        >>> norm_names()
        ['inf', '2', '1']
    """
    return [f"{p:g}" for p in NORMS]


def sets_of(eps: Mapping[str, float]) -> list[PerturbationLpBox]:
    """Return the sets of some radii, cut with the pixel range, in the order of the norms."""
    unknown = set(eps) - set(norm_names())
    if unknown:
        raise InvalidArgumentError(
            f"eps names the norms {', '.join(sorted(unknown))}; use {either(norm_names(), 'and')}"
        )
    return [
        PerturbationLpBox(norm, eps[norm]) for norm in norm_names() if eps.get(norm) is not None
    ]


def with_radii(sets: Sequence[AnySet], eps: Mapping[str, float]) -> list[AnySet]:
    """Return sets with the radii of some norms changed.

    A norm that no set has gets a set within the range of the others.

    Raises:
        InvalidArgumentError: Several sets have the norm, so that the radius names none of them.

    Example:
        >>> with_radii([PerturbationLpBox("inf", 0.1, clip=None)], {"2": 0.5})
        [PerturbationLpBox(norm=inf, eps=0.1, clip=None), PerturbationLpBox(norm=2, eps=0.5,
        clip=None)]
    """
    changed: list[AnySet] = list(sets)
    for new in sets_of(eps):
        balls = {
            index: old
            for index, old in enumerate(sets)
            if isinstance(old, PerturbationLpBox) and has_radius(old)
        }
        indices = [index for index, old in balls.items() if old.norm == new.norm]
        if len(indices) > 1:
            radii = ", ".join(f"{balls[index].eps:g}" for index in indices)
            raise InvalidArgumentError(
                f"--eps-{new.norm:g}: there are {len(indices)} sets of this norm (radii {radii}) "
                "and a flag cannot say which is meant; leave it out"
            )
        if indices:
            changed[indices[0]] = balls[indices[0]].with_eps(new.eps)
        else:
            clip = next(iter(balls.values()), new).clip
            changed.append(PerturbationLpBox(new.norm, new.eps, clip))
    return changed


def with_epochs(
    train: Mapping[str, Any], flags: Mapping[str, Any], begun: int | None = None
) -> Settings:
    """Return training settings at the number of epochs that flags give.

    Lengths and milestones keep their proportions.

    Args:
        train: The settings.
        flags: Values that flags give, by path.
        begun: Number of epochs of a run that is extended, when it began: its lengths stay.
    """
    epochs = flags.get("train.epochs")
    if epochs is None and begun is None:
        return dict(train)
    config = config_of(train)
    epochs = config.epochs if epochs is None else epochs
    return dict(config.scaled(begun or epochs).to_dict(), epochs=epochs)


def spec_of(model: Mapping[str, Any], data: ImageData) -> ModelSpec:
    """Return the network that settings name, for the images of a data set."""
    return ModelSpec(
        model["name"],
        data.in_shape,
        data.num_classes,
        data.mean,
        data.std,
        _fitted(model["name"], model.get("options") or {}),
    )


def _fitted(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options of a network, with one number for a list or back where its factory wants it.

    A flag such as ``--hidden`` is one number for some networks and several for others.
    """
    parameters = inspect.signature(MODELS[name]).parameters if name in MODELS else {}
    fitted = dict(options)
    for option in options.keys() & parameters.keys():
        value, default = options[option], parameters[option].default
        if isinstance(default, int) and isinstance(value, list) and len(value) == 1:
            fitted[option] = value[0]
        elif isinstance(default, (list, tuple)) and isinstance(value, int):
            fitted[option] = [value]
    return fitted


def config_of(train: Mapping[str, Any]) -> TrainConfig:
    """Return the training settings."""
    return TrainConfig.from_dict(dict(train))
