"""Interleaved timing, the host's own calls, and result files."""

from __future__ import annotations

import copy
import resource
import statistics
import sys
import time
from pathlib import Path
from typing import Callable, Dict

import torch
from torch import nn

from lirpa_multinorm import BoundedModule, host
from lirpa_multinorm.io import environment, write_json

RESULTS = Path(__file__).parent / "results"


def interleaved(functions: Dict[str, Callable[[], object]], repeats: int, warmup: int = 1) -> Dict[str, dict]:
    """Time functions in turn, so that a slow moment of the machine hits all of them.

    The garbage collector runs as it does in any training loop; forcing it before each call would time cold caches.

    Args:
        functions: What to time, by name.
        repeats: Rounds.
        warmup: Rounds before timing starts.

    Returns:
        Median and quartiles in seconds, and all times, by name.
    """
    times = {name: [] for name in functions}
    for turn in range(warmup + repeats):
        for name, function in functions.items():
            started = time.perf_counter()
            function()
            seconds = time.perf_counter() - started
            if turn >= warmup:
                times[name].append(seconds)
    for name, values in times.items():
        if not all(value > 0 for value in values):
            raise RuntimeError(f"{name}: the clock measured nothing")
    return {name: {"median": statistics.median(values), "quartiles": _quartiles(values), "seconds": values}
            for name, values in times.items()}


def ratio(timing: Dict[str, dict], ours: str, theirs: str, factor: float = 1.0) -> dict:
    """Return the median of the rounds' own ratios ours / (factor * theirs), with quartiles."""
    values = [a / (factor * b) for a, b in zip(timing[ours]["seconds"], timing[theirs]["seconds"])]
    return {"median": statistics.median(values), "quartiles": _quartiles(values)}


def _quartiles(values: list) -> list:
    return statistics.quantiles(values, n=4)[::2] if len(values) > 1 else [values[0], values[0]]


def host_module(model: nn.Module, x: torch.Tensor) -> host.HostModule:
    """Return the host's own module of a copy of the model, with its default options, ready to be bounded at x."""
    with host.tracing():
        module = host.HostModule(copy.deepcopy(model), x, bound_opts=dict(host.DEFAULT_OPTIONS))
    module.train(model.training)
    with torch.no_grad():
        module(x)  # BatchNorm statistics
    return module


def our_module(model: nn.Module, x: torch.Tensor, perturbations: list) -> BoundedModule:
    """Return our module of the model, ready to be bounded at x."""
    module = BoundedModule(model, perturbations=perturbations)
    with torch.no_grad():
        module(x)
    return module


def host_input(x: torch.Tensor, norm: float, eps: float) -> tuple:
    """Return x with the host's own perturbation (pixel range for l_inf, as the host offers it)."""
    limits = {"x_L": (x - eps).clamp(0, 1), "x_U": (x + eps).clamp(0, 1)} if norm == float("inf") else {}
    return (host.BoundedTensor(x, host.PerturbationLpNorm(norm=norm, eps=eps, **limits)),)


def peak_memory_mib() -> float:
    """Return the process's peak resident memory so far."""
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale / 2 ** 20


def write_result(name: str, settings: dict, result: object) -> Path:
    """Write benchmarks/results/NAME.json with settings and environment, and print the result."""
    record = {"benchmark": name, "settings": settings, "result": result,
              "environment": dict(environment(), host=host.version, threads=torch.get_num_threads())}
    path = write_json(RESULTS / f"{name}.json", record)
    return path
