"""Checks before a run's first step, so that nothing known at the start is reported hours later."""

from __future__ import annotations

import math
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..bounds import BoundedModule
from ..data import CROP_TINYIMAGENET, ImageData, augmentation, checked_data, to_unit
from ..errors import InvalidArgumentError, NaNBoundError, OutputFolderError
from ..losses import build_loss, shi_regularizer
from ..models import shi_init_
from ..perturbations import PerturbationLinf, PerturbationLpBox, Region, as_perturbations
from ..utils import distributed
from ..utils.randomness import generators_kept, seed_generators
from .checkpoint import initial_weights
from .config import ModelSpec, TrainConfig

SAMPLE = 200  # training images whose distances are compared with the radii
# Tensors per weight: itself, Adam's two moments, twice that with a natural optimiser and an
# average.
STATES = 6


def check_run(
    spec: ModelSpec,
    data: ImageData,
    perturbations: Sequence[PerturbationLpBox],
    config: TrainConfig,
    device: str = "cpu",
    initial: str | Path | None = None,
) -> ImageData:
    """Check everything about a run that is known before its first step.

    Torch's generators are not moved.

    Data, sets, schedule and batch size are checked; then the loss is computed at the full radius,
    forward and backward, on a few images by a network that is thrown away.

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
    sets = as_perturbations(perturbations)
    if config.loss != "natural":
        check_radii(sets, data.x_train, data.y_train)
    _rehearse(spec, data, sets, config, device, initial)
    return data


def check_device(device: str) -> None:
    """Raise InvalidArgumentError unless tensors can be made on a device."""
    try:
        torch.zeros(1, device=device)
    except (
        RuntimeError,
        AssertionError,
        TypeError,
    ) as error:  # AssertionError: torch built without CUDA
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
    seen = tuple(data.x_train.shape[1:])
    if config.augment == "tinyimagenet":
        seen = (*seen[:1], CROP_TINYIMAGENET, CROP_TINYIMAGENET)
    if seen != expected:
        raise InvalidArgumentError(
            f"data {data.name!r}, augment={config.augment!r}: training images of {seen} do not "
            f"fit the network, which takes {expected}; choose another augmentation"
        )
    if config.batch_size > len(data.x_train):
        raise InvalidArgumentError(
            f"batch_size={config.batch_size} is larger than the {len(data.x_train)} "
            "training images; use a smaller one"
        )


def check_schedule(config: TrainConfig) -> None:
    """Raise InvalidArgumentError where a run ends before what its settings name has begun.

    Lengths are in epochs.

    A milestone that is never reached is a warning only: the result is still what it is called.
    """
    schedule, epochs = config.schedule, config.epochs
    late = [str(milestone) for milestone in config.milestones if milestone >= epochs]
    if late:
        warnings.warn(
            f"milestones: {', '.join(late)} never reached in {epochs} epochs, so the learning rate"
            ' does not fall there; give smaller ones, or shares of the run such as "70%"',
            stacklevel=3,
        )
    if config.loss == "natural":
        return
    share = schedule.eps_scale(epochs)
    if share < 1 - 1e-9 and not config.partial_radius:
        raise InvalidArgumentError(
            f"schedule: the run ends at {100 * share:.2g} % of the radius:"
            f" natural_epochs={schedule.natural_epochs:g} and"
            f" anneal_epochs={schedule.anneal_epochs:g} need {schedule.full_at():g} of"
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


def check_radii(perturbations: Sequence[PerturbationLpBox], images: Tensor, labels: Tensor) -> None:
    """Check radii and ranges against images in [0, 1].

    Warns where most images share a point of their set with that of an image of another class: no
    network is right on both.

    Args:
        perturbations: The sets.
        images: Images (N, C, H, W), uint8 or in [0, 1].
        labels: Labels (N,).

    Raises:
        InvalidArgumentError: A radius spans the whole range [0, 1], or an image is outside a set's
            ``clip``.
    """
    ends = torch.stack([to_unit(images.amin(0)), to_unit(images.amax(0))])
    for perturbation in perturbations:
        if isinstance(perturbation.eps, Tensor):
            raise InvalidArgumentError(
                "perturbations: eps has one value per example; a run needs one radius per set"
            )
        norm, eps = perturbation.norm, perturbation.eps
        diameter = float(torch.linalg.vector_norm(torch.ones(images[0].numel()), norm))
        if eps >= diameter:
            raise InvalidArgumentError(
                f"eps={eps:g} of the l_{norm} set reaches from any image in [0, 1] to any "
                f"other (they are at most {diameter:.6g} apart). Give it on that scale: "
                f"{eps:g}/255 is {eps / 255:.4g}"
            )
        box = perturbation.clip_box(ends)
        if box is not None and bool(((ends < box[0] - 1e-6) | (ends > box[1] + 1e-6)).any()):
            raise InvalidArgumentError(
                f"clip={perturbation.clip} of the l_{norm} set does not hold the images, whose "
                "values lie in [0, 1]. Use clip=(0, 1), or None for the plain ball"
            )
        share = _overlapping(norm, eps, images, labels)
        if share > 0.5:
            warnings.warn(
                f"eps={eps:g} of the l_{norm} set: {100 * share:.0f} % of the training images have"
                " an image of another class within 2 eps, and no network is right on both sets; is"
                f" it on the scale of images in [0, 1] ({eps:g}/255 is {eps / 255:.4g})?",
                stacklevel=3,
            )


def _overlapping(norm: float, eps: float, images: Tensor, labels: Tensor) -> float:
    """Return the share of the first images with one of another class within 2 eps.

    The other is one of these images too. Where there is one, the sets meet.
    """
    x, y = to_unit(images[:SAMPLE]).float().flatten(1), labels[:SAMPLE]
    distances = (
        torch.cdist(x, x, float(norm))
        if norm in (1, 2, math.inf)
        else torch.full((len(x), len(x)), math.inf)
    )
    others = y[:, None] != y[None]
    return float(((distances <= 2 * eps) & others.to(distances.device)).any(1).float().mean())


def check_space(folder: str | Path, weights: int, runs: int = 1) -> None:
    """Raise OutputFolderError where a disk has no room for the checkpoints of some runs.

    Args:
        folder: The output folder, or one that will be made.
        weights: Bytes of a network's weights.
        runs: Finished runs whose checkpoints (weights alone) are kept; one more is written while
            the old one stays.
    """
    place = Path(folder).expanduser().absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    needed = weights * (runs + 2 * STATES)
    free = shutil.disk_usage(place).free
    if free < needed:
        raise OutputFolderError(
            f"output: {free / 1e6:.0f} MB are free in {str(place)!r}, but checkpoints need about "
            f"{needed / 1e6:.0f} MB. Free some space, or give another folder"
        )


def weight_bytes(spec: ModelSpec) -> int:
    """Return how many bytes the weights of a network take; torch's generator is not moved."""
    with generators_kept():
        return sum(
            value.numel() * value.element_size() for value in spec.build().state_dict().values()
        )


