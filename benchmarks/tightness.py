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

from collections.abc import Iterable
from functools import partial
from typing import Any, Callable, NamedTuple

import torch
from torch import Tensor

from lirpa_multinorm import (
    AttackSettings,
    BoundedModule,
    PerturbationL2Box,
    PerturbationLinf,
    host,
    margin_matrix,
    pgd,
)
from lirpa_multinorm.bounds.methods import METHODS, VERIFIER
from lirpa_multinorm.perturbations import Region, cure_l2_region, sabr_region, small_ball_region
from lirpa_multinorm.perturbations.rows import DenseRows
from lirpa_multinorm.report import grouped_bars

from .common import host_bounds
from .networks import Subject, subject
from .run import Figure, Places, Task

ATTACK = AttackSettings(steps=50, restarts=2)
DIRECTIONS, TOLERANCE = 64, 1e-4
HOST = "host's l_2 ball"


class Case(NamedTuple):
    """A region and what it stands for.

    Args:
        region: Around all images.
        kind: "threat set", "cover" (holds the threat set) or "training region".
        of: The threat set meant, "l_inf" or "l_2".
    """

    region: Region
    kind: str
    of: str


def cases(
    one: Subject, scale: float, settings: dict[str, Any]
) -> tuple[dict[str, Case], dict[str, Tensor]]:
    """Return the regions by name, and the points that attack the two threat sets."""
    linf, ball = PerturbationLinf(scale * one.eps_inf), PerturbationL2Box(scale * one.eps_2)
    generator = torch.Generator().manual_seed(0)
    points = dict(
        zip(("l_inf", "l_2"), pgd(one.model, one.x, one.y, [linf, ball], ATTACK, generator))
    )
    ratio, small, tiny = (settings[name] for name in ("ratio_inf", "ratio_2", "ratio_cure_l2"))
    inner = [PerturbationL2Box(ball.eps * (1 - part)) for part in (small, tiny)]
    near = pgd(one.model, one.x, one.y, inner, ATTACK, generator)
    return {
        "l_inf set": Case(Region(one.x, linf), "threat set", "l_inf"),
        "SABR's small box": Case(
            sabr_region(one.x, points["l_inf"], linf, ratio), "training region", "l_inf"
        ),
        "l_2 ball and pixel range": Case(Region(one.x, ball), "threat set", "l_2"),
        "l_2 ball": Case(Region(one.x, ball.unclipped()), "cover", "l_2"),
        HOST: Case(Region(one.x, ball.unclipped()), "cover", "l_2"),
        "SABR's box at the l_2 radius": Case(
            Region(one.x, PerturbationLinf(ball.eps)), "cover", "l_2"
        ),
        "small l_2 ball": Case(
            small_ball_region(one.x, near[0], ball, small, clipped=True), "training region", "l_2"
        ),
        "CURE's l_2 box": Case(
            cure_l2_region(one.x, near[1], ball, tiny), "training region", "l_2"
        ),
    }, points


def measure(
    what: dict[str, Any], scale: float, settings: dict[str, Any], places: Places
) -> dict[str, Any]:
    """Bound one network at one multiple of its radii."""
    one = subject(what, settings["n"], places)
    regions, points = cases(one, scale, settings)
    attacked = {norm: _margins(one, found).min(1)[0] for norm, found in points.items()}
    rows, lowest = [], {}
    for method in settings["methods"]:
        for name, case in regions.items():
            if name == HOST and METHODS[method].engine == VERIFIER:  # which the host does not have
                continue
            found = _bounds(one, name, case.region, method, settings["batch"])
            if found is None:
                rows.append(
                    {
                        "region": name,
                        "kind": case.kind,
                        "of": case.of,
                        "method": method,
                        "layers": [],
                        "gap to PGD": None,
                        "certified %": None,
                    }
                )
                continue
            lower, layers = found
            lowest[method, name] = lower
            rows.append(
                {
                    "region": name,
                    "kind": case.kind,
                    "of": case.of,
                    "method": method,
                    "layers": layers,
                    **_summary(lower, attacked[case.of], case.kind),
                }
            )
        union = torch.minimum(
            lowest[method, "l_inf set"], lowest[method, "l_2 ball and pixel range"]
        )
        rows.append(
            {
                "region": "union",
                "kind": "threat set",
                "of": "union",
                "method": method,
                "layers": [],
                **_summary(union, torch.minimum(*attacked.values()), "threat set"),
            }
        )
    return {
        "network": what,
        "scale": scale,
        "eps_inf": scale * one.eps_inf,
        "eps_2": scale * one.eps_2,
        "n": len(one.x),
        "rows": rows,
        "containment": containment(regions),
        "seen": {
            name: _seen(case, points[case.of], one.x)
            for name, case in regions.items()
            if case.kind == "training region"
        },
        "worst margins": {
            f"{name}, {method}": [round(float(value), 5) for value in lower.min(1)[0]]
            for (method, name), lower in lowest.items()
        },
    }


