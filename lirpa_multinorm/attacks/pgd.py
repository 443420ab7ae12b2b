"""Projected gradient ascent over several perturbation sets at once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..bounds.margins import check_labels
from ..errors import InvalidArgumentError
from ..perturbations import NORMS, PerturbationLpBox, PerturbationStack, Region, as_perturbations
from ..utils.modes import evaluating, sheltered
from .geometry import Randomness, box_of, project, random_point, steepest_step
from .views import PRECISIONS, Batched, attack_view, matmul_precision


@dataclass(frozen=True)
class AttackSettings:
    """How an attack searches.

    Args:
        steps: Gradient steps per restart.
        step_size: First step length as a share of each set's eps: one number, one per norm ({norm:
            share}), or None for each norm's own.
        decays: (share of the steps, factor) pairs: from that share on, the step is multiplied by
            the factor.
        restarts: Runs from random points; the best point of all is kept.
        loss: "margin" (largest other logit minus the true one) or "ce" (cross-entropy).
        random_start: Whether runs start at random points of the set or at x.
        stop_early: Whether a run ends once every input is misclassified.
        try_center: Whether x itself is a candidate; False saves a forward pass.
        precision: What the network is run with: "float32", "tf32" (CUDA only), or "bfloat16", which
            is about twice as fast where the processor multiplies in it and slower elsewhere. Points
            are always stepped and projected in their own type, so they lie in their sets at any
            precision.
        channels_last: Whether 2d convolutions of an ``nn.Sequential`` run in channels-last layout.
    """

    steps: int = 40
    step_size: None | float | Mapping[float, float] = 0.25
    decays: tuple[tuple[float, float], ...] = ((0.5, 0.3), (0.75, 0.3))
    restarts: int = 1
    loss: str = "margin"
    random_start: bool = True
    stop_early: bool = False
    try_center: bool = True
    precision: str = "float32"
    channels_last: bool = False

    def __post_init__(self) -> None:
        if self.steps < 1 or self.restarts < 1:
            raise InvalidArgumentError(
                f"steps={self.steps} and restarts={self.restarts} must be at least 1"
            )
        if self.loss not in LOSSES:
            raise InvalidArgumentError(
                f"loss={self.loss!r} is unknown; use {' or '.join(sorted(LOSSES))}"
            )
        if self.precision not in PRECISIONS:
            raise InvalidArgumentError(
                f"precision={self.precision!r} is unknown; use {', '.join(PRECISIONS)}"
            )
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
            raise InvalidArgumentError(
                f"step_size has no entry for norm {norm}; add one, or give a single number"
            )
        return self.step_size[norm]

    def decay(self, step: int) -> float:
        """Return the factor on the first step length at a step."""
        factor = 1.0
        for share, by in self.decays:
            factor *= by if step >= share * self.steps else 1.0
        return factor


def margin_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return max over k != y of ``z_k - z_y``, shape (B,).

    Positive where the input is misclassified.
    """
    true = logits.gather(1, labels.unsqueeze(1))
    others = logits.scatter(1, labels.unsqueeze(1), float("-inf"))
    return others.max(dim=1).values - true.squeeze(1)


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels, reduction="none")


LOSSES = {"margin": margin_loss, "ce": _cross_entropy}


