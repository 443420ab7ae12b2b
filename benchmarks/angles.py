"""The share of images that is certified against rotations, by the largest angle.

python -m benchmarks.run angles
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from lirpa_multinorm import PerturbationGeometric, certify
from lirpa_multinorm.certification import CERTIFIED, FALSIFIED
from lirpa_multinorm.report import line_chart
from lirpa_multinorm.training import load_checkpoint

from .run import Places, Task
from .transforms import NETWORKS, images


def by_angle(name: str, settings: dict, places: Places) -> dict:
    """Certify a network against rotations by growing angles, both ways.

    An image that fails at an angle fails at larger ones, which are not tried then.
    """
    model = load_checkpoint(NETWORKS / name / "checkpoint.pt").model.eval()
    x, y = images(settings["data"], settings["n"], places)
    open_, falsified, certified, left = torch.arange(len(x)), 0, [], []
    for angle in settings["angles"]:
        result = certify(model, x[open_], y[open_], [PerturbationGeometric(rotation=angle)])
        falsified += result.status[0].count(FALSIFIED)
        open_ = open_[[status == CERTIFIED for status in result.status[0]]]
        certified.append(round(len(open_) / len(x), 4))
        left.append(round(1 - falsified / len(x), 4))
    return {
        "network": name,
        "n": len(x),
        "angles": settings["angles"],
        "certified": certified,
        "not broken": left,
    }


def tables(rows: Sequence[dict[str, Any]]) -> dict[str, list[dict]]:
    """Return the certified share by network and angle."""
    return {
        "Certified, by degrees": [
            {
                "network": row["network"],
                **{str(angle): share for angle, share in zip(row["angles"], row["certified"])},
            }
            for row in rows
        ]
    }


def draw(rows: Sequence[dict[str, Any]], stem: str) -> dict[str, Callable[..., Path]]:
    """Return the figure: the certified share against the angle."""
    series = {row["network"]: (row["angles"], row["certified"]) for row in rows}
    title = "Certified against rotations"
    labels = {
        "xlabel": "largest angle in degrees, both ways",
        "ylabel": f"certified share of {rows[0]['n']} images",
    }
    return {f"{stem}.png": partial(line_chart, series, title=title, **labels)}


def tasks(settings: dict, places: Places) -> dict[str, Task]:
    """Return a task per network."""
    return {name: partial(by_angle, name, settings, places) for name in settings["networks"]}
