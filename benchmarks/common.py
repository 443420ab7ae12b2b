"""Networks with a batch, interleaved timing, and the host's own calls."""

from __future__ import annotations

import copy
import statistics
import time
from functools import partial
from typing import Callable

import torch
from torch import nn

from lirpa_multinorm import BoundedModule, host
from lirpa_multinorm.errors import InvalidArgumentError
from lirpa_multinorm.models import build_model

#: Radii of the sets whose cost is measured: those of CIFAR-10 in the literature.
EPS_INF, EPS_2 = 2 / 255, 0.25
CLASSES = 10
#: How much worse a ratio of times or of memory may come out again: other jobs share the machine,
#: unequally.
TOLERANCE = 0.35


def find_device(name: str) -> torch.device:
    """Return a device by name.

    Raises:
        InvalidArgumentError: There is no such device; the message names those that there are.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    there = ", ".join(["'cpu'", *[f"'cuda:{index}'" for index in range(count)]])
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InvalidArgumentError(f"device={name!r} is no device; use {there}") from error
    if device.type == "cuda" and not count:
        raise InvalidArgumentError(
            f"device={name!r}: torch finds no GPU on this machine; use 'cpu'"
        )
    if device.type == "cuda" and (device.index or 0) >= count:
        raise InvalidArgumentError(f"device={name!r} does not exist on this machine; use {there}")
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, NotImplementedError, AssertionError) as error:
        raise InvalidArgumentError(
            f"device={name!r} cannot be used ({error}); use {there}"
        ) from error
    return device


def waiting(device: torch.device) -> Callable[[], object] | None:
    """Return what waits until a device's work is done.

    None where calls return when they are done.
    """
    return partial(torch.cuda.synchronize, device) if device.type == "cuda" else None


def network_and_batch(
    case: dict, device: str | torch.device = "cpu"
) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """Return a network, images and labels, all random, the same ones for the same case.

    Args:
        case: "network" (a name of ``lirpa_multinorm.models``), "in_shape", "batch", and maybe the
            network's "options".
        device: Where all three shall be.
    """
    torch.manual_seed(0)
    model = build_model(case["network"], case["in_shape"], CLASSES, **case.get("options", {}))
    x, y = torch.rand(case["batch"], *case["in_shape"]), torch.randint(0, CLASSES, (case["batch"],))
    return model.to(device), x.to(device), y.to(device)


def interleaved(
    functions: dict[str, Callable[[], object]],
    repeats: int,
    warmup: int = 1,
    synchronize: Callable[[], object] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, dict]:
    """Time functions in turn, so that a slow moment of the machine hits all of them.

    The garbage collector runs as it does in any training loop; forcing it before each call would
    time cold caches.

    Args:
        functions: What to time, by name.
        repeats: Rounds.
        warmup: Rounds before timing starts.
        synchronize: Waits until a device has done its work; called around each function where
            given.
        clock: Says the time in seconds.

    Returns:
        Median and quartiles in seconds, and all times, by name.
    """
    times, wait = {name: [] for name in functions}, synchronize or (lambda: None)
    for turn in range(warmup + repeats):
        for name, function in functions.items():
            wait()
            started = clock()
            function()
            wait()
            seconds = clock() - started
            if turn >= warmup:
                times[name].append(seconds)
    for name, values in times.items():
        if not all(value > 0 for value in values):
            raise RuntimeError(f"{name}: the clock measured nothing")
    return {
        name: {
            "median": statistics.median(values),
            "quartiles": _quartiles(values),
            "seconds": values,
        }
        for name, values in times.items()
    }


def ratio(timing: dict[str, dict], ours: str, theirs: str, factor: float = 1.0) -> dict:
    """Return the median of the rounds' own ratios ours / (factor * theirs), with quartiles."""
    values = [a / (factor * b) for a, b in zip(timing[ours]["seconds"], timing[theirs]["seconds"])]
    return {"median": statistics.median(values), "quartiles": _quartiles(values)}


def _quartiles(values: list) -> list:
    return statistics.quantiles(values, n=4)[::2] if len(values) > 1 else [values[0], values[0]]


def host_module(model: nn.Module, x: torch.Tensor, **options) -> host.HostModule:
    """Return the host's own module of a copy of the model, ready for bounds at x.

    Its options are the defaults of this package but for those given.
    """
    with host.tracing():
        module = host.HostModule(
            copy.deepcopy(model), x, bound_opts=dict(host.DEFAULT_OPTIONS, **options)
        )
    module.train(model.training)
    with torch.no_grad():
        module(x)  # BatchNorm statistics
    return module


def host_bounds(
    model: nn.Module,
    x: torch.Tensor,
    norm: float,
    eps: float,
    C: torch.Tensor,
    method: str,
    **options,
) -> tuple[torch.Tensor, host.HostModule] | None:
    """Return the host's own lower bounds and its module as the calculation has left it.

    None where it fails.

    The module has the host's default options but for those given. auto_LiRPA 0.3 fails on networks
    that normalise their input, with its patches and with its matrices.
    """
    for mode in ("patches", "matrix"):
        module = host_module(model, x, conv_mode=mode, **options)
        try:
            lower, _ = module.compute_bounds(
                x=host_input(x, norm, eps), C=C, method=method, bound_upper=False
            )
        except RuntimeError:
            continue
        return lower.detach(), module
    return None


def our_module(model: nn.Module, x: torch.Tensor, perturbations: list) -> BoundedModule:
    """Return our module of the model, ready to be bounded at x."""
    module = BoundedModule(model, perturbations=perturbations)
    with torch.no_grad():
        module(x)
    return module


def host_input(x: torch.Tensor, norm: float, eps: float) -> tuple:
    """Return x with the host's own perturbation (pixel range for l_inf, as the host offers it)."""
    limits = (
        {"x_L": (x - eps).clamp(0, 1), "x_U": (x + eps).clamp(0, 1)} if norm == float("inf") else {}
    )
    return (host.BoundedTensor(x, host.PerturbationLpNorm(norm=norm, eps=eps, **limits)),)
