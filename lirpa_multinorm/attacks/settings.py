"""Settings of gradient attacks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..errors import InvalidArgumentError
from ..perturbations import NORMS
from .objectives import LOSSES
from .views import PRECISIONS


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
