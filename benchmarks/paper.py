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
from typing import Any

from torch import Tensor, nn

from lirpa_multinorm import CertifySettings, certify, host, margin_matrix
from lirpa_multinorm.certification import CERTIFIED
from lirpa_multinorm.errors import InvalidArgumentError
from lirpa_multinorm.training import load_checkpoint

from .certificates import ATTACKS, falsified
from .common import host_bounds
from .paper_networks import AS_TRAINED, IN_FRONT, INF, Standardised, Subject, subject
from .paper_tables import broken_images, exported_columns, host_cell, sound_shares
from .run import Places, Task

ALPHA = "CROWN-Optimized"


def verified(
    model: nn.Module,
    network: Subject,
    images: Tensor,
    norm: float,
    method: str,
    settings: dict[str, Any],
) -> dict[str, Any]:
    """Return the images auto_LiRPA's own module calls verified, or that it bounds none of them."""
    eps, images_verified = network.sets["l_inf" if norm == INF else "l_2"].eps, []
    options = {"optimize_bound_args": {"iteration": settings["iterations"]}}
    for batch in images.split(settings["batch"]):
        C = margin_matrix(network.y[batch], int(model(network.x[:1]).shape[1]))
        result = host_bounds(model, network.x[batch], norm, eps, C, method, **options)
        if result is None:
            return {"tried": len(images), "verified": [], "fails": True}
        images_verified.extend(batch[(result[0] > 0).all(1)].tolist())
    return {"tried": len(images), "verified": images_verified, "fails": False}


def attacked(network: Subject, settings: dict[str, Any]) -> dict[str, list[int]]:
    """Return by set which of the correctly classified images an attack breaks inside it."""
    x, y = network.x[network.right], network.y[network.right]
    broken = {
        name: set(network.right[falsified(network.model, x, y, ptb, settings["restarts"])].tolist())
        for name, ptb in network.sets.items()
    }
    broken["plain l_2"] |= broken["l_2"]  # which it contains
    return {name: sorted(images) for name, images in broken.items()}


def by_host(network: Subject, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a cell per form of the network, norm and method, with the images called verified.

    Behind a convolution alpha-CROWN costs seconds an image, so few images have it; l_inf is left to
    CROWN, for the same reason: alpha-CROWN starts from it and verifies at least as much.
    """
    forms = {
        AS_TRAINED: network.model,
        IN_FRONT: Standardised(network.model, network.x.shape[1]).eval(),
    }
    wanted = [
        (front, 2.0, method)
        for front in settings.get("first", forms)
        for method in settings["methods"]
    ]
    wanted.append((IN_FRONT, INF, "CROWN"))
    cells = []
    for front, norm, method in wanted:
        images = (
            network.right[: settings["n_alpha"]]
            if (front, method) == (AS_TRAINED, ALPHA)
            else network.right
        )
        cells.append(
            {
                "front": front,
                "set": "l_inf" if norm == INF else "plain l_2",
                "method": method,
                **verified(forms[front], network, images, norm, method, settings),
            }
        )
    return cells


def ours(network: Subject, n: int) -> dict[str, list[int]]:
    """Return by set which of the first images the default cascade certifies.

    Sets are cut with the pixel range.
    """
    sets = {name: ptb for name, ptb in network.sets.items() if ptb.clip is not None}
    certificates = certify(
        network.model,
        network.x[:n],
        network.y[:n],
        list(sets.values()),
        CertifySettings(attack=None),
        progress=True,
    )
    return {
        name: status.nonzero().squeeze(1).tolist()
        for name, status in zip(sets, certificates.is_status(CERTIFIED))
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
    network = subject(run, settings, places)
    broken = attacked(network, settings)
    config = load_checkpoint(places.runs / run / "checkpoint.pt").config
    return {
        "row": settings["runs"][run],
        "n": len(network.x),
        "n_cascade": settings["n_cascade"],
        "radii": f"({network.sets['l_inf'].eps:g}, {network.sets['l_2'].eps:g})",
        "right": network.right.tolist(),
        "broken": broken,
        "host": by_host(network, settings),
        "ours": ours(network, settings["n_cascade"]),
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
            lost = broken_images(row, cell)
            if lost and cell["front"] == AS_TRAINED:
                wrong.append(
                    f"{row['key']}, {cell['set']}, {cell['method']} of the host behind a"
                    f" {AS_TRAINED}: verified images {lost} are falsified"
                )
    return wrong


def tables(rows: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Return the tables of l_2 results, of the exported network's columns and of sound numbers.

    The l_2 results are by form of the network and by method.
    """
    return {
        "l_2 by auto_LiRPA's own module, images": [
            host_cell(row, cell)
            for row in rows
            for cell in row["host"]
            if cell["set"] == "plain l_2"
        ],
        "Columns with the normalisation first, no attack, % of all images": [
            exported_columns(row) for row in rows
        ],
        "Sound numbers, % of the first images: certified to not broken": [
            sound_shares(row) for row in rows
        ],
    }
