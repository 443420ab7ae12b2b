"""What gradient attacks need to know of a set: a random point, a steepest step, a projection."""

from __future__ import annotations

import math
from typing import Optional

import torch
from torch import Tensor

from ..perturbations.lp_box import PerturbationLpBox, _column

_L1_SHARE = 0.05  # share of the coordinates that one l_1 step moves


def random_point(perturbation: PerturbationLpBox, x: Tensor, generator: Optional[torch.Generator] = None) -> Tensor:
    """Return a random point of the set around each input, shape of x.

    l_inf: uniform in the enclosing box; l_2 and l_1: a random direction, uniform in radius.
    """
    if perturbation.norm == math.inf:
        x_L, x_U = perturbation.enclosing_box(x)
        return x_L + (x_U - x_L) * _uniform(x, generator)
    direction = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=_device(x, generator)).to(x.device)
    length = torch.linalg.vector_norm(direction.flatten(1), perturbation.norm, dim=1).clamp(min=1e-12)
    eps = perturbation.radius(x)
    radius = eps * _uniform(eps, generator)
    return project(perturbation, x + direction * _column(radius / length, x), x)


def steepest_step(perturbation: PerturbationLpBox, gradient: Tensor, point: Tensor, x: Tensor) -> Tensor:
    """Return the direction of l_p length 1 that rises most: sign, normalised gradient, or the largest coordinates."""
    if perturbation.norm == math.inf:
        return gradient.sign()
    if perturbation.norm == 2:
        length = torch.linalg.vector_norm(gradient.flatten(1), dim=1).clamp(min=1e-12)
        return gradient / _column(length, gradient)
    box = perturbation.clip_box(x)
    if box is not None:  # a coordinate at the edge of clip cannot move outwards
        stuck = ((point >= box[1]) & (gradient > 0)) | ((point <= box[0]) & (gradient < 0))
        gradient = gradient.masked_fill(stuck, 0.)
    flat = gradient.flatten(1)
    count = max(1, math.ceil(_L1_SHARE * flat.shape[1]))
    largest = flat.abs().topk(count, dim=1).indices
    chosen = torch.zeros_like(flat).scatter(1, largest, flat.gather(1, largest).sign() / count)
    return chosen.view_as(gradient)


def project(perturbation: PerturbationLpBox, point: Tensor, x: Tensor) -> Tensor:
    """Return a point of the set near ``point``, shape of x: onto the ball, then into clip.

    Cutting with clip moves every coordinate towards x, so the result stays in the ball.
    """
    eps, box = perturbation.radius(x), perturbation.clip_box(x)
    if box is not None:
        point = torch.minimum(torch.maximum(point, box[0]), box[1])
    offset = point - x
    if perturbation.norm == math.inf:
        offset = torch.minimum(torch.maximum(offset, -_column(eps, x)), _column(eps, x))
    elif perturbation.norm == 2:
        length = torch.linalg.vector_norm(offset.flatten(1), dim=1)
        offset = offset * _column((eps / length.clamp(min=1e-12)).clamp(max=1.), x)
    else:
        offset = _project_l1(offset.flatten(1), eps).view_as(x)
    point = x + offset
    return point if box is None else torch.minimum(torch.maximum(point, box[0]), box[1])


def _project_l1(offset: Tensor, eps: Tensor) -> Tensor:
    """Euclidean projection onto the l_1 ball by soft thresholding (Duchi et al. 2008)."""
    size = offset.abs()
    ordered = size.sort(dim=1, descending=True).values
    excess = (ordered.cumsum(1) - eps.unsqueeze(1)) / torch.arange(1, size.shape[1] + 1, device=size.device)
    kept = (ordered > excess).sum(1, keepdim=True).clamp(min=1)
    threshold = excess.gather(1, kept - 1).clamp(min=0)
    return offset.sign() * (size - threshold).clamp(min=0)


def _uniform(like: Tensor, generator: Optional[torch.Generator]) -> Tensor:
    device = _device(like, generator)
    return torch.rand(like.shape, generator=generator, dtype=like.dtype, device=device).to(like.device)


def _device(like: Tensor, generator: Optional[torch.Generator]) -> torch.device:
    return like.device if generator is None else generator.device
