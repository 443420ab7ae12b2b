"""The host's alpha-CROWN and our optimised bounds on published l_inf networks.

Both run the same number of iterations.

    python -m benchmarks.run optimized --reference FOLDER

The lowest margin of each image by both, and times. Ours optimises every hidden neuron that can
switch and the margins; so does the host. See :mod:`benchmarks.certified` for what FOLDER holds.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Any

from lirpa_multinorm import BoundedModule, PerturbationLpBox, margin_matrix

from . import certified
from .run import Places, Task

METHODS = {"alpha-CROWN": "CROWN-Optimized", "ours": "SDP-CROWN-Optimized"}
TOLERANCE = 1e-3


def measure(network: str, n: int, iterations: int, places: Places) -> dict[str, Any]:
    """Bound the first correctly classified images of a network, one by one."""
    model, x, y = certified.load(network, places.reference)
    right = (model(x).argmax(1) == y).nonzero().squeeze(1)[:n]
    ptb = PerturbationLpBox(certified.NETWORKS[network].norm, certified.NETWORKS[network].eps)
    options = {"optimize_bound_args": {"iteration": iterations}}
    lowest: dict[str, list[float]] = {name: [] for name in METHODS}
    seconds = dict.fromkeys(METHODS, 0.0)
    for image in right.split(1):
        C = margin_matrix(y[image], model(x[image]).shape[1])
        for name, method in METHODS.items():
            bounded, start = (
                BoundedModule(model, bound_opts=options, perturbations=[ptb]),
                time.perf_counter(),
            )
            lower, _ = bounded.compute_bounds(x[image], C=C, method=method, bound_upper=False)
            seconds[name] += time.perf_counter() - start
            lowest[name].append(float(lower.min()))
    pairs = list(zip(*lowest.values()))
    return {
        "network": network,
        "iterations": iterations,
        "n": len(right),
        "mean lowest margin, alpha-CROWN": sum(lowest["alpha-CROWN"]) / len(right),
        "mean lowest margin, ours": sum(lowest["ours"]) / len(right),
        "images where ours is looser": sum(ours < theirs - TOLERANCE for theirs, ours in pairs),
        "alpha-CROWN's seconds to ours": seconds["alpha-CROWN"] / seconds["ours"],
        "lowest margins": lowest,
    }


def tasks(settings: dict[str, Any], places: Places) -> dict[str, Task]:
    """Return one task per network."""
    return {
        name: partial(measure, name, n, settings["iterations"], places)
        for name, n in settings["networks"].items()
    }


def problems(rows: list[dict[str, Any]]) -> list[str]:
    """Return where ours is looser on the whole."""
    return [
        f"{row['key']}: our bounds are looser than alpha-CROWN's"
        for row in rows
        if not row["mean lowest margin, ours"] >= row["mean lowest margin, alpha-CROWN"]
    ]
