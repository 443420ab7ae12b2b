"""A run's losses computed once before its first step, so that what they refuse is refused then."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..bounds import BoundedModule
from ..data import ImageData, augmentation, to_unit
from ..errors import InvalidArgumentError, NaNBoundError
from ..losses import MultiNormLoss, build_loss, shi_regularizer
from ..models import shi_init_
from ..perturbations.described import AnySet, balls_of
from ..utils import distributed
from ..utils.modes import evaluating
from ..utils.randomness import generators_kept, seed_generators
from ..verifier.patches.offered import offering_layer
from .checkpoint import initial_weights
from .config import ModelSpec, TrainConfig
from .step import point_intervals


def rehearse(
    spec: ModelSpec,
    data: ImageData,
    sets: Sequence[AnySet],
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
        loss = _loss_of(config, sets)
        count = min(config.batch_size, max(2, len(sets)))
        x, y = to_unit(data.x_train[:count]).to(device), data.y_train[:count].to(device)
        augment = augmentation(config.augment)
        x = x if augment is None else augment(x, torch.Generator().manual_seed(config.seed))
        # An untrained network may overflow at the full radius, to which a run rises slowly.
        with contextlib.suppress(NaNBoundError):
            _losses(model, loss, sets, config, x, y).backward()


def _loss_of(config: TrainConfig, sets: Sequence[AnySet]) -> MultiNormLoss | None:
    """Build the loss; an option of the wrong type or name is an error of ``loss_options``."""
    try:
        return build_loss(config.loss, sets, **config.loss_options)
    except InvalidArgumentError as error:
        if not isinstance(error.__cause__, TypeError):
            raise
        raise InvalidArgumentError(
            f"loss_options={dict(config.loss_options)!r}: {error}"
        ) from error


def _losses(
    model: nn.Module,
    loss: MultiNormLoss | None,
    sets: Sequence[AnySet],
    config: TrainConfig,
    x: Tensor,
    y: Tensor,
) -> Tensor:
    """Return the sum of the natural loss, the robust loss and the regularisers."""
    bounded = BoundedModule(model, perturbations=balls_of(sets))
    if offering_layer(model) is None:
        with evaluating(model):  # by the graph, which certification needs
            bounded(x)
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
        hidden = robust.hidden or point_intervals(bounded, x, sets[0].clip)
        total = total + config.regularizer * shi_regularizer(hidden)
    return total
