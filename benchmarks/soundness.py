"""Bounds attacked inside the set, on graphs of many shapes: the host alone, and this package.

    python -m benchmarks.run soundness_host_0.3

Every network of ``lirpa_multinorm.audit`` is bounded by every method for l_inf, l_2 and l_1 (plain
balls: the sets the host knows), and a gradient attack tries to leave the bounds. A violation is an
excess of more than 1e-4 of the bound's size. The results belong to one version of the host; with
another one the tasks refuse to run.
"""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any, Callable

import torch

from lirpa_multinorm import AttackSettings, BoundedModule, PerturbationLpBox, host
from lirpa_multinorm.audit import GRAPHS, INPUT_SHAPE, NUM_OUTPUTS, build_graph, largest_violation
from lirpa_multinorm.errors import InvalidArgumentError

from .common import host_module
from .run import Places, Task

NORMS = {"l_inf": float("inf"), "l_2": 2, "l_1": 1}
VIOLATION = 1e-4
OPTIONS = {"optimize_bound_args": {"iteration": 6}}
OURS = "lirpa-multinorm"


def by_us(model, x: torch.Tensor, method: str, norm: float, eps: float) -> tuple:
    """Return our bounds for one plain ball."""
    module = BoundedModule(
        model, bound_opts=OPTIONS, perturbations=[PerturbationLpBox(norm, eps, clip=None)]
    )
    return module.compute_bounds(x, method=method)


def by_host(model, x: torch.Tensor, method: str, norm: float, eps: float) -> tuple:
    """Return the host's own bounds for the same ball."""
    module = host_module(model, x)
    module.set_bound_opts(OPTIONS)
    inputs = (host.BoundedTensor(x, host.PerturbationLpNorm(norm=norm, eps=eps)),)
    C = torch.eye(NUM_OUTPUTS).expand(len(x), -1, -1) if method == "CROWN-Optimized" else None
    return module.compute_bounds(x=inputs, C=C, method=method)


WHO: dict[str, Callable] = {"host alone": by_host, OURS: by_us}


def attacked(
    bound: Callable, graph: str, method: str, norm: float, eps: float, attack: AttackSettings
) -> dict:
    """Return the largest violation, or as failure the exception's name where no bound came out."""
    model, x = (
        build_graph(graph),
        torch.rand(2, *INPUT_SHAPE, generator=torch.Generator().manual_seed(3)),
    )
    try:
        bounds = tuple(end.detach() for end in bound(model, x, method, norm, eps))
    except Exception as error:  # an operator or a mode the host does not have for this graph
        return {"violation": None, "failure": type(error).__name__}
    generator = torch.Generator().manual_seed(0)
    return {
        "violation": largest_violation(
            model,
            x,
            PerturbationLpBox(norm, eps, None),
            bounds,
            settings=attack,
            generator=generator,
        ),
        "failure": None,
    }


def audit(who: str, graph: str, settings: dict) -> dict:
    """Attack the bounds of one graph by all methods and norms.

    Raises:
        InvalidArgumentError: The settings are for another version of the host.
    """
    if host.version != settings["host"]:
        raise InvalidArgumentError(
            f"host={settings['host']!r}: auto_LiRPA {host.version} is loaded; install "
            f"{settings['host']}, or run the configuration soundness_host_{host.version}"
        )
    attack = AttackSettings(**settings["attack"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the host warns of every graph it knows little of
        cells = [
            {
                "method": method,
                "norm": norm,
                **attacked(WHO[who], graph, method, NORMS[norm], eps, attack),
            }
            for method in settings["methods"]
            for norm, eps in settings["radii"].items()
        ]
    return {"who": who, "graph": graph, "cells": cells}


def tasks(settings: dict, places: Places) -> dict[str, Task]:
    """Return one task per graph and who bounds it."""
    return {
        f"{who}, {graph}": partial(audit, who, graph, settings) for who in WHO for graph in GRAPHS
    }


def violated(cell: dict) -> bool:
    """Return whether an attack left the bounds.

    A file of results has "Infinity" for bounds that are NaN.
    """
    return cell["violation"] is not None and not float(cell["violation"]) <= VIOLATION


def counts(rows: list[dict]) -> dict[str, dict[str, dict[str, Any]]]:
    """Return bounds, violations and failures by who and norm."""
    table: dict[str, dict[str, dict[str, Any]]] = {}
    for who in dict.fromkeys(row["who"] for row in rows):
        table[who] = {}
        for norm in NORMS:
            cells = [
                (row["graph"], cell)
                for row in rows
                if row["who"] == who
                for cell in row["cells"]
                if cell["norm"] == norm
            ]
            values = [
                float(cell["violation"]) for _, cell in cells if cell["violation"] is not None
            ]
            broken = [graph for graph, cell in cells if violated(cell)]
            table[who][norm] = {
                "bounds": len(values),
                "violated": len(broken),
                "no bound": len(cells) - len(values),
                "largest": max(values, default=None),
                "graphs violated": sorted(set(broken)),
            }
    return table


def problems(rows: list[dict]) -> list[str]:
    """Return where bounds of ours are violated or missing."""
    ours = [
        (f"{row['key']}, {cell['method']}, {cell['norm']}", cell)
        for row in rows
        if row["who"] == OURS
        for cell in row["cells"]
    ]
    return [
        *(f"{name}: violated by {cell['violation']}" for name, cell in ours if violated(cell)),
        *(
            f"{name}: no bound, {cell['failure']}"
            for name, cell in ours
            if cell["failure"] is not None
        ),
    ]


def tables(rows: list[dict]) -> dict[str, list[dict]]:
    """Return the counts by who and norm."""
    return {
        "Bounds that an attack breaks": [
            {
                "who": who,
                "norm": norm,
                **{name: value for name, value in row.items() if name != "graphs violated"},
                "graphs violated": len(row["graphs violated"]),
            }
            for who, norms in counts(rows).items()
            for norm, row in norms.items()
        ]
    }
