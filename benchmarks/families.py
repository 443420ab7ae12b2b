"""Families of certified networks side by side: the same images and sets for each.

    python -m benchmarks.run families_digits

A family is a network that bounds are propagated through (CURE and its relatives), one that is
certified by the constant of its layers (LiResNet with EMMA for l_2, l_inf-distance nets for l_inf),
or any other that this package trains. A network is trained on the spot, or it is a training run, or
one in ``networks/``; then its own log tells what an epoch took, on whatever machine that was. All
have the cascade of the settings, but for a family with "methods" of its own.
"""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from lirpa_multinorm import CertifySettings, certify
from lirpa_multinorm.certification import METHODS
from lirpa_multinorm.data import ImageData, load, to_unit
from lirpa_multinorm.errors import InvalidArgumentError
from lirpa_multinorm.experiments.settings import config_of, sets_of, spec_of
from lirpa_multinorm.training import load_checkpoint, train

from .run import Places, Task

NETWORKS = Path(__file__).parents[1] / "networks"
SOURCES = ("train", "run", "released")


class Member(NamedTuple):
    """A network of a family.

    Args:
        model: The network, in eval mode.
        epoch_seconds: What an epoch of its training took; NaN where nobody knows.
    """

    model: nn.Module
    epoch_seconds: float


def member(family: dict[str, Any], data: ImageData, places: Places) -> Member:
    """Return the network of a family.

    Args:
        family: "model", "eps" by norm and "train" (settings of a training on the spot), or "run" (a
            folder in places.runs), or "released" (a name in ``networks/``).
        data: The images to train on.
        places: Where runs are.

    Raises:
        InvalidArgumentError: The family has none of these, or several.
    """
    given = [name for name in SOURCES if name in family]
    if len(given) != 1:
        raise InvalidArgumentError(
            f"family={sorted(family)} must have one of {', '.join(SOURCES)}, which says where its "
            "network comes from"
        )
    if given == ["train"]:
        config = config_of(family["train"])
        start = time.process_time()
        model = train(
            spec_of(family["model"], data), data, sets_of(family["eps"]), config, progress=False
        )
        return Member(model.eval(), (time.process_time() - start) / config.epochs)
    folder = places.runs / family["run"] if given == ["run"] else NETWORKS / family["released"]
    epochs = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    seconds = [epoch["seconds"] for epoch in epochs if "seconds" in epoch]
    model = load_checkpoint(folder / "checkpoint.pt").model.eval()
    return Member(model, statistics.median(seconds) if seconds else math.nan)


def compared(name: str, settings: dict[str, Any], places: Places) -> dict[str, Any]:
    """Certify the network of a family on all sets.

    Args:
        name: The family's name in the settings.
        settings: "data", "eps" by norm, "n", "families", and maybe "n_train" and "methods",
            which a family may have too.
        places: Where data and runs are.
    """
    data = load(settings["data"], data_dir=places.data_dir, download=False)
    first = settings.get("n_train")
    train_part = dataclasses.replace(
        data, x_train=data.x_train[:first], y_train=data.y_train[:first]
    )
    family = settings["families"][name]
    model, epoch_seconds = member(family, train_part, places)
    x, y = to_unit(data.x_test[: settings["n"]]), data.y_test[: settings["n"]].long()
    methods = family.get("methods", settings.get("methods", METHODS))
    start = time.process_time()
    certificates = certify(model, x, y, sets_of(settings["eps"]), CertifySettings(methods))
    seconds, result = time.process_time() - start, certificates.summary()
    decided = [dict(Counter(method or "open" for method in names)) for names in certificates.method]
    return {
        "family": name,
        "n": len(x),
        "weights": sum(weight.numel() for weight in model.parameters()),
        "clean": result["clean"],
        "certified": dict(zip(settings["eps"], result["certified"])),
        "union": result["certified_union"],
        "attacked": result["attacked_union"],
        "attacked by set": dict(zip(settings["eps"], result["attacked"])),
        "decided by": dict(zip(settings["eps"], decided)),
        "seconds per epoch": round(epoch_seconds, 2),
        "seconds per 1000 certificates": round(1000 * seconds / len(x), 2),
        "threads": torch.get_num_threads(),
    }


def tasks(settings: dict[str, Any], places: Places) -> dict[str, Task]:
    """Return a task per family."""
    return {name: partial(compared, name, settings, places) for name in settings["families"]}
