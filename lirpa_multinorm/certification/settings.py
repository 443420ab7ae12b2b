"""The settings of a certification."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import cast

from ..attacks import AttackSettings
from ..errors import InvalidArgumentError
from .stages import stage_of

#: How much of a margin rounding is taken to eat up; see
#: :class:`~lirpa_multinorm.verifier.rounding.errors.RoundingErrors`.
ROUNDINGS = ("probable", "proved", "ignored")
METHODS = ("IBP", "Lipschitz", "CROWN-IBP", "CROWN", "SDP-CROWN", "BaB")
EVALUATION_ATTACK = AttackSettings(steps=40, restarts=2)
#: They run in order, each on the images that the ones before it have not broken.
EVALUATION_ATTACKS = (EVALUATION_ATTACK, AttackSettings(steps=40, restarts=1, loss="ce"))


@dataclass(frozen=True)
class CertifySettings:
    """The methods, attacks and limits of a certification.

    Args:
        methods: Bounds to try, in order; names of
            :data:`~lirpa_multinorm.certification.stages.STAGES`.
        attack: The attack that comes first, or several in order; None for no attack (nothing is
            falsified then).
        batch_size: Images per step; fewer are taken at once where memory runs out.
        seed: Of the attacks' random starts.
        bound_opts: Options of the host.
        time_limit: Seconds per image, its share of the stages' time; None for no limit. Checked
            before each stage: pairs that are still open then have timed out.
        total_time_limit: Seconds in all; None for no limit. Images that remain when it is over are
            not run.
        rounding: What a certificate must withstand: "probable" rounding errors of the network as it
            runs (and as much again in the bound), the largest possible ones ("proved"), or none
            ("ignored").

    Raises:
        InvalidArgumentError: A value cannot be used.

    Example:
        >>> CertifySettings(methods=["ibp", "alpha-CROWN"], time_limit=60).methods
        ('IBP', 'CROWN-Optimized')
    """

    methods: Sequence[str] = METHODS
    attack: None | AttackSettings | Sequence[AttackSettings] = EVALUATION_ATTACKS
    batch_size: int = 50
    seed: int = 0
    bound_opts: dict | None = None
    time_limit: float | None = None
    total_time_limit: float | None = None
    rounding: str = ROUNDINGS[0]

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise InvalidArgumentError(f"batch_size={self.batch_size} must be at least 1")
        if self.rounding not in ROUNDINGS:
            raise InvalidArgumentError(
                f"rounding={self.rounding!r} is unknown; use {', '.join(ROUNDINGS)}"
            )
        if isinstance(self.methods, str):
            raise InvalidArgumentError(
                f"methods={self.methods!r} must be a list, for example [{self.methods!r}]"
            )
        object.__setattr__(self, "methods", tuple(stage_of(method).name for method in self.methods))
        for attack in self.attacks:
            if not isinstance(attack, AttackSettings):
                raise InvalidArgumentError(
                    f"attack: {attack!r} is no AttackSettings; give one, a list of them, or None"
                )
        for name in ("time_limit", "total_time_limit"):
            _check_limit(name, getattr(self, name))

    @property
    def attacks(self) -> tuple[AttackSettings, ...]:
        """The attacks in order; none if there are none."""
        if self.attack is None:
            return ()
        if isinstance(self.attack, (list, tuple)):
            return tuple(self.attack)
        # Anything else is taken for one attack, and refused if it is none.
        return (cast(AttackSettings, self.attack),)


def _check_limit(name: str, seconds: float | None) -> None:
    if seconds is None:
        return
    # NaN is not > 0 either.
    if isinstance(seconds, bool) or not isinstance(seconds, Real) or not seconds > 0:
        raise InvalidArgumentError(
            f"{name}={seconds!r} must be a positive number of seconds, or None for no limit"
        )
