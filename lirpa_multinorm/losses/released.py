"""The l_2 attack of CURE's released code, only for comparison with its numbers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..attacks import AttackSettings
from ..attacks.geometry import Randomness, normal, uniform
from ..perturbations import PerturbationLinf, PerturbationLpBox
from ..utils.modes import evaluating


def released_attack(
    model: nn.Module,
    x: Tensor,
    labels: Tensor,
    perturbation: PerturbationLpBox,
    settings: AttackSettings,
    generator: Randomness = None,
) -> Tensor:
    """Return adversarial points that may lie **outside** the l_2 set, as in the released code.

    It differs from the paper: the random start is added twice, the displacement projected onto the
    ball is added to the current point instead of to x, so that the point drifts by up to eps in
    every step, and only the l_inf box of half-width eps (cut with clip) keeps it near x. The step
    is a share of the widest half-width of that box.

    Args:
        model: Classifier (B, ...) -> (B, K).
        x: Inputs, shape (B, ...).
        labels: True classes, shape (B,).
        perturbation: The l_2 set.
        settings: Number of steps, step size and its decays.
        generator: Source of the random starts.

    Returns:
        The point of highest cross-entropy per input.

    Source: the l_2 term of the attack in CURE's repository (uiuc-focal-lab/CURE).
    """
    eps = perturbation.radius(x).view(-1, *[1] * (x.ndim - 1))
    lower, upper = PerturbationLinf(perturbation.eps, perturbation.clip).enclosing_box(x)
    width = ((upper - lower) / 2).max()
    direction = normal(x, generator)
    start = direction / _length(direction) * eps * uniform(eps, generator)
    point, best = x + 2 * start, x.clone()
    value = torch.full((len(x),), -float("inf"), dtype=x.dtype, device=x.device)
    with evaluating(model):
        for step in range(settings.steps + 1):
            point = point.detach().requires_grad_(True)
            with torch.enable_grad():
                loss = F.cross_entropy(model(point), labels.long(), reduction="none")
                (gradient,) = torch.autograd.grad(loss.sum(), point)
            better = loss.detach() > value
            best = torch.where(better.view(-1, *[1] * (x.ndim - 1)), point.detach(), best)
            value = torch.where(better, loss.detach(), value)
            direction = gradient / _length(gradient)
            moved = direction * settings.step_length(2) * settings.decay(step) * width
            offset = point.detach() + moved - x
            offset = offset * (eps / _length(offset)).clamp(max=1)
            point = torch.minimum(torch.maximum(point.detach() + offset, lower), upper)
    return best.clamp(lower, upper)


def _length(values: Tensor) -> Tensor:
    length = torch.linalg.vector_norm(values.flatten(1), dim=1).clamp(min=1e-10)
    return length.view(-1, *[1] * (values.ndim - 1))
