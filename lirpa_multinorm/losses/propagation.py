"""Margins on the regions of a training step, by the method of each term."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, cast

from torch import Tensor

from ..attacks.geometry import Randomness
from ..bounds import BoundedModule, Bounds
from ..errors import InvalidArgumentError
from ..perturbations import Region
from .regions import AnyTerm
from .taps import taps_margins
from .terms import LossTerm


class Propagated(NamedTuple):
    """The margins of a training step, per term; None where there is no region or no point.

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
    terms: Sequence[AnyTerm],
    regions: Sequence[Region | None],
    points: Sequence[Region | None],
    C: Sequence[Tensor],
    generator: Randomness = None,
) -> Propagated:
    """Bound or estimate margins on the terms' regions, and find those at adversarial points.

    A pass of IBP bounds all regions and points. Where terms have CROWN-IBP, its pass comes before,
    so that the nodes of the graph hold IBP's bounds afterwards.

    Args:
        bounded: The module.
        terms: The terms.
        regions: Their regions.
        points: Their adversarial points, regions without extent.
        C: Specification of the margins, (B_i, K - 1, K) per term.
        generator: Source of the random starts of TAPS.
    """
    by_term = {i: region for i, region in enumerate(regions) if region is not None}
    mixed = {i: point for i, point in enumerate(points) if point is not None}
    count = len(regions)
    result = Propagated([None] * count, [None] * count, [None] * count, [None] * count)
    if not by_term and not mixed:
        return result
    rows = dict(zip(by_term, _slices([len(C[i]) for i in by_term])))
    crown = _crown_bounds(bounded, terms, by_term, C)
    with bounded.shrunk_relus([(rows[i], 1 - terms[i].shrink / 2) for i in by_term]):
        bounds = bounded.compute_region_bounds(
            [*by_term.values(), *mixed.values()],
            [C[i] for i in (*by_term, *mixed)],
            "IBP",
            bound_upper=False,
        )
    for i, at_point in zip(mixed, bounds[len(by_term) :]):
        result.at_points[i] = at_point.lower
    for i, interval in zip(by_term, bounds):
        term, lower = terms[i], interval.lower
        assert lower is not None  # only upper bounds are left out
        result.intervals[i] = interval
        result.margins[i] = result.interval[i] = lower
        if i in crown:
            result.margins[i] = term.crown_share * crown[i] + (1 - term.crown_share) * lower
        elif term.bounding == "TAPS":
            result.margins[i] = _taps_margins(
                bounded, cast(LossTerm, term), rows[i], C[i], generator
            )
    return result


def _crown_bounds(
    bounded: BoundedModule,
    terms: Sequence[AnyTerm],
    by_term: Mapping[int, Region],
    C: Sequence[Tensor],
) -> dict[int, Tensor]:
    """Return lower margin bounds by CROWN-IBP of the terms that have a share of them."""
    shared = [i for i in by_term if terms[i].bounding == "CROWN-IBP" and terms[i].crown_share > 0]
    if not shared:
        return {}
    bounds = bounded.compute_region_bounds(
        [by_term[i] for i in shared], [C[i] for i in shared], "CROWN-IBP", bound_upper=False
    )
    return {i: lower for i, (lower, _) in zip(shared, bounds)}


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
    """Return the rows of each batch in a stack of batches."""
    stops = [sum(counts[: i + 1]) for i in range(len(counts))]
    return [slice(stop - count, stop) for stop, count in zip(stops, counts)]
