"""From the regions of a training step to margins, each term's by its own method."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from ..attacks.geometry import Randomness
from ..bounds import BoundedModule, Bounds
from ..errors import InvalidArgumentError
from ..perturbations import Region
from .taps import taps_margins
from .terms import LossTerm


class Propagated(NamedTuple):
    """What propagation has found, per term; None where there is no region or no point.

    Args:
        margins: Lower margin bounds on the region, or TAPS's estimates.
        interval: IBP's lower margin bounds.
        at_points: Margins at the adversarial point.
        intervals: IBP's bounds, whose ``intermediate`` regularisers look at.
    """

    margins: list[Tensor | None]
    interval: list[Tensor | None]
    at_points: list[Tensor | None]
    intervals: list[Bounds | None]


def propagated(
    bounded: BoundedModule,
    terms: Sequence[LossTerm],
    regions: Sequence[Region | None],
    points: Sequence[Region | None],
    C: Sequence[Tensor],
    generator: Randomness = None,
) -> Propagated:
    """Bound or estimate margins on the terms' regions, and find those at adversarial points.

    All regions and points go through one pass by IBP, and those of CROWN-IBP through one by that
    before: what is known of hidden layers afterwards is IBP's.

    Args:
        bounded: The module.
        terms: The terms.
        regions: Their regions.
        points: Their adversarial points, regions without extent.
        C: Specification of the margins, (B_i, K - 1, K) per term.
        generator: Source of the random starts of TAPS.
    """
    found = [i for i, region in enumerate(regions) if region is not None]
    mixed = [i for i, point in enumerate(points) if point is not None]
    margins, interval, at_points, intervals = ([None] * len(regions) for _ in range(4))
    if not found and not mixed:
        return Propagated(margins, interval, at_points, intervals)
    rows = dict(zip(found, _slices([len(C[i]) for i in found])))
    tight = _crown_bounds(bounded, terms, regions, C)
    with bounded.shrunk_relus([(rows[i], 1 - terms[i].shrink / 2) for i in found]):
        bounds = bounded.compute_region_bounds(
            [regions[i] for i in found] + [points[i] for i in mixed],
            [C[i] for i in found + mixed],
            "IBP",
            bound_upper=False,
        )
    for i, at_point in zip(mixed, bounds[len(found) :]):
        at_points[i] = at_point.lower
    for i, intervals[i] in zip(found, bounds):
        term, bound = terms[i], intervals[i].lower
        margins[i], interval[i] = bound, bound
        if i in tight:
            margins[i] = term.crown_share * tight[i] + (1 - term.crown_share) * bound
        elif term.bounding == "TAPS":
            margins[i] = _taps_margins(bounded, term, rows[i], C[i], generator)
    return Propagated(margins, interval, at_points, intervals)


def _crown_bounds(
    bounded: BoundedModule,
    terms: Sequence[LossTerm],
    regions: Sequence[Region | None],
    C: Sequence[Tensor],
) -> dict[int, Tensor]:
    """Return lower margin bounds by CROWN-IBP of the terms that have a share of them."""
    wanted = [
        i
        for i, term in enumerate(terms)
        if regions[i] is not None and term.bounding == "CROWN-IBP" and term.crown_share > 0
    ]
    if not wanted:
        return {}
    bounds = bounded.compute_region_bounds(
        [regions[i] for i in wanted], [C[i] for i in wanted], "CROWN-IBP", bound_upper=False
    )
    return {i: lower for i, (lower, _) in zip(wanted, bounds)}


def _taps_margins(
    bounded: BoundedModule, term: LossTerm, rows: slice, C: Tensor, generator: Randomness
) -> Tensor:
    try:
        classifier = bounded.latent_classifier(term.taps.layers)
    except InvalidArgumentError as error:
        raise InvalidArgumentError(
            f"taps of the {term.perturbation.title()} term: {error}"
        ) from error
    return taps_margins(classifier, classifier.box(rows), C, term.taps, generator)


def _slices(counts: Sequence[int]) -> list[slice]:
    """Return where each of several stacked batches lies."""
    ends = [sum(counts[: i + 1]) for i in range(len(counts))]
    return [slice(end - count, end) for end, count in zip(ends, counts)]
