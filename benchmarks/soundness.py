"""Bounds attacked inside the set, on graphs of many shapes: the host alone, and this package.

    python -m benchmarks.soundness

Every network of ``lirpa_multinorm.audit`` is bounded by every method for l_inf, l_2 and l_1 (plain balls: the sets
the host knows), and a gradient attack tries to leave the bounds. A violation is an excess of more than 1e-4 of the
bound's size. Takes about two minutes on one core.
"""

from __future__ import annotations

import argparse
import warnings

import torch

from lirpa_multinorm import AttackSettings, BoundedModule, PerturbationLpBox, host
from lirpa_multinorm.audit import GRAPHS, INPUT_SHAPE, build_graph, largest_violation

from .common import host_module, write_result

METHODS = ["IBP", "CROWN-IBP", "CROWN", "CROWN-Optimized"]
RADII = {"l_inf": (float("inf"), 0.08), "l_2": (2, 0.5), "l_1": (1, 1.2)}
VIOLATION = 1e-4
ATTACK = AttackSettings(steps=60, restarts=2, step_size=0.3)
OPTIONS = {"optimize_bound_args": {"iteration": 6}}


def by_us(model, x, method: str, norm: float, eps: float) -> tuple:
    """Our bounds for one plain ball."""
    module = BoundedModule(model, bound_opts=OPTIONS, perturbations=[PerturbationLpBox(norm, eps, clip=None)])
    return module.compute_bounds(x, method=method)


def by_host(model, x, method: str, norm: float, eps: float) -> tuple:
    """The host's own bounds for the same ball."""
    module = host_module(model, x)
    module.set_bound_opts(OPTIONS)
    inputs = (host.BoundedTensor(x, host.PerturbationLpNorm(norm=norm, eps=eps)),)
    C = torch.eye(3).expand(len(x), -1, -1) if method == "CROWN-Optimized" else None
    return module.compute_bounds(x=inputs, C=C, method=method)


def audit(bound, graph: str, method: str, norm: float, eps: float) -> object:
    """Return the largest violation, or the name of the exception where no bound came out."""
    model, x = build_graph(graph), torch.rand(2, *INPUT_SHAPE, generator=torch.Generator().manual_seed(3))
    try:
        bounds = tuple(end.detach() for end in bound(model, x, method, norm, eps))
    except Exception as error:  # an operator or a mode the host does not have for this graph
        return type(error).__name__
    generator = torch.Generator().manual_seed(0)
    return largest_violation(model, x, PerturbationLpBox(norm, eps, None), bounds, settings=ATTACK, generator=generator)


def counts(cells: list) -> dict:
    """Return violations, failures and totals by norm."""
    table = {}
    for name in RADII:
        rows = [cell for cell in cells if cell["norm"] == name]
        values = [cell["violation"] for cell in rows if not isinstance(cell["violation"], str)]
        broken = [cell for cell in rows if not isinstance(cell["violation"], str) and cell["violation"] > VIOLATION]
        table[name] = {"bounds": len(values), "violated": len(broken), "no bound": len(rows) - len(values),
                       "largest": max(values), "graphs violated": sorted({cell["graph"] for cell in broken})}
    return table


def main() -> None:
    """Audit both and write benchmarks/results/soundness.json."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    warnings.simplefilter("ignore")
    result = {}
    for who, bound in (("host alone", by_host), ("lirpa-multinorm", by_us)):
        cells = [{"graph": graph, "method": method, "norm": name,
                  "violation": audit(bound, graph, method, *RADII[name])}
                 for graph in GRAPHS for method in METHODS for name in RADII]
        result[who] = {"counts": counts(cells), "cells": cells}
        for name, row in result[who]["counts"].items():
            print(f"{who}, {name}: {row['violated']} of {row['bounds']} bounds violated, by up to "
                  f"{row['largest']:.2g}; {row['no bound']} without a bound; graphs: {row['graphs violated']}")
    settings = {"radii": {name: eps for name, (_, eps) in RADII.items()}, "attack": ATTACK, "violation": VIOLATION}
    write_result(f"soundness_host_{host.version}", settings, result)


if __name__ == "__main__":
    main()
