"""The terms of a loss: a set each, and the region of it that training propagates."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from numbers import Real

from torch import Tensor

from ..attacks.geometry import Randomness
from ..errors import InvalidArgumentError
from ..perturbations import (
    PerturbationLinf,
    PerturbationLpBox,
    Region,
    as_perturbation,
    cure_l2_region,
    sabr_region,
    small_ball_region,
)
from .margin import margin_cross_entropy
from .mixing import MIXES
from .taps import Taps, as_taps, taps_loss

_BALLS = ("ball", "clipped_ball")
#: The methods for margins on a region: bounds by IBP, by CROWN-IBP mixed with IBP, or estimates by
#: TAPS.
BOUNDINGS = ("IBP", "CROWN-IBP", "TAPS")
#: The regions of a set that training can propagate; see :class:`LossTerm`.
REGIONS = ("set", "box", "ball", "clipped_ball", "released", "lipschitz")
_NUMBERS = (
    "ratio",
    "ratio_start",
    "shrink",
    "alpha",
    "attack_scale",
    "eps_factor",
    "crown_share",
    "crown_share_start",
)


@dataclass(frozen=True)
class LossTerm:
    """A set and the region of it that training propagates.

    Args:
        perturbation: The set the network shall be robust on.
        region: "set" (all of it: a sound bound), "box" (SABR's small box for l_inf, CURE's for
            other norms), "ball" (the small ball of the same norm), "clipped_ball" (that ball cut
            with clip, as the set is), or "released" (CURE's box around the point that its released
            l_2 attack finds, which may leave the ball). "lipschitz" propagates nothing: the margins
            at x, less what an estimate of the Lipschitz constant takes off (from l_1 for an l_1
            set, else from l_2).
        ratio: lambda: the region's size as a share of eps (not used for "set" and "lipschitz").
        ratio_start: The ratio when the radius is 0; it moves linearly in the radius to ``ratio``.
            None: constant.
        shrink: Share r by which training cuts crossing neurons' upper bounds: they are multiplied
            by 1 - r / 2.
        mix: How the bound is mixed with the adversarial point: "mtl", "cc", "exp", or None for the
            bound alone.
        alpha: Weight of the bound in the mix.
        emma: Whether "lipschitz" takes off no more than what makes a margin zero, as EMMA does.
        attack_scale: Radius, as a share of eps, that the adversarial point of a mixed "set" is
            searched in.
        eps_factor: Radius that training takes, as a multiple of the set's eps ("train eps factor"
            of CTRAIN); published searches find 1 to 2.
        bounding: How margins on the region are found: "IBP", "CROWN-IBP" (``s`` times its bounds
            and ``1 - s`` times IBP's), or "TAPS" (**estimates**: the least that an attack finds in
            a latent box of IBP's).
        crown_share: s at the full radius, and ``crown_share_start`` at radius 0; it moves linearly
            in the radius. None: constant. As published it goes from 1 to 0.
        crown_share_start: See ``crown_share``.
        taps: Settings of "TAPS": :class:`Taps`, or a dict of its fields.

    Source: Zhang et al. 2020, "Towards Stable and Efficient Training of Verifiably Robust Neural
    Networks" (CROWN-IBP), section 3.2; Mao et al. 2023, "Connecting Certified and Adversarial
    Training" (TAPS; on SABR's box STAPS).

    Example:
        >>> LossTerm(PerturbationLinf(0.1), "set", bounding="CROWN-IBP").scaled(0.25).crown_share
        0.75
    """

    perturbation: PerturbationLpBox
    region: str = "box"
    ratio: float = 0.4
    ratio_start: float | None = None
    shrink: float = 0.0
    mix: str | None = None
    alpha: float = 0.5
    emma: bool = True
    attack_scale: float = 1.0
    eps_factor: float = 1.0
    bounding: str = "IBP"
    crown_share: float = 0.0
    crown_share_start: float | None = 1.0
    taps: Taps = Taps()

    def __post_init__(self) -> None:
        object.__setattr__(self, "perturbation", as_perturbation(self.perturbation))
        object.__setattr__(self, "taps", as_taps(self.taps))
        if self.region not in REGIONS:
            raise InvalidArgumentError(
                f"region={self.region!r} is unknown; use {', '.join(REGIONS)}"
            )
        self._check_types()
        self._check_shares()
        if self.mix not in (None, *MIXES):
            raise InvalidArgumentError(
                f"mix={self.mix!r} is unknown; use {', '.join(MIXES)} or None"
            )
        if self.region == "lipschitz" and self.shrink:
            raise InvalidArgumentError(
                f"shrink={self.shrink!r}: region='lipschitz' propagates no interval; leave it out"
            )
        for name in ("attack_scale", "eps_factor"):
            if not 0 < getattr(self, name) < float("inf"):
                raise InvalidArgumentError(
                    f"{name}={getattr(self, name)!r} must be positive and finite"
                )
        if self.region == "released" and self.perturbation.norm != 2:
            raise InvalidArgumentError(
                "region='released' is CURE's released l_2 attack; use it for an l_2 set only"
            )
        self._check_bounding()

    def _check_types(self) -> None:
        """Raise InvalidArgumentError where a field is no number, or no bool."""
        for name in _NUMBERS:
            value = getattr(self, name)
            missing = name.endswith("_start") and value is None
            if not missing and (isinstance(value, bool) or not isinstance(value, Real)):
                raise InvalidArgumentError(f"{name}={value!r} must be a number")
        if not isinstance(self.emma, bool):
            raise InvalidArgumentError(f"emma={self.emma!r} must be True or False")

    def _check_shares(self) -> None:
        """Raise InvalidArgumentError where a share lies outside its range."""
        for name in ("ratio", "ratio_start"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise InvalidArgumentError(f"{name}={value!r} must lie in (0, 1]")
        for name in ("shrink", "alpha", "crown_share", "crown_share_start"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise InvalidArgumentError(f"{name}={value!r} must lie in [0, 1]")

    def _check_bounding(self) -> None:
        """Raise InvalidArgumentError where ``bounding`` does not fit the other fields."""
        if self.bounding not in BOUNDINGS:
            raise InvalidArgumentError(
                f"bounding={self.bounding!r} is unknown; use {', '.join(BOUNDINGS)}"
            )
        if self.region == "lipschitz" and self.bounding != "IBP":
            raise InvalidArgumentError(
                f"bounding={self.bounding!r}: region='lipschitz' propagates nothing that could "
                "be bounded; leave one of them out"
            )
        if self.bounding == "CROWN-IBP" and self.shrink:
            raise InvalidArgumentError(
                f"shrink={self.shrink!r} is for IBP, and bounding='CROWN-IBP' relaxes ReLUs "
                "over their whole intervals; leave one of them out"
            )
        if self.bounding == "TAPS" and self.mix is not None:
            raise InvalidArgumentError(
                f"mix={self.mix!r}: bounding='TAPS' makes a loss of two kinds of margins "
                "itself; leave one of them out"
            )

    def scaled(self, scale: float) -> LossTerm:
        """Return the term as used in training at ``scale`` times its full radius (annealing)."""

        def now(final: float, start: float | None) -> float:
            return final if start is None else start + (final - start) * min(scale, 1.0)

        eps = self.perturbation.eps * (scale * self.eps_factor)
        return dataclasses.replace(
            self,
            perturbation=self.perturbation.with_eps(eps),
            eps_factor=1.0,
            ratio=now(self.ratio, self.ratio_start),
            ratio_start=None,
            crown_share=now(self.crown_share, self.crown_share_start),
            crown_share_start=None,
        )

    def of_examples(self, examples: Tensor, x: Tensor) -> LossTerm:
        """Return the term for some examples of a batch x (B, ...), with the radii of these."""
        return dataclasses.replace(self, perturbation=self.perturbation.of_images(examples, x))

    @property
    def attacked(self) -> PerturbationLpBox:
        """The set in which the region's centre, or the adversarial point, is searched."""
        eps = self.perturbation.eps
        if self._is_complete:
            return self.perturbation.with_eps(eps * self.attack_scale)
        if self.region == "box" and self.perturbation.norm == float("inf"):
            # SABR attacks the complete set and pushes the box inside afterwards.
            return self.perturbation
        return self.perturbation.with_eps(eps * (1 - self.ratio))

    @property
    def _is_complete(self) -> bool:
        """Whether the region is the complete set, which needs no search for a centre."""
        return self.region in ("set", "lipschitz") or (self.region in _BALLS and self.ratio == 1)

    @property
    def needs_attack(self) -> bool:
        """Whether an attack searches the region's centre or an adversarial point."""
        return self.mix is not None or not self._is_complete

    @property
    def lipschitz_norm(self) -> float:
        """The norm of a "lipschitz" term's constants: l_1 for an l_1 set, l_2 for any other."""
        return 1 if self.perturbation.norm == 1 else 2

    def lipschitz_reach(self, x: Tensor) -> Tensor:
        """Return how far the set reaches from inputs in :attr:`lipschitz_norm`, (B,)."""
        if self.lipschitz_norm == 1:
            return self.perturbation.radius(x)
        return self.perturbation.l2_radius(x)

    def around(self, x: Tensor, x_adv: Tensor, generator: Randomness = None) -> Region:
        """Return the region to propagate for inputs x and attacked points x_adv."""
        if self.region == "set":
            return Region(x, self.perturbation)
        if self.region in _BALLS:
            center, clipped = x if self._is_complete else x_adv, self.region == "clipped_ball"
            return small_ball_region(x, center, self.perturbation, self.ratio, clipped)
        if self.region == "released":
            # Pushed inside the l_inf box that the released attack stays in.
            box = PerturbationLinf(self.perturbation.eps, self.perturbation.clip)
            return sabr_region(x, x_adv, box, self.ratio)
        make = sabr_region if self.perturbation.norm == float("inf") else cure_l2_region
        return make(x, x_adv, self.perturbation, self.ratio)

    @property
    def is_estimate(self) -> bool:
        """Whether margins are estimates, which may lie above the least margin of the region."""
        return self.region == "lipschitz" or self.bounding == "TAPS"

    def per_example(
        self, bound: Tensor, point: Tensor | None, interval: Tensor | None = None
    ) -> Tensor:
        """Return one loss per example.

        Args:
            bound: Margins on the region, (B, K - 1).
            point: Margins at the adversarial point, for a term with ``mix``.
            interval: IBP's bounds on the region, for TAPS.
        """
        if self.bounding == "TAPS":
            assert interval is not None
            return taps_loss(bound, interval, self.taps)
        if self.mix is None:
            return margin_cross_entropy(bound)
        assert point is not None
        return MIXES[self.mix](bound, point, self.alpha)
