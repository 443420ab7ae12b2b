"""How tight bounds are.

Plain SABR's regions, the host's sets and ours, on the same networks and images.

    python -m benchmarks.run tightness_digits

For each network, radius and region: the margins by every method, per layer the mean width and the
share of unstable neurons, the gap to the margins an attack finds, and the certified share.
Threat sets are what an attacker may do; covers hold one and are sound for it; training regions lie
inside one and certify nothing: what they say of the threat set beyond them is counted. Which region
covers which is checked by their support functions, not assumed. A bound "above PGD" is refuted by
the attack: the host's are, for l_2 where a normalisation comes first. Our own methods for ReLU
networks tighten the unstable neurons; the others keep the interval that says so.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Callable

import torch
from torch import Tensor

from lirpa_multinorm.bounds.methods import METHODS, VERIFIER
from lirpa_multinorm.report import grouped_bars

from .networks import Subject, subject
from .run import Figure, Places, Task
from .tightness_bounds import TOLERANCE, lowest_margins, region_bounds, summary
from .tightness_regions import HOST, INSIDE, Case, attacked_share, cases, containment
from .tightness_tables import containment_table, gap_bars, region_table


def measure(
    description: dict[str, Any], scale: float, settings: dict[str, Any], places: Places
) -> dict[str, Any]:
    """Bound one network at one multiple of its radii."""
    network = subject(description, settings["n"], places)
    regions, points = cases(network, scale, settings)
    attacked = {norm: lowest_margins(network, reached) for norm, reached in points.items()}
    rows, worst = [], {}
    for method in settings["methods"]:
        lowest, of_method = by_method(network, regions, attacked, method, settings["batch"])
        rows.extend(of_method)
        worst.update({f"{name}, {method}": lower for name, lower in lowest.items()})
    return {
        "network": description,
        "scale": scale,
        "eps_inf": scale * network.eps_inf,
        "eps_2": scale * network.eps_2,
        "n": len(network.x),
        "rows": rows,
        "containment": containment(regions),
        "seen": {
            name: attacked_share(case, points[case.of])
            for name, case in regions.items()
            if case.kind == "training region"
        },
        "worst margins": {
            name: [round(float(value), 5) for value in lower.min(1)[0]]
            for name, lower in worst.items()
        },
    }


def by_method(
    network: Subject, regions: dict[str, Case], attacked: dict[str, Tensor], method: str, batch: int
) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """Bound all regions by one method.

    Args:
        network: What is bounded.
        regions: Where, by name.
        attacked: By threat set, the margins that its attack reaches.
        method: Of the bounds; a method that the host does not have leaves its ball out.
        batch: How many images are bounded at a time.

    Returns:
        The lower margin bounds (n, K-1) by region, without those that the host fails to give, and
        a row per region and for the union.
    """
    lowest: dict[str, Tensor] = {}
    rows = []
    for name, case in regions.items():
        if name == HOST and METHODS[method].engine == VERIFIER:
            continue
        row = {"region": name, "kind": case.kind, "of": case.of, "method": method}
        bounds = region_bounds(network, name, case.region, method, batch)
        if bounds is None:
            rows.append({**row, "layers": [], "gap to PGD": None, "certified %": None})
            continue
        lowest[name], layers = bounds
        rows.append(
            {**row, "layers": layers, **summary(lowest[name], attacked[case.of], case.kind)}
        )
    union = torch.minimum(lowest["l_inf set"], lowest["l_2 ball and pixel range"])
    rows.append(
        {
            "region": "union",
            "kind": "threat set",
            "of": "union",
            "method": method,
            "layers": [],
            **summary(union, torch.minimum(*attacked.values()), "threat set"),
        }
    )
    return lowest, rows


def tasks(settings: dict[str, Any], places: Places) -> dict[str, Task]:
    """Return one task per network and multiple of the radii."""
    return {
        f"{_title(network)}, {scale:g} times the radii": partial(
            measure, network, scale, settings, places
        )
        for network in settings["networks"]
        for scale in network.get("scales", settings["scales"])
    }


def _title(network: dict[str, Any]) -> str:
    return next(
        f"{kind} {network[kind]}" for kind in ("digits", "run", "published") if kind in network
    )


def problems(rows: list[dict[str, Any]]) -> list[str]:
    """Return our bounds above what an attack finds, and regions not inside what must hold them."""
    wrong = []
    for row in rows:
        wrong.extend(
            f"{row['key']}: {bounds['above PGD']} margins of {bounds['region']} by"
            f" {bounds['method']} are above what an attack finds"
            for bounds in row["rows"]
            if bounds.get("above PGD") and bounds["region"] != HOST
        )
        wrong.extend(
            f"{row['key']}: {inside} sticks out of {around}"
            for inside, around in INSIDE
            if row["containment"][inside][around] > TOLERANCE
        )
    return wrong


def figures(rows: list[dict[str, Any]]) -> dict[str, Figure]:
    """Return the gaps to the attack's margins of the threat sets.

    Training on other machines differs a little.
    """
    return {
        f"{row['key']}: {bounds['region']} by {bounds['method']}, gap": Figure(
            bounds["gap to PGD"], 0.1
        )
        for row in rows
        for bounds in row["rows"]
        if bounds["kind"] == "threat set"
    }


def tables(rows: list[dict[str, Any]]) -> dict[str, list[dict]]:
    """Return, per network and radii, a line per region and method, and which region holds which."""
    titled = {}
    for row in rows:
        radii = f"l_inf {row['eps_inf']:.3g}, l_2 {row['eps_2']:.3g}"
        titled[f"{row['key']} ({radii}, n = {row['n']})"] = region_table(row)
        titled[f"{row['key']}: by how much a region sticks out of another, in its half-widths"] = (
            containment_table(row)
        )
    return titled


def draw(rows: list[dict[str, Any]], stem: str) -> dict[str, Callable]:
    """Return figures by file name.

    The gap to PGD by region and method, one per network and radii.
    """
    return {
        f"{stem}_{number}.png": partial(
            grouped_bars,
            *gap_bars(row),
            title=f"{row['key']} (n = {row['n']})",
            ylabel="margin found by PGD less the bound",
        )
        for number, row in enumerate(rows)
    }
