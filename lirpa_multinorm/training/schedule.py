"""How radii and the natural loss's share change over training."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Callable

from ..errors import InvalidArgumentError
from .lengths import Length, checked_length, epochs_of
from .numbers import checked_number


def smooth_ramp(position: float) -> float:
    """Return SABR's annealing curve: a fourth power over the first quarter, then a line.

    With p in [0, 1] and m = 1/4 the curve is ``A p^4`` up to m, then ``A m^4 + 4 A m^3 (p - m)``,
    a line with the same slope; A is chosen such that the curve ends at 1.

    Args:
        position: Share of the annealing that is done; values outside [0, 1] are clamped.

    Returns:
        The factor on every radius, in [0, 1].

    Source: SABR's released schedule ("exp"), from auto_LiRPA's SmoothedScheduler.

    Example:
        >>> smooth_ramp(0.0), round(smooth_ramp(0.25), 4), smooth_ramp(1.0)
        (0.0, 0.0769, 1.0)
    """
    p, m = min(max(position, 0.0), 1.0), 0.25
    scale = 1 / (m**4 + 4 * m**3 * (1 - m))
    return scale * (p**4 if p <= m else m**4 + 4 * m**3 * (p - m))


def linear_ramp(position: float) -> float:
    """Return the position itself, clamped to [0, 1].

    Example:
        >>> linear_ramp(0.25), linear_ramp(2.0)
        (0.25, 1.0)
    """
    return min(max(position, 0.0), 1.0)


#: The curves that a radius can rise along, by name.
RAMPS: dict[str, Callable[[float], float]] = {"smooth": smooth_ramp, "linear": linear_ramp}


@dataclass(frozen=True)
class Schedule:
    """Radius and kappa at any time, which is counted in epochs, with fractions.

    Args:
        natural_epochs: Epochs of purely natural training at the start (kappa 1, radius 0), or a
            share of the run such as "5%".
        anneal_epochs: Epochs over which the radius then rises to its full size, or a share such as
            "50%".
        kappa_start: Share of the natural loss when annealing begins.
        kappa_end: Share when it ends, reached linearly.
        ramp: The curve along which the radius rises: "smooth" (SABR's) or "linear".
        radius_start: Share of the full radius that it rises from. Hu et al. 2023 (EMMA) rise
            linearly from a tenth of eps to 1.5 eps: ``eps_factor`` 1.5, and 0.0667 here.

    Example:
        >>> schedule = Schedule("5%", "50%").in_epochs(40)
        >>> schedule.lengths()
        (2.0, 20.0)
    """

    natural_epochs: Length = 1
    anneal_epochs: Length = 20
    kappa_start: float = 0.0
    kappa_end: float = 0.0
    ramp: str = "smooth"
    radius_start: float = 0.0

    def __post_init__(self) -> None:
        for name in ("natural_epochs", "anneal_epochs"):
            object.__setattr__(self, name, checked_length(name, getattr(self, name)))
        if self.ramp not in RAMPS:
            raise InvalidArgumentError(f"ramp={self.ramp!r} is unknown; use {' or '.join(RAMPS)}")
        for name in ("kappa_start", "kappa_end", "radius_start"):
            object.__setattr__(self, name, checked_number(name, getattr(self, name), 0, 1))

    def in_epochs(self, epochs: int) -> Schedule:
        """Return the schedule of a run of so many epochs, with shares of it turned into epochs."""
        return replace(
            self,
            natural_epochs=epochs_of(self.natural_epochs, epochs),
            anneal_epochs=epochs_of(self.anneal_epochs, epochs),
        )

    def lengths(self) -> tuple[float, float]:
        """Return the natural and the annealing epochs.

        Raises:
            InvalidArgumentError: One of them is a share of the run.
        """
        natural, anneal = self.natural_epochs, self.anneal_epochs
        if isinstance(natural, str) or isinstance(anneal, str):
            raise InvalidArgumentError(
                f"schedule={self} has shares of the run; call in_epochs(epochs) first"
            )
        return natural, anneal

    def full_at(self) -> float:
        """Return the time in epochs from which on the radius is full."""
        natural, anneal = self.lengths()
        return natural + anneal

    def _annealed(self, time: float) -> float:
        """Return the share of the annealing that is done."""
        natural, anneal = self.lengths()
        if time < natural:
            return 0.0
        if anneal == 0:
            return 1.0
        share = (time - natural) / anneal
        return share if share < 1 - 1e-9 else 1.0  # shares of a run add up to a little less

    def eps_scale(self, time: float) -> float:
        """Return the factor on every radius."""
        if time < self.lengths()[0]:
            return 0.0
        share = RAMPS[self.ramp](self._annealed(time))
        return share + self.radius_start * (1 - share)

    def kappa(self, time: float) -> float:
        """Return the natural loss's share of the total loss."""
        annealed = self._annealed(time)
        if time < self.lengths()[0]:
            return 1.0
        return self.kappa_start + (self.kappa_end - self.kappa_start) * annealed
