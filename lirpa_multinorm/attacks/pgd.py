"""Projected gradient ascent over several perturbation sets at once."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Callable, List, Mapping, Optional, Sequence, Tuple, Union

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..bounds.margins import check_labels
from ..errors import InvalidArgumentError
from ..modes import evaluating, sheltered
from ..perturbations import NORMS, PerturbationLpBox, PerturbationStack, Region, as_perturbations
from .geometry import Randomness, project, random_point, steepest_step
from .views import PRECISIONS, Batched, attack_view, matmul_precision


@dataclass(frozen=True)
class AttackSettings:
    """How an attack searches.

    Args:
        steps: Gradient steps per restart.
        step_size: First step length as a share of each set's eps: one number, one per norm ({norm: share}), or None
            for each norm's own.
        decays: (share of the steps, factor) pairs: from that share on, the step is multiplied by the factor.
        restarts: Runs from random points; the best point of all is kept.
        loss: "margin" (largest other logit minus the true one) or "ce" (cross-entropy).
        random_start: Whether runs start at random points of the set or at x.
        stop_early: Whether a run ends once every input is misclassified.
        try_center: Whether x itself is a candidate; False saves a forward pass.
        precision: What the network is run with: "float32", "tf32" (CUDA only), or "bfloat16", which is about twice as
            fast where the processor multiplies in it and slower elsewhere. Points are always stepped and projected in
            their own type, so they lie in their sets at any precision.
        channels_last: Whether 2d convolutions of an ``nn.Sequential`` run in channels-last layout.
    """

    steps: int = 40
    step_size: Union[None, float, Mapping[float, float]] = 0.25
    decays: Tuple[Tuple[float, float], ...] = ((0.5, 0.3), (0.75, 0.3))
    restarts: int = 1
    loss: str = "margin"
    random_start: bool = True
    stop_early: bool = False
    try_center: bool = True
    precision: str = "float32"
    channels_last: bool = False

    def __post_init__(self) -> None:
        if self.steps < 1 or self.restarts < 1:
            raise InvalidArgumentError(f"steps={self.steps} and restarts={self.restarts} must be at least 1")
        if self.loss not in LOSSES:
            raise InvalidArgumentError(f"loss={self.loss!r} is unknown; use {' or '.join(sorted(LOSSES))}")
        if self.precision not in PRECISIONS:
            raise InvalidArgumentError(f"precision={self.precision!r} is unknown; use {', '.join(PRECISIONS)}")
        for name in ("random_start", "stop_early", "try_center", "channels_last"):
            if not isinstance(getattr(self, name), bool):
                raise InvalidArgumentError(f"{name}={getattr(self, name)!r} must be True or False")

    def step_length(self, norm: float) -> float:
        """Return the first step length for a norm, as a share of eps."""
        if self.step_size is None:
            return NORMS[norm].step
        if not isinstance(self.step_size, Mapping):
            return self.step_size
        if norm not in self.step_size:
            raise InvalidArgumentError(f"step_size has no entry for norm {norm}; add one, or give a single number")
        return self.step_size[norm]

    def decay(self, step: int) -> float:
        """Return the factor on the first step length at a step."""
        factor = 1.0
        for share, by in self.decays:
            factor *= by if step >= share * self.steps else 1.0
        return factor


def margin_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return max over k != y of ``z_k - z_y``, shape (B,): positive where the input is misclassified."""
    true = logits.gather(1, labels.unsqueeze(1))
    others = logits.scatter(1, labels.unsqueeze(1), float("-inf"))
    return others.max(dim=1).values - true.squeeze(1)


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels, reduction="none")


LOSSES = {"margin": margin_loss, "ce": _cross_entropy}


