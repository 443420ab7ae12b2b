"""Cost of the multi-norm module beside the host's own calls: interleaved medians, as ratios.

    python -m benchmarks.run speed_one_norm speed_two_norms

A case has a norm, whose bounds stand beside one call of the host for the same set, or none: l_inf
and l_2 in one call of ours, beside one call of the host for each. The host knows no l_2 set but the
plain ball; a case with "clip" bounds ball and pixel range all the same. Our bounds must be no
looser than the host's, or the times mean nothing.
"""

from __future__ import annotations

from functools import partial
from typing import Callable, NamedTuple

import torch

from lirpa_multinorm import PerturbationL2Box, PerturbationLinf, PerturbationLpBox, margin_matrix
from lirpa_multinorm.errors import InvalidArgumentError

from .common import (
    CLASSES,
    EPS_2,
    EPS_INF,
    TOLERANCE,
    find_device,
    host_input,
    host_module,
    interleaved,
    network_and_batch,
    our_module,
    ratio,
    waiting,
)
from .run import Figure, Places, Task

#: How much looser our bounds may be, of the bound's size: both round differently.
LOOSER = 1e-4

Bounds = Callable[[], list[torch.Tensor]]


def forward(bounds: Bounds) -> None:
    """Compute bounds, as certification does."""
    with torch.no_grad():
        bounds()


def forward_and_backward(bounds: Bounds) -> None:
    """Compute bounds and their gradients, as training does."""
    sum(lower.sum() for lower in bounds()).backward()


PASSES = {"forward": forward, "forward and backward": forward_and_backward}


def find_sets(case: dict) -> list[PerturbationLpBox]:
    """Return the set of a case's norm, or both sets if it names none.

    Without "clip" the l_2 set is the plain ball.
    """
    clip = case.get("clip")
    both = [
        PerturbationLinf(EPS_INF),
        PerturbationL2Box(EPS_2, clip=None if clip is None else tuple(clip)),
    ]
    found = [one for one in both if "norm" not in case or one.norm == float(case["norm"])]
    if not found:
        raise InvalidArgumentError(
            f"norm={case['norm']!r} is not timed; use 'inf' or 2, or leave it out for both"
        )
    return found


class Contest(NamedTuple):
    """What is timed for a case.

    Args:
        calls: What to call, by name: "ours" and the host's.
        host: Name of the host's calls for the same sets.
        looser: By how much our lower bounds are below the host's at most, relative to 1 + the
            bound's size.
    """

    calls: dict[str, Callable[[], None]]
    host: str
    looser: float


def contest(case: dict, device: torch.device) -> Contest:
    """Return the calls of a case, ready to be timed, after a comparison of their bounds."""
    if case["passes"] not in PASSES:
        raise InvalidArgumentError(
            f"passes={case['passes']!r} is unknown; use {' or '.join(map(repr, PASSES))}"
        )
    model, x, y = network_and_batch(case, device)
    C, sets, method = margin_matrix(y, CLASSES), find_sets(case), case["method"]
    ours, theirs = our_module(model, x, sets), host_module(model, x)

    def by_us() -> list[torch.Tensor]:
        """Bound all sets in one call."""
        return [lower for lower, _ in ours.compute_norm_bounds(x, C=C, method=method)]

    def by_host(some: list[PerturbationLpBox]) -> list[torch.Tensor]:
        """Call the host once per set."""
        return [
            theirs.compute_bounds(x=host_input(x, one.norm, one.eps), C=C, method=method)[0]
            for one in some
        ]

    bounds: dict[str, Bounds] = {"ours": by_us, "host once": partial(by_host, sets[:1])}
    if len(sets) == 2:
        bounds["host twice"] = partial(by_host, sets)
    host = list(bounds)[-1]
    with torch.no_grad():
        looser = max(float(((b - a) / (1 + b.abs())).max()) for a, b in zip(by_us(), by_host(sets)))
    return Contest(
        {name: partial(PASSES[case["passes"]], one) for name, one in bounds.items()}, host, looser
    )


def compare(case: dict, device: str) -> dict:
    """Time one case: our call against all the host's calls for the same sets, and one of them.

    The ratio is of ours to the host's.
    """
    place = find_device(device)
    calls, host, looser = contest(case, place)
    timing = interleaved(calls, case["repeats"], synchronize=waiting(place))
    return {
        "ratio": ratio(timing, "ours", host),
        "ratio to one host call": ratio(timing, "ours", "host once"),
        "timing": timing,
        "looser": looser,
        "settings": case,
    }


def tasks(settings: dict, places: Places) -> dict[str, Task]:
    """Return one task per case."""
    return {
        key: partial(compare, case, settings.get("device", "cpu"))
        for key, case in settings["cases"].items()
    }


def problems(rows: list[dict]) -> list[str]:
    """Return where our bounds are looser than the host's (or not numbers).

    The times are then not comparable.
    """
    return [
        f"{row['key']}: our bounds are looser than the host's by {row['looser']}"
        for row in rows
        if not float(row["looser"]) <= LOOSER
    ]


def figures(rows: list[dict]) -> dict[str, Figure]:
    """Return the median ratios."""
    return {row["key"]: Figure(row["ratio"]["median"], TOLERANCE) for row in rows}
