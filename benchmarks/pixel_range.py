"""What the pixel range is worth.

CROWN over the l_2 ball and over ball and pixel range, on published networks.

    python -m benchmarks.run pixel_range --reference FOLDER

The host's ball, ours, and ball and pixel range, each by CROWN, on the same images over a range of
radii, with the limit that an attack sets. See :mod:`benchmarks.certified` for what FOLDER holds.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Callable

import torch
from torch import Tensor

from lirpa_multinorm import AttackSettings, BoundedModule, PerturbationL2Box, margin_matrix, pgd
from lirpa_multinorm.attacks import margin_loss
from lirpa_multinorm.report import line_chart

from . import certified
from .common import host_bounds
from .run import Figure, Places, Task

ATTACK = AttackSettings(steps=50, restarts=2)
TOLERANCE = 1e-4
LINES = (
    "host's ball",
    "our ball",
    "ball and pixel range",
    "PGD, ball",
    "PGD, ball and pixel range",
)


@torch.no_grad()
def _lowest(
    bound: Callable[[Tensor, Tensor], Tensor | None], x: Tensor, C: Tensor, batch: int
) -> Tensor | None:
    """Return each image's lowest margin, batch by batch; None where there are no bounds."""
    margins = []
    for rows in torch.arange(len(x)).split(batch):
        lower = bound(x[rows], C[rows])
        if lower is None:
            return None
        margins.append(lower.min(1)[0])
    return torch.cat(margins)


def measure(network: str, eps: float, n: int, batch: int, places: Places) -> dict[str, Any]:
    """Compare the three at one radius."""
    model, x, y = certified.load(network, places.reference)
    x, y, C = x[:n], y[:n], margin_matrix(y[:n], model(x[:1]).shape[1])
    sets = {
        "our ball": PerturbationL2Box(eps, None),
        "ball and pixel range": PerturbationL2Box(eps),
    }
    modules = {name: BoundedModule(model, perturbations=[module]) for name, module in sets.items()}
    lowest = {
        "host's ball": _lowest(partial(_by_host, model, eps), x, C, batch),
        **{name: _lowest(partial(_by_us, module), x, C, batch) for name, module in modules.items()},
    }
    points = pgd(model, x, y, list(sets.values()), ATTACK, torch.Generator().manual_seed(0))
    with torch.no_grad():
        left = dict(zip(LINES[3:], (-margin_loss(model(adversarial), y) for adversarial in points)))
    above = [lowest[name] > margin + TOLERANCE for name, margin in zip(LINES[1:3], left.values())]
    lost = (lowest["our ball"] > 0) & (lowest["ball and pixel range"] <= 0)
    return {
        "network": network,
        "eps": eps,
        "n": len(x),
        "certified": {
            name: None if value is None else int((value > 0).sum())
            for name, value in {**lowest, **left}.items()
        },
        "lost by the range": int(lost.sum()),
        "above PGD": sum(int(images.sum()) for images in above),
        "mean lowest margin": {
            name: None if value is None else float(value.mean()) for name, value in lowest.items()
        },
    }


def _by_host(model, eps: float, x: Tensor, C: Tensor) -> Tensor | None:
    bounds = host_bounds(model, x, 2, eps, C, "CROWN")
    return None if bounds is None else bounds[0]


def _by_us(bounded: BoundedModule, x: Tensor, C: Tensor) -> Tensor:
    return bounded.compute_bounds(x, C=C, method="Sparse-CROWN", bound_upper=False)[0]


def tasks(settings: dict[str, Any], places: Places) -> dict[str, Task]:
    """Return one task per network and radius."""
    return {
        f"{name}, eps {eps:.4g}": partial(measure, name, eps, entry["n"], settings["batch"], places)
        for name, entry in settings["networks"].items()
        for eps in entry["radii"]
    }


def problems(rows: list[dict[str, Any]]) -> list[str]:
    """Return bounds that an attack breaks."""
    return [
        f"{row['key']}: {row['above PGD']} margins are above what an attack finds"
        for row in rows
        if row["above PGD"]
    ]


def figures(rows: list[dict[str, Any]]) -> dict[str, Figure]:
    """Return what the range adds to the mean lowest margin, which rounding alone can change."""
    return {
        f"{row['key']}: gain by the range": Figure(
            row["mean lowest margin"]["ball and pixel range"]
            - row["mean lowest margin"]["our ball"],
            0.02,
            "higher",
        )
        for row in rows
    }


def tables(rows: list[dict[str, Any]]) -> dict[str, list[dict]]:
    """Return the certified images by network and radius."""
    return {
        "Certified images": [
            {
                "network": row["network"],
                "eps": f"{row['eps']:.4g}",
                "n": row["n"],
                **row["certified"],
                "lost by the range": row["lost by the range"],
            }
            for row in rows
        ]
    }


def draw(rows: list[dict[str, Any]], stem: str) -> dict[str, Callable]:
    """Return figures by file name: certified share against radius, one per network."""
    figures = {}
    for network in dict.fromkeys(row["network"] for row in rows):
        of_network = [row for row in rows if row["network"] == network]
        series = {
            name: (
                [row["eps"] for row in of_network],
                [100 * row["certified"][name] / row["n"] for row in of_network],
            )
            for name in LINES
            if of_network[0]["certified"][name] is not None
        }
        figures[f"{stem}_{network}.png"] = partial(
            line_chart,
            series,
            title=f"{network}: CROWN over the l_2 ball (n = {of_network[0]['n']})",
            xlabel="l_2 radius",
            ylabel="certified % (PGD: not broken)",
        )
    return figures