@sheltered
def pgd(
    model: nn.Module,
    x: Tensor,
    labels: Tensor,
    perturbations: Sequence[PerturbationLpBox],
    settings: AttackSettings = AttackSettings(),
    generator: torch.Generator | None = None,
) -> list[Tensor]:
    """Search adversarial examples in several sets with one batched projected gradient ascent.

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
    sets = as_perturbations(perturbations)
    return attack_regions(
        model, [Region(x, one) for one in sets], [labels] * len(sets), settings, generator
    )


@sheltered
def attack_regions(
    model: nn.Module,
    regions: Sequence[Region],
    labels: Sequence[Tensor],
    settings: AttackSettings = AttackSettings(),
    generator: Randomness | Sequence[Randomness] = None,
) -> list[Tensor]:
    """Search adversarial examples in regions with inputs and labels of their own (see :func:`pgd`).

    The regions are stacked into one batch; a model that takes a single input only sees their
    examples one by one.

    Args:
        model: Classifier (B, ...) -> (B, K).
        regions: (inputs, set) pairs.
        labels: True classes of each region's inputs.
        settings: See :class:`AttackSettings`.
        generator: Source of the random starts: one for all regions, or a list with one for each.

    Returns:
        The best points found, one tensor per region.
    """
    for region in regions:
        region.perturbation.check_input(region.center)
    with evaluating(model), matmul_precision(settings.precision):
        objective = _Classifier(
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


class _Classifier:
    """The loss of a classifier at stacked inputs, and which of the inputs it gets wrong.

    Args:
        run: The classifier.
        centers: Inputs of each region.
        labels: True classes of each region's inputs; checked when the first outputs say how many
            there are.
        loss: Maps outputs and labels to one value each.
    """

    def __init__(
        self,
        run: Callable[[Tensor], Tensor],
        centers: Sequence[Tensor],
        labels: Sequence[Tensor],
        loss: Callable[[Tensor, Tensor], Tensor],
    ) -> None:
        self._run, self._centers, self._labels, self._loss = run, centers, labels, loss
        self._target, self._outputs = None, None

    def __call__(self, inputs: Tensor) -> Tensor:
        """Return the losses, (B,)."""
        outputs = self._run(inputs)
        if self._target is None:
            for center, labels in zip(self._centers, self._labels):
                check_labels(labels, outputs.shape[1], len(center), center.device)
            self._target = torch.cat(list(self._labels)).long()
        self._outputs = outputs.detach()
        return self._loss(outputs, self._target)

    def is_wrong(self) -> Tensor:
        """Return which of the last inputs were misclassified, (B,)."""
        return margin_loss(self._outputs, self._target) > 0


@sheltered
def maximize(
    objective: Callable[[Tensor], Tensor],
    regions: Sequence[Region],
    settings: AttackSettings = AttackSettings(),
    generator: Randomness | Sequence[Randomness] = None,
    solved: Callable[[], Tensor] | None = None,
) -> tuple[list[Tensor], list[Tensor]]:
    """Maximise a function of the stacked inputs over several regions by projected gradient ascent.

    Args:
        objective: Maps the stacked inputs (sum of B, ...) to one value each.
        regions: (centre, set) pairs.
        settings: Steps, step sizes and restarts (its loss is not used).
        generator: Source of the random starts: one for all regions, or a list with one for each.
        solved: Says which of the points that the objective was last called with need no search,
            (sum of B,) of bool; a run ends when all best points are such.

    Returns:
        (points, values) per region; where no point gives a number, the centre.
    """
    stack = PerturbationStack(regions)
    moves = [
        _Moves(index, region, settings) for (index, _), region in zip(stack.slices(), stack.regions)
    ]
    best = stack.centers().detach().clone()
    value, done = (
        best.new_full((len(best),), -math.inf),
        torch.zeros(len(best), dtype=torch.bool, device=best.device),
    )
    if settings.try_center:
        with torch.no_grad():
            value = objective(best)
        done = done if solved is None else solved()
    for _ in range(settings.restarts):
        point = _start(stack, settings, generator)
        for step in range(settings.steps + 1):
            last = step == settings.steps
            point.requires_grad_(not last)
            with torch.set_grad_enabled(not last):
                current = objective(point)
            better = current.detach() > value
            best = torch.where(better.view(-1, *[1] * (best.ndim - 1)), point.detach(), best)
            value = torch.where(better, current.detach(), value)
            if solved is not None:
                done = torch.where(better, solved(), done)
            if last or bool(done.all()):
                break
            (gradient,) = torch.autograd.grad(current, point, torch.ones_like(current))
            point = torch.cat([move(point.detach(), gradient, step) for move in moves])
    slices = [index for index, _ in stack.slices()]
    return [best[index] for index in slices], [value[index] for index in slices]


def _start(
    stack: PerturbationStack, settings: AttackSettings, generator: Randomness | Sequence[Randomness]
) -> Tensor:
    if not settings.random_start:
        return stack.centers().detach().clone()
    every = generator if isinstance(generator, (list, tuple)) else [generator] * len(stack.regions)
    return torch.cat(
        [
            random_point(region.perturbation, region.center, one)
            for region, one in zip(stack.regions, every)
        ]
    ).detach()


class _Moves:
    """Steps of one region's points; what is the same in every step is worked out once.

    Args:
        rows: Where the region's points lie among all.
        region: The region.
        settings: Of the attack.
    """

    def __init__(self, rows: slice, region: Region, settings: AttackSettings) -> None:
        self.rows, self.region, self.settings = rows, region, settings
        center, perturbation = region
        self._column = (-1, *[1] * (center.ndim - 1))
        self._length = (perturbation.radius(center) * settings.step_length(perturbation.norm)).view(
            self._column
        )
        self._box = box_of(perturbation, center) if perturbation.is_box() else None

    def __call__(self, points: Tensor, gradient: Tensor, step: int) -> Tensor:
        """Return the region's points after a step along their gradient."""
        center, perturbation = self.region
        point, length = points[self.rows], self._length * self.settings.decay(step)
        moved = point + length * steepest_step(perturbation, gradient[self.rows], point, center)
        if self._box is None:
            return project(perturbation, moved, center)
        return torch.minimum(torch.maximum(moved, self._box[0]), self._box[1])
