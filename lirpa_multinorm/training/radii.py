"""Checks of radii and ranges against the images that they are for."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from ..data import to_unit
from ..errors import InvalidArgumentError
from ..perturbations import PerturbationLpBox
from ..perturbations.described import AnySet, has_radius

SAMPLE = 200  # training images whose distances are compared with the radii


def check_radii(perturbations: Sequence[AnySet], images: Tensor, labels: Tensor) -> None:
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
    extremes = torch.stack([to_unit(images.amin(0)), to_unit(images.amax(0))])
    for perturbation in perturbations:
        if not has_radius(perturbation):
            perturbation.check_input(to_unit(images[:1]))
            continue
        if isinstance(perturbation.eps, Tensor):
            raise InvalidArgumentError(
                "perturbations: eps has one value per example; a run needs one radius per set"
            )
        norm, eps = perturbation.norm, perturbation.eps
        corners = torch.ones(images[0].numel(), device="cpu")  # as far apart as 0 and 1 at each
        diameter = float(torch.linalg.vector_norm(corners, norm))
        if eps >= diameter:
            raise InvalidArgumentError(
                f"eps={eps:g} of the l_{norm} set reaches from any image in [0, 1] to any "
                f"other (they are at most {diameter:.6g} apart). Give it on that scale: "
                f"{eps:g}/255 is {eps / 255:.4g}"
            )
        if _leaves_range(perturbation, extremes):
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


def _leaves_range(perturbation: PerturbationLpBox, extremes: Tensor) -> bool:
    """Return whether a set's ``clip`` lacks one of the smallest and largest pixels (2, C, H, W)."""
    box = perturbation.clip_box(extremes)
    if box is None:
        return False
    lower, upper = box
    return bool(((extremes < lower - 1e-6) | (extremes > upper + 1e-6)).any())


def _overlapping(norm: float, eps: float, images: Tensor, labels: Tensor) -> float:
    """Return the share of the first images whose set meets that of another of them.

    The other image is of another class and within 2 eps.
    """
    x, y = to_unit(images[:SAMPLE]).float().flatten(1), labels[:SAMPLE]
    if norm in (1, 2, math.inf):
        distances = torch.cdist(x, x, float(norm))
    else:
        distances = x.new_full((len(x), len(x)), math.inf)
    others = y[:, None] != y[None]
    return float(((distances <= 2 * eps) & others.to(distances.device)).any(1).float().mean())
