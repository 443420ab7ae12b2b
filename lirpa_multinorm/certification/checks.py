"""Checks of a model, its images and the sets before they are certified."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..bounds import BoundedModule
from ..bounds.checks import check_input, check_weights
from ..bounds.margins import check_labels
from ..errors import InvalidArgumentError
from ..perturbations.described import AnySet
from ..tracing.trace_check import takes_batches
from ..utils.modes import evaluating


def check_problem(
    bounded: BoundedModule, x: Tensor, y: Tensor, sets: Sequence[AnySet]
) -> tuple[int, bool]:
    """Return the number of classes, and whether the model takes batches.

    Raises:
        InvalidArgumentError: No images, inputs and labels that do not fit, or weights that are NaN
            or infinite.
    """
    if not len(x):
        raise InvalidArgumentError("x is empty; give at least one image")
    check_weights(bounded.model)
    with evaluating(bounded), torch.no_grad():
        weights = (weight for weight in bounded.parameters() if weight.is_floating_point())
        check_input(x, next(weights, None))
        classes = bounded.output_shape(x[:1]).numel()
        batched = takes_batches(bounded.model, x)
    if classes < 2:
        raise InvalidArgumentError(f"model has {classes} output; a classifier needs at least 2")
    check_labels(y, classes, len(x), x.device)
    for perturbation in sets:
        perturbation.check_input(x)
    return classes, batched
