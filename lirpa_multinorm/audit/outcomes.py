"""Audit of the bounds of a network: sound or not, and how tight, by method and set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..attacks import AttackSettings
from ..bounds import BoundedModule
from ..errors import InvalidArgumentError, LirpaMultinormError
from ..perturbations import PerturbationLpBox, Region, as_perturbations
from ..utils.modes import evaluating
from .attack import ATTACK, Bounds, attacked_ranges, violation

#: The bound methods that are audited by default.
METHODS = ("IBP", "CROWN-IBP", "CROWN", "CROWN-Optimized", "Lipschitz", "Sparse-CROWN", "SDP-CROWN")
#: An excess of more than this share of 1 + the bound's size is no rounding.
TOLERANCE = 2e-5


@dataclass(frozen=True)
class Audit:
    """The outcome of an audit for a method and a set.

    Args:
        method: The bound method.
        perturbation: The set.
        outcome: "sound" (the attack stayed inside the bounds), "refused" (the package raised one of
            its errors), "unsound", "forward differs" (the bounded network computes another function
            than the model), or "raw" (an exception that is none of the package's).
        violation: The attack's largest excess over the bounds, relative to 1 + their size; None
            without bounds.
        looseness: Mean width of the bounds over the mean width that the attack reaches; None
            without bounds.
        message: The message of an exception.
    """

    method: str
    perturbation: PerturbationLpBox
    outcome: str
    violation: float | None = None
    looseness: float | None = None
    message: str = ""

    @property
    def sound(self) -> bool:
        """Whether there are bounds and the attack stayed inside them."""
        return self.outcome == "sound"

    @property
    def wrong(self) -> bool:
        """Whether neither sound bounds nor a refusal came out."""
        return self.outcome not in ("sound", "refused")

    def numbers(self) -> dict[str, Any]:
        """Return the fields without the set, as plain numbers and words."""
        return {name: value for name, value in asdict(self).items() if name != "perturbation"}


def audit(
    model: nn.Module,
    x: Tensor,
    perturbations: Sequence,
    methods: Sequence[str] = METHODS,
    *,
    C: Tensor | None = None,
    bound_opts: dict | None = None,
    settings: AttackSettings = ATTACK,
    seed: int = 0,
) -> list[Audit]:
    """Attack the bounds of a network on its own data, and compare how tight they are.

    An attack can show that a bound is wrong, never that it is right: "sound" means that the attack
    reached no output outside.

    Args:
        model: Network (B, ...) -> (B, K), audited in eval mode.
        x: Inputs, shape (B, ...).
        perturbations: The sets around each input.
        methods: Bound methods.
        C: Specification (B, S, K), or None for the outputs themselves.
        bound_opts: The host's bound options.
        settings: Strength of the attack, which pushes every output of every input down and up.
        seed: Of the attack's random starts.

    Returns:
        An :class:`Audit` per method and set, with the sets of a method beside each other.

    Raises:
        InvalidArgumentError: An argument cannot be used.

    Example:
        >>> from lirpa_multinorm import PerturbationL2Box, PerturbationLinf
        >>> _ = torch.manual_seed(0)
        >>> model, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.rand(3, 4)
        >>> sets = [PerturbationLinf(0.1), PerturbationL2Box(0.2)]
        >>> for row in audit(model, x, sets, ["IBP", "CROWN"]):
        ...     tight = row.looseness > 0.99
        ...     print(row.method, row.perturbation.norm, row.outcome, row.violation < 1e-5, tight)
        IBP inf sound True True
        IBP 2 sound True True
        CROWN inf sound True True
        CROWN 2 sound True True
    """
    if not isinstance(model, nn.Module):
        raise InvalidArgumentError(f"model must be a torch.nn.Module, found {type(model).__name__}")
    if not methods:
        raise InvalidArgumentError(f"methods is empty; give at least one of {', '.join(METHODS)}")
    model = model.model if isinstance(model, BoundedModule) else model
    sets = as_perturbations(perturbations)
    generator = torch.Generator(device=x.device).manual_seed(seed)
    with evaluating(model):
        reached = attacked_ranges(model, x, sets, C, settings, generator)
        bounded = BoundedModule(model, bound_opts=bound_opts)
        regions = [Region(x, perturbation) for perturbation in sets]
        differs = _forward_differs(model, bounded, regions, generator)
        return [
            row
            for method in methods
            for row in _audited(bounded, regions, C, method, reached, differs)
        ]


def _audited(
    bounded: BoundedModule,
    regions: Sequence[Region],
    C: Tensor | None,
    method: str,
    reached: Sequence[Bounds],
    differs: bool,
) -> list[Audit]:
    """Return a method's rows; where it fails on the sets together, on each of them alone."""
    try:
        bounds = bounded.compute_region_bounds(regions, C, method)
    except Exception as error:
        if len(regions) == 1:
            return [_failed(method, regions[0].perturbation, error)]
        return [
            row
            for region, extremes in zip(regions, reached)
            for row in _audited(bounded, [region], C, method, [extremes], differs)
        ]
    return [
        _compared(method, region.perturbation, (lower, upper), extremes, differs)
        for region, (lower, upper), extremes in zip(regions, bounds, reached)
    ]


def _failed(method: str, perturbation: PerturbationLpBox, error: Exception) -> Audit:
    """Return the row of an exception: "refused" for an error of this package, else "raw"."""
    if isinstance(error, LirpaMultinormError):
        return Audit(method, perturbation, "refused", message=str(error))
    return Audit(method, perturbation, "raw", message=f"{type(error).__name__}: {error}")


def _compared(
    method: str, perturbation: PerturbationLpBox, bounds: Bounds, reached: Bounds, differs: bool
) -> Audit:
    lower, upper = (bound.detach().flatten(1) for bound in bounds)
    excess = violation((lower, upper), reached)
    width, attacked = float((upper - lower).mean()), float((reached[1] - reached[0]).mean())
    looseness = width / attacked if attacked > 0 else float("inf")
    outcome = "forward differs" if differs else "sound" if excess <= TOLERANCE else "unsound"
    return Audit(method, perturbation, outcome, excess, looseness)


def _forward_differs(
    model: nn.Module, bounded: BoundedModule, regions: Sequence[Region], generator: torch.Generator
) -> bool:
    """Return whether the bounded network's outputs differ from the model's at or near a centre."""
    for region in regions:
        lower, upper = region.perturbation.enclosing_box(region.center)
        share = torch.rand(
            region.center.shape, generator=generator, dtype=lower.dtype, device=lower.device
        )
        for x in (region.center, lower + share * (upper - lower)):
            with torch.no_grad():
                expected = model(x)
                try:
                    output = bounded(x)
                except Exception:  # computing bounds raises it again, and reports it
                    return False
            if not torch.allclose(output, expected, rtol=1e-4, atol=1e-4):
                return True
    return False