@sheltered
def pgd(model: nn.Module, x: Tensor, labels: Tensor, perturbations: Sequence[PerturbationLpBox],
        settings: AttackSettings = AttackSettings(), generator: Optional[torch.Generator] = None) -> List[Tensor]:
    """Search adversarial examples in several sets with one batched projected gradient ascent.

    The model is put in eval mode for the attack and back afterwards, and run as :func:`attack_view` folds it; no
    gradient is computed for its weights.

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
    sets = as_perturbations(perturbations)
    return attack_regions(model, [Region(x, one) for one in sets], [labels] * len(sets), settings, generator)


@sheltered
def attack_regions(model: nn.Module, regions: Sequence[Region], labels: Sequence[Tensor],
                   settings: AttackSettings = AttackSettings(),
                   generator: Union[Randomness, Sequence[Randomness]] = None) -> List[Tensor]:
    """Search adversarial examples in regions with inputs and labels of their own (see :func:`pgd`).

    The regions are stacked into one batch; a model that takes a single input only sees their examples one by one.

    Args:
        model: Classifier (B, ...) -> (B, K).
        regions: (inputs, set) pairs.
        labels: True classes of each region's inputs.
        settings: See :class:`AttackSettings`.
        generator: Source of the random starts: one for all regions, or a list with one for each.

    Returns:
        The best points found, one tensor per region.
    """
    with evaluating(model), matmul_precision(settings.precision):
        view = Batched(attack_view(model, settings.precision, settings.channels_last))
        with torch.no_grad():
            classes = view(regions[0].center[:1]).shape[1]
        for region, target in zip(regions, labels):
            region.perturbation.check_input(region.center)
            check_labels(target, classes, region.center.shape[0], region.center.device)
        target, loss = torch.cat(list(labels)).long(), LOSSES[settings.loss]
        solved = (lambda inputs: margin_loss(view(inputs), target) > 0) if settings.stop_early else None
        points, _ = maximize(lambda inputs: loss(view(inputs), target), regions, settings, generator, solved)
    return points


@sheltered
def maximize(objective: Callable[[Tensor], Tensor], regions: Sequence[Region],
             settings: AttackSettings = AttackSettings(), generator: Union[Randomness, Sequence[Randomness]] = None,
             solved: Optional[Callable[[Tensor], Tensor]] = None) -> Tuple[List[Tensor], List[Tensor]]:
    """Maximise a function of the stacked inputs over several regions by projected gradient ascent.

    Args:
        objective: Maps the stacked inputs (sum of B, ...) to one value each.
        regions: (centre, set) pairs.
        settings: Steps, step sizes and restarts (its loss is not used).
        generator: Source of the random starts: one for all regions, or a list with one for each.
        solved: Maps the stacked inputs to bool; a run ends when all are True.

    Returns:
        (points, values) per region; where no point gives a number, the centre.
    """
    stack = PerturbationStack(regions)
    best = stack.centers().detach().clone()
    with torch.no_grad():
        value = objective(best) if settings.try_center else best.new_full((len(best),), -math.inf)
    for _ in range(settings.restarts):
        point = _start(stack, settings, generator)
        for step in range(settings.steps + 1):
            point.requires_grad_(True)
            with torch.enable_grad():
                current = objective(point)
            better = current.detach() > value
            best = torch.where(better.view(-1, *[1] * (best.ndim - 1)), point.detach(), best)
            value = torch.where(better, current.detach(), value)
            if step == settings.steps or (solved is not None and bool(solved(best).all())):
                break
            gradient, = torch.autograd.grad(current, point, torch.ones_like(current))
            point = _stepped(stack, point.detach(), gradient, settings, step)
    slices = [index for index, _ in stack.slices()]
    return [best[index] for index in slices], [value[index] for index in slices]


def _start(stack: PerturbationStack, settings: AttackSettings,
           generator: Union[Randomness, Sequence[Randomness]]) -> Tensor:
    if not settings.random_start:
        return stack.centers().detach().clone()
    every = generator if isinstance(generator, (list, tuple)) else [generator] * len(stack.regions)
    return torch.cat([random_point(region.perturbation, region.center, one)
                      for region, one in zip(stack.regions, every)]).detach()


def _stepped(stack: PerturbationStack, point: Tensor, gradient: Tensor, settings: AttackSettings, step: int) -> Tensor:
    moved = []
    for index, (center, ptb) in stack.slices():
        share = settings.step_length(ptb.norm) * settings.decay(step)
        length = (ptb.radius(center) * share).view(-1, *[1] * (center.ndim - 1))
        direction = steepest_step(ptb, gradient[index], point[index], center)
        moved.append(project(ptb, point[index] + length * direction, center))
    return torch.cat(moved)
