"""Attacks by transforms: a grid of parameters, then gradient steps from the worst point."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..perturbations.geometric import PerturbationGeometric
from ..transforms import transformed
from .objectives import margin_loss
from .settings import AttackSettings
from .views import Batched

_STEP = 0.3  # of the first step, in shares of half a range; it shrinks to a tenth
_CHUNK = 512  # images that are classified at once


@torch.no_grad()
def attack_transforms(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    perturbation: PerturbationGeometric,
    settings: AttackSettings,
) -> Tensor:
    """Return the transformed images with the largest margin loss that a search has found.

    Args:
        model: Classifier, in eval mode.
        images: In [0, 1], (B, C, H, W).
        labels: (B,).
        perturbation: The transforms.
        settings: As many points of a grid and a quarter as many gradient steps as ``steps`` says,
            for each restart.

    Returns:
        Shape of images.
    """
    run = Batched(model)
    grid = perturbation.points(settings.steps * settings.restarts, images)
    losses = torch.stack([_losses(run, images, labels, point) for point in grid.split(1)], 1)
    best, parameters = losses.max(1).values, grid[losses.argmax(1)]
    points = transformed(images, parameters)
    lower, upper = perturbation.box(images)
    steps = max(1, settings.steps // 4)
    for step in range(steps):
        with torch.enable_grad():
            leaf = parameters.detach().requires_grad_()
            loss = margin_loss(run(transformed(images, leaf)), labels)
            (gradient,) = torch.autograd.grad(loss.sum(), leaf)
        length = _STEP * (upper - lower) / 2 * 0.1 ** (step / steps)
        parameters = (parameters + length * gradient.sign()).clamp(lower, upper)
        moved = transformed(images, parameters)
        loss = margin_loss(run(moved), labels)
        better = loss > best
        best = torch.where(better, loss, best)
        points[better] = moved[better]
    return points


def _losses(run: Batched, images: Tensor, labels: Tensor, parameters: Tensor) -> Tensor:
    """Return the margin losses of images under one transform, (B,)."""
    chunks = [
        margin_loss(run(transformed(part, parameters.expand(len(part), -1))), label)
        for part, label in zip(images.split(_CHUNK), labels.split(_CHUNK))
    ]
    return torch.cat(chunks)
