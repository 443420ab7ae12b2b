"""The l_2 and union columns of CURE's Table 1, as its files bound them, and attacked.

And a sound number beside them.

    python -m benchmarks.run paper_l2_column --runs FOLDER --data-dir DATA

The paper exports a network with its normalisation as the first operators and has alpha-CROWN bound
it for norm 2, without an attack. Here the same is done with networks of the paper's rows, trained
at a size that a CPU affords: auto_LiRPA's own module bounds each one with a normalisation (mean 0,
standard deviation 1: MNIST's) in front and without it, which is the same function. A gradient
attack then looks for a counterexample to every image that is called verified, and this package's
cascade certifies the first images. FOLDER holds the runs that the configuration names;
docs/paper.md says how they are made. The results belong to one version of the host; with another
one the tasks refuse to run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lirpa_multinorm import (
    CertifySettings,
    PerturbationLinf,
    PerturbationLpBox,
    certify,
    host,
    margin_matrix,
)
from lirpa_multinorm.certification import CERTIFIED
from lirpa_multinorm.data import load, to_unit
from lirpa_multinorm.errors import InvalidArgumentError
from lirpa_multinorm.models import Normalize
from lirpa_multinorm.training import load_checkpoint

from .certificates import ATTACKS, falsified
from .common import host_bounds
from .run import Places, Task

INF, ALPHA = float("inf"), "CROWN-Optimized"
AS_TRAINED, IN_FRONT = "convolution", "normalisation"


class Subject(NamedTuple):
    """A network of the paper's rows with the images it gets right.

    Args:
        model: The network, in eval mode, without a normalisation.
        x: Images in [0, 1].
        y: Labels.
        right: Places of those images of x that the network gets right.
        sets: By name, what is certified: "l_inf" and "l_2" are cut with the pixel range, "plain
            l_2" is not.
    """

    model: nn.Module
    x: Tensor
    y: Tensor
    right: Tensor
    sets: dict[str, PerturbationLpBox]


def subject(run: str, settings: dict[str, Any], places: Places) -> Subject:
    """Return a trained network with test images and the sets it was trained for.

    Where the settings give another l_2 radius, the l_2 set has that one.

    Raises:
        InvalidArgumentError: The network normalises its input already, so that it cannot be bounded
            without.
    """
    checkpoint = load_checkpoint(places.runs / run / "checkpoint.pt")
    model = checkpoint.model.eval()
    if any(isinstance(layer, Normalize) for layer in model.modules()):
        raise InvalidArgumentError(
            f"runs: {run} normalises its input; give one that starts with an affine layer"
        )
    data = load(settings["data"], data_dir=places.data_dir, download=False)
    x, y = to_unit(data.x_test[: settings["n"]]), data.y_test[: settings["n"]].long()
    with torch.no_grad():
        right = (model(x).argmax(1) == y).nonzero().squeeze(1)
    eps = {one.norm: one.eps for one in checkpoint.perturbations}
    eps[2.0] = settings.get("eps_2", eps[2.0])
    return Subject(
        model,
        x,
        y,
        right,
        {
            "l_inf": PerturbationLinf(eps[INF]),
            "l_2": PerturbationLpBox(2, eps[2.0]),
            "plain l_2": PerturbationLpBox(2, eps[2.0], clip=None),
        },
    )


class Standardised(nn.Module):
    """A network behind ``(x - 0) / 1``.

    The same function, with the first operators of the paper's exported networks.

    Args:
        model: The network.
        channels: Of its images. The constants have four dimensions, as there.
    """

    def __init__(self, model: nn.Module, channels: int) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.zeros(1, channels, 1, 1))
        self.register_buffer("std", torch.ones(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        return self.model((x - self.mean) / self.std)


def verified(
    model: nn.Module,
    one: Subject,
    images: Tensor,
    norm: float,
    method: str,
    settings: dict[str, Any],
) -> dict[str, Any]:
    """Return the images auto_LiRPA's own module calls verified, or that it bounds none of them."""
    eps, found = one.sets["l_inf" if norm == INF else "l_2"].eps, []
    options = {"optimize_bound_args": {"iteration": settings["iterations"]}}
    for batch in images.split(settings["batch"]):
        C = margin_matrix(one.y[batch], int(model(one.x[:1]).shape[1]))
        result = host_bounds(model, one.x[batch], norm, eps, C, method, **options)
        if result is None:
            return {"tried": len(images), "verified": [], "fails": True}
        found.extend(batch[(result[0] > 0).all(1)].tolist())
    return {"tried": len(images), "verified": found, "fails": False}


def attacked(one: Subject, settings: dict[str, Any]) -> dict[str, list[int]]:
    """Return by set which of the correctly classified images an attack breaks inside it."""
    x, y = one.x[one.right], one.y[one.right]
    broken = {
        name: set(one.right[falsified(one.model, x, y, each, settings["restarts"])].tolist())
        for name, each in one.sets.items()
    }
    broken["plain l_2"] |= broken["l_2"]  # which it contains
    return {name: sorted(images) for name, images in broken.items()}