def _rehearse(
    spec: ModelSpec,
    data: ImageData,
    sets: Sequence[PerturbationLpBox],
    config: TrainConfig,
    device: str,
    initial: str | Path | None,
) -> None:
    """Compute a run's losses once, forward and backward, on a few images by a separate network."""
    with generators_kept(device):
        seed_generators(config.seed, device)
        model = spec.build()
        if initial is not None:
            initial_weights(initial, model)
        elif config.initialization == "shi":
            shi_init_(model)
        model.to(device).train()
        try:
            loss = build_loss(config.loss, sets, **config.loss_options)
        except InvalidArgumentError as error:
            if not isinstance(error.__cause__, TypeError):
                raise
            raise InvalidArgumentError(
                f"loss_options={dict(config.loss_options)!r}: {error}"
            ) from error
        count = min(config.batch_size, max(2, len(sets)))
        x, y = to_unit(data.x_train[:count]).to(device), data.y_train[:count].to(device)
        augment = augmentation(config.augment)
        x = x if augment is None else augment(x, torch.Generator().manual_seed(config.seed))
        try:
            _losses(model, loss, sets, config, x, y).backward()
        except (
            NaNBoundError
        ):  # an untrained network may overflow at the full radius, to which a run rises slowly
            return


def _losses(
    model: nn.Module,
    loss,
    sets: Sequence[PerturbationLpBox],
    config: TrainConfig,
    x: Tensor,
    y: Tensor,
) -> Tensor:
    bounded = BoundedModule(model, perturbations=sets)
    total = F.cross_entropy(bounded(x), y)
    if loss is None:
        return total
    # CROWN-IBP has no share in the published loss at the full radius.
    halfway = [0.5] if any(term.bounding == "CROWN-IBP" for term in loss.terms) else []
    for scale in (*halfway, 1.0):
        robust = loss(
            bounded, x, y, eps_scale=scale, generator=distributed.SharedGenerator(config.seed)
        )
        total = total + robust.value
    if config.regularizer:
        hidden = robust.hidden
        if not hidden:
            region = Region(x, PerturbationLinf(1e-6, sets[0].clip))
            hidden = bounded.compute_region_bounds([region], None, "IBP")[0].intermediate
        total = total + config.regularizer * shi_regularizer(hidden)
    return total
