"""Checks before a run's first step, so that no mistake in its settings shows hours later."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import torch

from ..data import CROP_TINYIMAGENET, ImageData, checked_data
from ..errors import InvalidArgumentError
from ..perturbations.described import AnySet, certifiable_sets
from .config import ModelSpec, TrainConfig
from .lengths import milestones_of
from .radii import check_radii
from .rehearsal import rehearse


def check_run(
    spec: ModelSpec,
    data: ImageData,
    perturbations: Sequence[AnySet],
    config: TrainConfig,
    device: str = "cpu",
    initial: str | Path | None = None,
) -> ImageData:
    """Check everything about a run that can be checked before its first step.

    Data, sets, schedule and batch size are checked; then the loss is computed at the full radius,
    forward and backward, on a few images by a separate network. Torch's generators are not moved.

    Args:
        spec: The network.
        data: Training and test images, as made by hand.
        perturbations: The sets.
        config: Everything else.
        device: Where the run will train.
        initial: File of weights to start from.

    Returns:
        The data set, with images and labels converted where they may be.

    Raises:
        InvalidArgumentError: Something cannot be used; the message names it, with the remedy.
        CheckpointError: The initial weights cannot be used.

    Example:
        >>> import torch
        >>> from lirpa_multinorm import PerturbationLinf
        >>> x, y = torch.rand(8, 1, 4, 4), torch.arange(8) % 2
        >>> data = ImageData("tiny", 2, (0.0,), (1.0,), x, y, x, y)
        >>> spec = ModelSpec("mlp", (1, 4, 4), 2)
        >>> config = TrainConfig("sabr", epochs=30, batch_size=4)
        >>> check_run(spec, data, [PerturbationLinf(0.01)], config).name
        'tiny'
    """
    for name, kind, value in (
        ("spec", ModelSpec, spec),
        ("data", ImageData, data),
        ("config", TrainConfig, config),
    ):
        if not isinstance(value, kind):
            raise InvalidArgumentError(f"{name}={value!r} must be a {kind.__name__}")
    check_device(device)
    data, config = checked_data(data), config.in_epochs()
    check_shapes(spec, data, config)
    check_schedule(config)
    sets = certifiable_sets(perturbations)
    if config.loss != "natural":
        check_radii(sets, data.x_train, data.y_train)
    rehearse(spec, data, sets, config, device, initial)
    return data


def check_device(device: str) -> None:
    """Raise InvalidArgumentError unless tensors can be made on a device."""
    try:
        torch.zeros(1, device=device)
    # AssertionError: torch built without CUDA.
    except (RuntimeError, AssertionError, TypeError) as error:
        raise InvalidArgumentError(
            f"device={device!r} cannot be used ({str(error).splitlines()[0]}); "
            "use --device cpu, or cuda where torch finds a GPU"
        ) from error


def check_shapes(spec: ModelSpec, data: ImageData, config: TrainConfig) -> None:
    """Raise InvalidArgumentError where images or labels are not what network and batches take."""
    expected, given = tuple(spec.in_shape), tuple(data.in_shape)
    if given != expected:
        raise InvalidArgumentError(
            f"data {data.name!r} has images {given}; the network takes {expected}. Choose the "
            "data it was made for"
        )
    if data.num_classes > spec.num_classes:
        raise InvalidArgumentError(
            f"data {data.name!r} has {data.num_classes} classes; the network has "
            f"{spec.num_classes} outputs. Choose the data it was made for"
        )
    augmented = tuple(data.x_train.shape[1:])
    if config.augment == "tinyimagenet":
        augmented = (*augmented[:1], CROP_TINYIMAGENET, CROP_TINYIMAGENET)
    if augmented != expected:
        raise InvalidArgumentError(
            f"data {data.name!r}, augment={config.augment!r}: training images of {augmented} do "
            f"not fit the network, which takes {expected}; choose another augmentation"
        )
    if config.batch_size > len(data.x_train):
        raise InvalidArgumentError(
            f"batch_size={config.batch_size} is larger than the {len(data.x_train)} "
            "training images; use a smaller one"
        )


def check_schedule(config: TrainConfig) -> None:
    """Raise InvalidArgumentError where a run ends before the full radius or the projection begins.

    A milestone that is never reached is a warning only.

    Args:
        config: Settings with lengths in epochs.
    """
    schedule, epochs = config.schedule, config.epochs
    milestones = milestones_of(config.milestones, epochs)
    late = [str(milestone) for milestone in milestones if milestone >= epochs]
    if late and not config.adam.cosine:
        warnings.warn(
            f"milestones: {', '.join(late)} never reached in {epochs} epochs, so the learning rate"
            ' does not fall there; give smaller ones, or shares of the run such as "70%"',
            stacklevel=3,
        )
    if config.loss == "natural":
        return
    share, (natural, anneal) = schedule.eps_scale(epochs), schedule.lengths()
    if share < 1 - 1e-9 and not config.partial_radius:
        raise InvalidArgumentError(
            f"schedule: the run ends at {100 * share:.2g} % of the radius:"
            f" natural_epochs={natural:g} and"
            f" anneal_epochs={anneal:g} need {schedule.full_at():g} of"
            f" epochs={epochs}. Train longer, shorten them, give shares of the run such as"
            ' anneal_epochs="50%" (--anneal-epochs 50%), or ask for it with partial_radius=True'
            " (--partial-radius)"
        )
    if config.projection is not None and schedule.full_at() > epochs - 1:
        raise InvalidArgumentError(
            "projection: it acts on whole epochs at the full radius, which is reached after"
            f" {schedule.full_at():g} of epochs={epochs}, so it would never start. Train longer,"
            " anneal for a shorter time, or leave it out"
        )