def by_host(one: Subject, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a cell per form of the network, norm and method, with the images called verified.

    Behind a convolution alpha-CROWN costs seconds an image, so few images have it; l_inf is left to
    CROWN, for the same reason: alpha-CROWN starts from it and verifies at least as much.
    """
    forms = {AS_TRAINED: one.model, IN_FRONT: Standardised(one.model, one.x.shape[1]).eval()}
    wanted = [
        (front, 2.0, method)
        for front in settings.get("first", forms)
        for method in settings["methods"]
    ]
    wanted.append((IN_FRONT, INF, "CROWN"))
    cells = []
    for front, norm, method in wanted:
        images = (
            one.right[: settings["n_alpha"]]
            if (front, method) == (AS_TRAINED, ALPHA)
            else one.right
        )
        cells.append(
            {
                "front": front,
                "set": "l_inf" if norm == INF else "plain l_2",
                "method": method,
                **verified(forms[front], one, images, norm, method, settings),
            }
        )
    return cells


def ours(one: Subject, n: int) -> dict[str, list[int]]:
    """Return by set which of the first images the default cascade certifies.

    Sets are cut with the pixel range.
    """
    sets = {name: each for name, each in one.sets.items() if each.clip is not None}
    found = certify(
        one.model,
        one.x[:n],
        one.y[:n],
        list(sets.values()),
        CertifySettings(attack=None),
        progress=True,
    )
    return {
        name: status.nonzero().squeeze(1).tolist()
        for name, status in zip(sets, found.is_status(CERTIFIED))
    }


def measure(run: str, settings: dict[str, Any], places: Places) -> dict[str, Any]:
    """Bound one network as the paper does and by our cascade, and attack it.

    Raises:
        InvalidArgumentError: The settings are for another version of the host.
    """
    if host.version != settings["host"]:
        raise InvalidArgumentError(
            f"host={settings['host']!r}: auto_LiRPA {host.version} is loaded; install "
            f"{settings['host']}, or run the configuration of {host.version}"
        )
    one = subject(run, settings, places)
    broken = attacked(one, settings)
    config = load_checkpoint(places.runs / run / "checkpoint.pt").config
    return {
        "row": settings["runs"][run],
        "n": len(one.x),
        "n_cascade": settings["n_cascade"],
        "radii": f"({one.sets['l_inf'].eps:g}, {one.sets['l_2'].eps:g})",
        "right": one.right.tolist(),
        "broken": broken,
        "host": by_host(one, settings),
        "ours": ours(one, settings["n_cascade"]),
        "trained": {"loss": config.loss, "epochs": config.epochs, "seed": config.seed},
        "attacks": [dataclasses.asdict(attack) for attack in ATTACKS],
    }


def tasks(settings: dict[str, Any], places: Places) -> dict[str, Task]:
    """Return one task per trained network."""
    return {run: partial(measure, run, settings, places) for run in settings["runs"]}


def problems(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return the certificates that an attack breaks: ours, and the host's behind a convolution."""
    wrong = []
    for row in rows:
        for name, images in row["ours"].items():
            lost = sorted(set(images) & set(row["broken"][name]))
            wrong.extend(
                [f"{row['key']}, {name}: certified images {lost} are falsified"] if lost else []
            )
        for cell in row["host"]:
            lost = _broken(row, cell)
            if lost and cell["front"] == AS_TRAINED:
                wrong.append(
                    f"{row['key']}, {cell['set']}, {cell['method']} of the host behind a"
                    f" {AS_TRAINED}: verified images {lost} are falsified"
                )
    return wrong


def _broken(row: dict[str, Any], cell: dict[str, Any], of: str = "") -> list[int]:
    """Return a cell's verified images that are broken in its own set, or in the set ``of``."""
    return sorted(set(cell["verified"]) & set(row["broken"][of or cell["set"]]))


def tables(rows: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Return the tables of l_2 results, of the exported network's columns and of sound numbers.

    The l_2 results are by form of the network and by method.
    """
    return {
        "l_2 by auto_LiRPA's own module, images": [
            _column(row, cell) for row in rows for cell in row["host"] if cell["set"] == "plain l_2"
        ],
        "Columns with the normalisation first, no attack, % of all images": [
            _reported(row) for row in rows
        ],
        "Sound numbers, % of the first images: certified to not broken": [
            _sound(row) for row in rows
        ],
    }


def _column(row: dict[str, Any], cell: dict[str, Any]) -> dict[str, Any]:
    """Return how many images a cell calls verified, and how many of these an attack breaks."""
    return {
        "radii": row["radii"],
        "network": row["row"],
        "first operator": cell["front"],
        "method": cell["method"],
        "images": cell["tried"],
        "verified": "fails" if cell["fails"] else len(cell["verified"]),
        "of these broken": len(_broken(row, cell)),
        "broken within [0, 1]": len(_broken(row, cell, "l_2")),
    }


def _reported(row: dict[str, Any]) -> dict[str, Any]:
    """Return what the exported network's columns would say, each by the last method not to fail."""
    cells = {
        cell["set"]: cell for cell in row["host"] if cell["front"] == IN_FRONT and not cell["fails"]
    }
    l_inf, l_2 = (set(cells[name]["verified"]) for name in ("l_inf", "plain l_2"))
    shares = {
        "clean": row["right"],
        "l_inf": l_inf,
        "l_2": l_2,
        "union": l_inf & l_2,
        "of the union broken": l_inf & l_2 & {*row["broken"]["plain l_2"], *row["broken"]["l_inf"]},
    }
    return {
        "radii": row["radii"],
        "network": row["row"],
        "l_inf by": cells["l_inf"]["method"],
        "l_2 by": cells["plain l_2"]["method"],
        **{name: 100 * len(images) / row["n"] for name, images in shares.items()},
    }


def _sound(row: dict[str, Any]) -> dict[str, Any]:
    """Return between which shares each accuracy lies.

    What our cascade certifies, and what no attack breaks.
    """
    n = row["n_cascade"]
    low = {name: set(images) for name, images in row["ours"].items()}
    high = {
        name: {image for image in row["right"] if image < n} - set(row["broken"][name])
        for name in low
    }
    for side in (low, high):
        side["union"] = side["l_inf"] & side["l_2"]
    return {
        "radii": row["radii"],
        "network": row["row"],
        "images": n,
        **{name: f"{100 * len(low[name]) / n:g} to {100 * len(high[name]) / n:g}" for name in low},
    }