def _bounds(
    one: Subject, name: str, region: Region, method: str, batch: int
) -> tuple[Tensor, list[dict]] | None:
    """Return lower margin bounds (n, K-1) and what the layers' intervals look like.

    None where the host fails.
    """
    bound = _by_host if name == HOST else _by_us
    parts = [
        bound(
            one.model,
            region.rows(rows),
            margin_matrix(one.y[rows], one.model(one.x[:1]).shape[1]),
            method,
        )
        for rows in torch.arange(len(one.x)).split(batch)
    ]
    if None in parts:
        return None
    counts, layers = [len(lower) for lower, _ in parts], []
    for same in zip(*[found for _, found in parts]):
        layers.append(
            {
                key: sum(layer[key] * count for layer, count in zip(same, counts)) / sum(counts)
                for key in ("width", "unstable %")
            }
        )
    return torch.cat([lower for lower, _ in parts]), layers


def _by_us(model, region: Region, C: Tensor, method: str) -> tuple[Tensor, list[dict]]:
    bounded = BoundedModule(model, perturbations=[region.perturbation])
    (bounds,) = bounded.compute_region_bounds([region], [C], method, bound_upper=False)
    return bounds.lower.detach(), _layers(bounds.intermediate.relus)


def _by_host(model, region: Region, C: Tensor, method: str) -> tuple[Tensor, list[dict]] | None:
    found = host_bounds(model, region.center, 2, region.perturbation.eps, C, method)
    return None if found is None else (found[0], _layers(host.last_relu_bounds(found[1])))


def _layers(intervals: Iterable[tuple[Tensor, Tensor]]) -> list[dict]:
    """Return the mean interval width of each layer, and its share of unstable neurons."""
    return [
        {
            "width": float((high - low).mean()),
            "unstable %": 100 * float(((low < 0) & (high > 0)).float().mean()),
        }
        for low, high in intervals
    ]


@torch.no_grad()
def _margins(one: Subject, points: Tensor) -> Tensor:
    logits = one.model(points)
    return torch.einsum("bsk,bk->bs", margin_matrix(one.y, logits.shape[1]), logits)


def _summary(lower: Tensor, attacked: Tensor, kind: str) -> dict[str, Any]:
    """Return what margins (n, K-1) say of the threat set, whose attack found the margins (n,)."""
    worst = lower.min(1)[0]
    share = 100 * float((worst > 0).float().mean())
    found = {"margin": float(worst.mean()), "gap to PGD": float((attacked - worst).mean())}
    if kind != "training region":
        return {
            **found,
            "certified %": share,
            "above PGD": int((worst > attacked + TOLERANCE).sum()),
        }
    return {
        **found,
        "certified %": None,
        "positive %": share,
        "positive but attacked %": 100 * float(((worst > 0) & (attacked <= 0)).float().mean()),
    }


