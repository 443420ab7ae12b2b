"""How radii and the natural loss's share change over training."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import InvalidArgumentError


def smooth_ramp(position: float) -> float:
    """Return SABR's annealing curve: fourth power over the first quarter, then a line with the same slope.

    With p in [0, 1] and m = 1/4: ``A p^4`` up to m, then ``A m^4 + 4 A m^3 (p - m)``, A such that the end is 1.

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
    scale = 1 / (m ** 4 + 4 * m ** 3 * (1 - m))
    return scale * (p ** 4 if p <= m else m ** 4 + 4 * m ** 3 * (p - m))


@dataclass(frozen=True)
class Schedule:
    """Radius and kappa at any time; time is counted in epochs, with fractions.

    Args:
        natural_epochs: Epochs of purely natural training at the start (kappa 1, radius 0).
        anneal_epochs: Epochs over which the radius then rises to its full size.
        kappa_start: Share of the natural loss when annealing begins.
        kappa_end: Share when it ends, reached linearly.
    """

    natural_epochs: float = 1
    anneal_epochs: float = 20
    kappa_start: float = 0.0
    kappa_end: float = 0.0

    def __post_init__(self) -> None:
        if not (self.natural_epochs >= 0 and self.anneal_epochs >= 0):  # also NaN
            raise InvalidArgumentError(f"natural_epochs={self.natural_epochs} and anneal_epochs={self.anneal_epochs} "
                                       "must not be negative")
        if not (0 <= self.kappa_start <= 1 and 0 <= self.kappa_end <= 1):
            raise InvalidArgumentError(f"kappa_start={self.kappa_start} and kappa_end={self.kappa_end} must lie in "
                                       "[0, 1]")

    def _done(self, time: float) -> float:
        if self.anneal_epochs == 0:
            return 1.0
        return min(max((time - self.natural_epochs) / self.anneal_epochs, 0.0), 1.0)

    def eps_scale(self, time: float) -> float:
        """Return the factor on every radius."""
        return 0.0 if time < self.natural_epochs else smooth_ramp(self._done(time))

    def kappa(self, time: float) -> float:
        """Return the natural loss's share of the total loss."""
        if time < self.natural_epochs:
            return 1.0
        return self.kappa_start + (self.kappa_end - self.kappa_start) * self._done(time)
