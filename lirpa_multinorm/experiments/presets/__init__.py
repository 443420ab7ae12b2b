"""Recipes by name: CURE's Table 1, as in the paper and as in its released code."""

from __future__ import annotations

from argparse import ArgumentTypeError
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ...errors import InvalidArgumentError
from ...perturbations.described import AnySet
from ...training import TrainConfig
from ...utils.words import number
from ..split_sets import all_sets_of
from .files import nearest_source, preset_content, preset_names

__all__ = ["Preset", "load_preset", "preset_names"]


@dataclass(frozen=True)
class Preset:
    """A training recipe; ``docs/recipes.md`` explains the numbers.

    Args:
        name: The name that :func:`load_preset` takes.
        title: One line for reports.
        data: Name of the data set, for :func:`lirpa_multinorm.data.load`.
        eps: Radius per norm ("inf", "2", "1"), for images in [0, 1].
        transforms: Columns of the paper's tables, or parameters of one set of transforms each.
        patch: Sizes of patches, such as "5x5".
        model: Name of the network, for :func:`lirpa_multinorm.models.build_model`.
        model_options: Its options.
        train: Everything else about training.
        initial: Name of the preset whose checkpoint training starts from; None: from scratch.
        source: Where each value comes from; a key such as "train.schedule" speaks for all below it.
    """

    name: str
    title: str
    data: str
    eps: dict[str, float]
    model: str
    model_options: dict[str, Any]
    train: TrainConfig
    initial: str | None = None
    source: dict[str, str] = field(default_factory=dict, repr=False)
    transforms: Sequence[Any] = ()
    patch: Sequence[str] = ()

    def perturbations(self) -> list[AnySet]:
        """Return the sets, balls cut with the pixel range [0, 1].

        Example:
            >>> load_preset("mnist-0.1-0.5-max").perturbations()
            [PerturbationLpBox(norm=inf, eps=0.1, clip=(0.0, 1.0)), PerturbationLpBox(norm=2,
            eps=0.5, clip=(0.0, 1.0))]
        """
        return all_sets_of({"eps": self.eps, **self._split_settings()})

    def settings(self) -> dict[str, Any]:
        """Return the recipe as nested data ("data", "eps", "model", "train") for flags to override.

        Transforms and patches stand in it where the recipe has some.

        Example:
            >>> load_preset("mnist-0.1-0.5-max").settings()["eps"]
            {'inf': 0.1, '2': 0.5}
        """
        model = {"name": self.model, "options": dict(self.model_options)}
        return {
            "data": self.data,
            "eps": dict(self.eps),
            **self._split_settings(),
            "model": model,
            "train": self.train.to_dict(),
        }

    def _split_settings(self) -> dict[str, Any]:
        """Return the transforms and patches as settings; what there is none of is left out."""
        settings = {"transforms": self.transforms, "patch": self.patch}
        return {name: value for name, value in settings.items() if value}

    def source_of(self, path: str) -> str | None:
        """Return where a value comes from, or None for a default of this package.

        Args:
            path: The value's path, such as "eps.2" or "train.loss_options.ratio_inf".

        Example:
            >>> load_preset("mnist-0.1-0.5-max").source_of("train.loss_options.ratio_inf")
            'SABR README: --lambda_ratio 0.4'
        """
        return nearest_source(self.source, path)


def load_preset(name: str, released: bool = False) -> Preset:
    """Return a recipe by name.

    Args:
        name: One of :func:`preset_names`: ``<data>-<eps_inf>-<eps_2>-<row>``.
        released: Whether to train as the authors' released code does instead of as the paper says;
            the same where the two do not differ.

    Returns:
        The recipe.

    Raises:
        InvalidArgumentError: There is no such preset, or its file is damaged.

    Example:
        >>> load_preset("mnist-0.3-1.0-scratch").train.projection.beta
        0.5
        >>> load_preset("mnist-0.3-1.0-scratch", released=True).train.projection.beta
        0.8
    """
    content = preset_content(name, released)
    preset = Preset(
        name,
        content["title"],
        content["data"],
        {norm: _radius(name, norm, eps) for norm, eps in content["eps"].items()},
        content["model"]["name"],
        content["model"].get("options", {}),
        _train(name, content["train"]),
        content.get("initial"),
        content["source"],
        content.get("transforms", ()),
        content.get("patch", ()),
    )
    try:
        preset.perturbations()
    except InvalidArgumentError as error:
        raise InvalidArgumentError(f"preset file {name}.json: {error}") from error
    return preset


def _radius(name: str, norm: str, eps: Any) -> float:
    """Return a radius given as a number, or as a fraction such as "8/255"."""
    try:
        return number(eps) if isinstance(eps, str) else float(eps)
    except (TypeError, ValueError, ArgumentTypeError) as error:
        raise InvalidArgumentError(
            f"preset file {name}.json: eps.{norm}={eps!r} is neither a number nor a fraction "
            'such as "8/255"'
        ) from error


def _train(name: str, settings: dict) -> TrainConfig:
    """Return the training settings of a preset file."""
    try:
        return TrainConfig.from_dict(settings)
    except (TypeError, ValueError, AttributeError) as error:
        raise InvalidArgumentError(f"preset file {name}.json: train: {error}") from error