def containment(regions: dict[str, Case]) -> dict[str, dict[str, float]]:
    """Return how far each region sticks out of each other one, in units of the other's half-width.

    The largest ``h_A(u) - h_B(u)`` over random directions, the axes' among them, for support
    functions h: A lies in B only if there is none.
    """
    center = next(iter(regions.values())).region.center
    generator = torch.Generator().manual_seed(1)
    u = torch.randn(DIRECTIONS, center[0].numel(), generator=generator)
    u = torch.cat(
        [u / u.norm(dim=1, keepdim=True), torch.eye(len(u[0]))[:: max(1, len(u[0]) // DIRECTIONS)]]
    )
    rows = DenseRows(torch.cat([u, -u]).unsqueeze(0))
    reach = {
        name: case.region.perturbation.extreme(rows, case.region.center, 1)
        for name, case in regions.items()
    }
    half = {name: (value[:, : len(u)] + value[:, len(u) :]) / 2 for name, value in reach.items()}
    return {
        inside: {
            around: float(
                ((reach[inside] - reach[around]) / half[around].repeat(1, 2).clamp(min=1e-6)).max()
            )
            for around in regions
            if around != inside
        }
        for inside in regions
    }


def _seen(case: Case, points: Tensor, x: Tensor) -> dict[str, float]:
    """Return how much of the threat set a training region holds.

    Of the attack's points, and of its width.
    """
    inside = case.region.perturbation.contains(points, case.region.center)
    return {"attacked points inside %": 100 * float(inside.float().mean())}


#: What must lie in what, whatever the network: threat sets in their covers, training regions in
#: their threat sets.
INSIDE: list[tuple[str, str]] = [
    ("l_2 ball and pixel range", "l_2 ball"),
    ("l_2 ball and pixel range", "SABR's box at the l_2 radius"),
    ("SABR's small box", "l_inf set"),
    ("small l_2 ball", "l_2 ball and pixel range"),
]


def tasks(settings: dict[str, Any], places: Places) -> dict[str, Task]:
    """Return one task per network and multiple of the radii."""
    return {
        f"{_title(what)}, {scale:g} times the radii": partial(
            measure, what, scale, settings, places
        )
        for what in settings["networks"]
        for scale in what.get("scales", settings["scales"])
    }


def _title(what: dict[str, Any]) -> str:
    return next(f"{kind} {what[kind]}" for kind in ("digits", "run", "published") if kind in what)


def problems(rows: list[dict[str, Any]]) -> list[str]:
    """Return our bounds above what an attack finds, and regions not inside what must hold them."""
    found = []
    for row in rows:
        found.extend(
            f"{row['key']}: {one['above PGD']} margins of {one['region']} by {one['method']} are"
            " above what an attack finds"
            for one in row["rows"]
            if one.get("above PGD") and one["region"] != HOST
        )
        found.extend(
            f"{row['key']}: {inside} sticks out of {around}"
            for inside, around in INSIDE
            if row["containment"][inside][around] > TOLERANCE
        )
    return found


def figures(rows: list[dict[str, Any]]) -> dict[str, Figure]:
    """Return the gaps to the attack's margins of the threat sets.

    Training on other machines differs a little.
    """
    return {
        f"{row['key']}: {one['region']} by {one['method']}, gap": Figure(one["gap to PGD"], 0.1)
        for row in rows
        for one in row["rows"]
        if one["kind"] == "threat set"
    }


def tables(rows: list[dict[str, Any]]) -> dict[str, list[dict]]:
    """Return, per network and radii, one row per region and method."""
    found = {}
    for row in rows:
        title = f"{row['key']} (l_inf {row['eps_inf']:.3g}, l_2 {row['eps_2']:.3g}, n = {row['n']})"
        found[title] = [
            {
                "region": one["region"],
                "is a": one["kind"],
                "method": one["method"],
                "certified %": one["certified %"],
                "above PGD": one.get("above PGD"),
                "gap to PGD": one["gap to PGD"],
                "positive but attacked %": one.get("positive but attacked %"),
                **{
                    f"layer {place} {name}": layer[name]
                    for place, layer in enumerate(one["layers"], 1)
                    for name in ("width", "unstable %")
                },
            }
            for one in row["rows"]
        ]
        columns = list(dict.fromkeys(name for one in found[title] for name in one))
        found[title] = [{name: one.get(name) for name in columns} for one in found[title]]
        found[f"{row['key']}: by how much a region sticks out of another, in its half-widths"] = [
            {
                "region": inside,
                **{around: others.get(around) for around in row["containment"]},
                "of the attack's points it holds %": (
                    row["seen"].get(inside, {}).get("attacked points inside %")
                ),
            }
            for inside, others in row["containment"].items()
        ]
    return found


def draw(rows: list[dict[str, Any]], stem: str) -> dict[str, Callable]:
    """Return figures by file name.

    The gap to PGD by region and method, one per network and radii.
    """
    found = {}
    for number, row in enumerate(rows):
        threat = [one for one in row["rows"] if one["kind"] != "training region"]
        gaps = {
            method: {one["region"]: one["gap to PGD"] for one in threat if one["method"] == method}
            for method in dict.fromkeys(one["method"] for one in threat)
        }
        bars = [
            {"region": region, **{method: gaps[method].get(region) for method in gaps}}
            for region in dict.fromkeys(one["region"] for one in threat)
        ]
        found[f"{stem}_{number}.png"] = partial(
            grouped_bars,
            bars,
            ["region", *gaps],
            title=f"{row['key']} (n = {row['n']})",
            ylabel="margin found by PGD less the bound",
        )
    return found
