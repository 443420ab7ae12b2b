"""Cost of the multi-norm module beside the host's own calls: interleaved medians, as ratios.

    python -m benchmarks.run speed_one_norm speed_two_norms

A case has a norm, whose bounds stand beside one call of the host for the same set, or none: l_inf
and l_2 in one call of ours, beside one call of the host for each. The host knows no l_2 set but the
plain ball; a case with "clip" bounds ball and pixel range all the same. In training BatchNorm takes
its statistics from a clean pass: our call makes it by itself; the host's does not, so it is called
for the clean pass first, within its time. Our bounds must be no looser than the host's, or the
times mean nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Callable, NamedTuple

import torch
from torch import nn

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
    sets = [ptb for ptb in both if "norm" not in case or ptb.norm == float(case["norm"])]
    if not sets:
        raise InvalidArgumentError(
            f"norm={case['norm']!r} is not timed; use 'inf' or 2, or leave it out for both"
        )
    return sets


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

    needs_pass = case["passes"] == "forward and backward" and any(
        isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in model.modules()
    )

    def by_host(host_sets: list[PerturbationLpBox]) -> list[torch.Tensor]:
        """Call the host once per set, behind one pass of the images where BatchNorm needs it."""
        if needs_pass:
            theirs(x)
        return [
            theirs.compute_bounds(x=host_input(x, ptb.norm, ptb.eps), C=C, method=method)[0]
            for ptb in host_sets
        ]

    bounds: dict[str, Bounds] = {"ours": by_us, "host once": partial(by_host, sets[:1])}
    if len(sets) == 2:
        bounds["host twice"] = partial(by_host, sets)
    host = list(bounds)[-1]
    with torch.no_grad():
        looser = max(float(((b - a) / (1 + b.abs())).max()) for a, b in zip(by_us(), by_host(sets)))
    return Contest(
        {name: partial(PASSES[case["passes"]], call) for name, call in bounds.items()}, host, looser
    )


def timed(
    calls: dict[str, Callable[[], None]], repeats: int, device: torch.device
) -> dict[str, dict]:
    """Time calls in turn on a device, see :func:`benchmarks.common.interleaved`."""
    return interleaved(calls, repeats, synchronize=waiting(device))


def tasks_by_name(measure: Callable[[dict, str], dict], cases: dict, settings: dict) -> dict:
    """Return a task per named case, on the device of the settings."""
    device = settings.get("device", "cpu")
    return {key: partial(measure, case, device) for key, case in cases.items()}


def looser_bounds(looser: Iterable[tuple[str, float | str]]) -> list[str]:
    """Return where our bounds are looser than the host's (or not numbers).

    The times are then not comparable.

    Args:
        looser: What was timed, and by how much our bounds are looser; a results file has numbers
            that are not finite as words.
    """
    return [
        f"{name}: our bounds are looser than the host's by {amount}"
        for name, amount in looser
        if not float(amount) <= LOOSER
    ]


def compare(case: dict, device: str) -> dict:
    """Time one case: our call against all the host's calls for the same sets, and one of them.

    The ratio is of ours to the host's.
    """
    torch_device = find_device(device)
    calls, host, looser = contest(case, torch_device)
    timing = timed(calls, case["repeats"], torch_device)
    return {
        "ratio": ratio(timing, "ours", host),
        "ratio to one host call": ratio(timing, "ours", "host once"),
        "timing": timing,
        "looser": looser,
        "settings": case,
    }


def tasks(settings: dict, places: Places) -> dict[str, Task]:
    """Return one task per case."""
    return tasks_by_name(compare, settings["cases"], settings)


def problems(rows: list[dict]) -> list[str]:
    """Return the cases whose times are not comparable, see :func:`looser_bounds`."""
    return looser_bounds((row["key"], row["looser"]) for row in rows)


def figures(rows: list[dict]) -> dict[str, Figure]:
    """Return the median ratios."""
    return {row["key"]: Figure(row["ratio"]["median"], TOLERANCE) for row in rows}
