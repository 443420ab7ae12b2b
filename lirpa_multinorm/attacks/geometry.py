"""Geometry of sets for gradient attacks: a random point, a steepest step, a projection."""

from __future__ import annotations

from typing import Optional, Union

import torch
from torch import Tensor

from ..perturbations.broadcast import column
from ..perturbations.lp_box import PerturbationLpBox
from ..utils.distributed import SharedGenerator
from .randomness import RowGenerator

Randomness = Optional[Union[torch.Generator, SharedGenerator, RowGenerator]]


def random_point(
    perturbation: PerturbationLpBox, x: Tensor, generator: Randomness = None
) -> Tensor:
    """Return a random point of the set around each input, shape of x.

    l_inf: uniform in the enclosing box; l_2 and l_1: a random direction, uniform in radius.
    """
    if perturbation.is_box():
        lower, upper = perturbation.enclosing_box(x)
        return lower + (upper - lower) * uniform(x, generator)
    direction = normal(x, generator)
    length = torch.linalg.vector_norm(direction.flatten(1), perturbation.norm, dim=1)
    length = length.clamp(min=1e-12)
    eps = perturbation.radius(x)
    radius = eps * uniform(eps, generator)
    return project(perturbation, x + direction * column(radius / length, x), x)


def steepest_step(
    perturbation: PerturbationLpBox, gradient: Tensor, point: Tensor, x: Tensor
) -> Tensor:
    """Return the direction of l_p length 1 in which the objective rises most.

    It is the gradient's sign, the normalised gradient, or its largest coordinates.
    """
    norm, box, stuck = perturbation.ball, perturbation.clip_box(x), None
    if norm.avoids_edges and box is not None:
        # A coordinate at the edge of clip cannot move outwards.
        lower, upper = box
        outwards = ((point >= upper) & (gradient > 0)) | ((point <= lower) & (gradient < 0))
        stuck = outwards.flatten(1)
    return norm.steepest(gradient.flatten(1), stuck).view_as(gradient)


def project(perturbation: PerturbationLpBox, point: Tensor, x: Tensor) -> Tensor:
    """Return a point of the set near ``point``, shape of x: onto the ball, then into clip.

    Cutting with clip moves every coordinate towards x, so the result stays in the ball.
    """
    box = perturbation.clip_box(x)
    if box is not None:
        point = torch.minimum(torch.maximum(point, box[0]), box[1])
    offset = perturbation.ball.project((point - x).flatten(1), perturbation.radius(x))
    point = x + offset.view_as(x)
    return point if box is None else torch.minimum(torch.maximum(point, box[0]), box[1])


def box_of(perturbation: PerturbationLpBox, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return (lower, upper) of a box set, shape of x each; neither is rounded out of clip."""
    box, clip = perturbation.enclosing_box(x), perturbation.clip_box(x)
    if clip is None:
        return box
    lower, upper = (torch.minimum(torch.maximum(bound, clip[0]), clip[1]) for bound in box)
    return lower, upper


def uniform(like: Tensor, generator: Randomness = None) -> Tensor:
    """Return uniform numbers in [0, 1) of a tensor's shape, type and device."""
    return _drawn("rand", like, generator)


def normal(like: Tensor, generator: Randomness = None) -> Tensor:
    """Return standard normal numbers of a tensor's shape, type and device."""
    return _drawn("randn", like, generator)


def _drawn(kind: str, like: Tensor, generator: Randomness) -> Tensor:
    if isinstance(generator, (SharedGenerator, RowGenerator)):
        return getattr(generator, kind)(like.shape, dtype=like.dtype).to(like.device)
    device = like.device if generator is None else generator.device
    draw = getattr(torch, kind)
    return draw(like.shape, generator=generator, dtype=like.dtype, device=device).to(like.device)
