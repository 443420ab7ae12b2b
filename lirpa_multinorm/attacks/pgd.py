"""Adversarial examples of a classifier in several perturbation sets at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..perturbations import PerturbationLpBox, Region, as_perturbations
from ..utils.deferred import deferred_checks
from ..utils.modes import evaluating, sheltered
from .ascent import maximize
from .geometry import Randomness
from .objectives import LOSSES, ClassifierObjective
from .settings import AttackSettings
from .views import Batched, attack_view, matmul_precision


@sheltered
def pgd(
    model: nn.Module,
    x: Tensor,
    labels: Tensor,
    perturbations: Sequence[PerturbationLpBox],
    settings: AttackSettings = AttackSettings(),
    generator: torch.Generator | None = None,
) -> list[Tensor]:
    """Search adversarial examples in several sets by a batched projected gradient ascent.

    The model is put in eval mode for the attack and back afterwards, and run as :func:`attack_view`
    folds it; no gradient is computed for its weights.

    Args:
        model: Classifier (B, ...) -> (B, K).
        x: Inputs, shape (B, ...).
        labels: True classes, shape (B,).
        perturbations: The sets to search.
        settings: See :class:`AttackSettings`.
        generator: Source of the random starts.

    Returns:
        The best point found per set, each of x's shape, inside its set.

    Raises:
        InvalidArgumentError: An argument cannot be used.

    Source: Madry et al. 2018; l_2 and l_1 steps as usual for steepest ascent in that norm.

    Example:
        >>> from lirpa_multinorm import PerturbationLinf
        >>> model = nn.Linear(2, 2, bias=False)
        >>> _ = model.weight.data.copy_(torch.eye(2))
        >>> x, y = torch.tensor([[0.6, 0.5]]), torch.tensor([0])
        >>> (adversarial,) = pgd(model, x, y, [PerturbationLinf(eps=0.1)])
        >>> adversarial
        tensor([[0.5000, 0.6000]])
    """
    regions = [Region(x, perturbation) for perturbation in as_perturbations(perturbations)]
    return attack_regions(model, regions, [labels] * len(regions), settings, generator)


@sheltered
def attack_regions(
    model: nn.Module,
    regions: Sequence[Region],
    labels: Sequence[Tensor],
    settings: AttackSettings = AttackSettings(),
    generator: Randomness | Sequence[Randomness] = None,
) -> list[Tensor]:
    """Search adversarial examples in regions, each with its inputs and labels (see :func:`pgd`).

    The regions are stacked into a batch; a model that takes a single input only sees their examples
    in turn.

    Args:
        model: Classifier (B, ...) -> (B, K).
        regions: (inputs, set) pairs.
        labels: True classes of each region's inputs.
        settings: See :class:`AttackSettings`.
        generator: Source of the random starts: one for all regions, or a list with one for each.

    Returns:
        The best points found, one tensor per region.
    """
    with deferred_checks():
        for region in regions:
            region.perturbation.check_input(region.center)
    with evaluating(model), matmul_precision(settings.precision):
        objective = ClassifierObjective(
            Batched(attack_view(model, settings.precision, settings.channels_last)),
            [region.center for region in regions],
            labels,
            LOSSES[settings.loss],
        )
        points, _ = maximize(
            objective,
            regions,
            settings,
            generator,
            objective.is_wrong if settings.stop_early else None,
        )
    return points
