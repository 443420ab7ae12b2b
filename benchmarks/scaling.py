"""Time of two norms in one call, and of the host's two calls, against batch size and network width.

    python -m benchmarks.run scaling

All sizes of a curve are timed in turn, so that a slow moment hits all of them. The slope is that of
the logarithm of the median time over the logarithm of the size: 1 is linear growth; fixed costs of
small sizes make it flatter.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lirpa_multinorm.errors import InvalidArgumentError

from .common import TOLERANCE, find_device, ratio
from .run import Figure, Places, Task
from .speed import contest, looser_bounds, tasks_by_name, timed

NAMES = ("ours", "host twice")


def log_log_slope(sizes: Sequence[float], times: Sequence[float]) -> float:
    """Return the slope of log time over log size, by least squares.

    Raises:
        InvalidArgumentError: There are fewer than two different sizes.
    """
    if len(set(sizes)) < 2:
        raise InvalidArgumentError(
            f"sizes={list(sizes)!r} give no slope; use at least two different ones"
        )
    return float(np.polyfit(np.log(sizes), np.log(times), 1)[0])


def at_size(curve: dict, size: int) -> dict:
    """Return a curve's case with one size.

    "over" is "batch", or an option of the network such as "width".
    """
    case = curve["case"]
    if curve["over"] == "batch":
        return {**case, "batch": size}
    return {**case, "options": {**case.get("options", {}), curve["over"]: size}}


def measure(curve: dict, device: str) -> dict:
    """Time a curve's sizes in turn and fit the slopes of ours and of the host's."""
    torch_device, sizes = find_device(device), curve["sizes"]
    contests = {size: contest(at_size(curve, size), torch_device) for size in sizes}
    calls = {
        f"{name}, {size}": sized.calls[name] for size, sized in contests.items() for name in NAMES
    }
    timing = timed(calls, curve["case"]["repeats"], torch_device)
    medians = {name: [timing[f"{name}, {size}"]["median"] for size in sizes] for name in NAMES}
    return {
        "sizes": sizes,
        "medians": medians,
        "slopes": {name: log_log_slope(sizes, times) for name, times in medians.items()},
        "ratios": [ratio(timing, *(f"{name}, {size}" for name in NAMES)) for size in sizes],
        "timing": timing,
        "looser": [sized.looser for sized in contests.values()],
        "settings": curve,
    }


def tasks(settings: dict, places: Places) -> dict[str, Task]:
    """Return one task per curve."""
    return tasks_by_name(measure, settings["curves"], settings)


def problems(rows: list[dict]) -> list[str]:
    """Return the sizes whose times are not comparable.

    See :func:`benchmarks.speed.looser_bounds`.
    """
    return looser_bounds(
        (f"{row['key']} at {size}", looser)
        for row in rows
        for size, looser in zip(row["sizes"], row["looser"])
    )


def figures(rows: list[dict]) -> dict[str, Figure]:
    """Return the ratios at the largest sizes.

    Slopes of few short times vary too much to be compared.
    """
    return {
        f"{row['key']} at {row['sizes'][-1]}": Figure(row["ratios"][-1]["median"], TOLERANCE)
        for row in rows
    }


def tables(rows: list[dict]) -> dict[str, list[dict]]:
    """Return the ratios by size, and the slopes."""
    return {
        "Ours to two host calls, by size": [
            {
                "curve": row["key"],
                "size": size,
                "ratio": ratio["median"],
                "from": ratio["quartiles"][0],
                "to": ratio["quartiles"][1],
            }
            for row in rows
            for size, ratio in zip(row["sizes"], row["ratios"])
        ],
        "Log-log slopes of time": [{"curve": row["key"], **row["slopes"]} for row in rows],
    }
