"""A trained network and batches of its own training images, for benchmarks of training steps."""

from __future__ import annotations

import copy
import dataclasses
import json
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lirpa_multinorm.data import load, to_unit
from lirpa_multinorm.experiments.settings import sets_of
from lirpa_multinorm.perturbations import PerturbationLpBox
from lirpa_multinorm.training import TrainConfig, load_checkpoint, train
from lirpa_multinorm.training.config import ModelSpec

from .common import CLASSES
from .run import Places

Batch = tuple[Tensor, Tensor]


class TrainedCase(NamedTuple):
    """A trained network with its sets and training images.

    Args:
        model: The network; copy it before it is trained further.
        sets: The l_inf and the l_2 set.
        x: Training images in [0, 1], (n, ...).
        y: Labels, (n,).
        history: How it came about.
    """

    model: nn.Module
    sets: list[PerturbationLpBox]
    x: Tensor
    y: Tensor
    history: dict[str, Any]

    def batches(self, size: int, count: int, device: torch.device) -> list[Batch]:
        """Return the first batches of training images.

        Fewer where there are no more, one at least.
        """
        whole = max(1, min(count, len(self.x) // size))
        return [
            (
                self.x[i * size : (i + 1) * size].to(device),
                self.y[i * size : (i + 1) * size].to(device),
            )
            for i in range(whole)
        ]

    def network(self, device: torch.device) -> nn.Module:
        """Return a copy of the network."""
        return copy.deepcopy(self.model).to(device)


def trained_case(case: dict[str, Any], places: Places) -> TrainedCase:
    """Return a network trained on the spot (the same for the same case), or the network of a run.

    Args:
        case: "data", "n_train" (of shuffled images; all if left out), "eps" by norm, and either
            "network", "in_shape", maybe "options", and "train" (settings of the training), or
            "run": a folder in places.runs.
        places: Where data and runs are.
    """
    return _trained_case(json.dumps(case, sort_keys=True), places)


@cache
def _trained_case(described: str, places: Places) -> TrainedCase:
    case = json.loads(described)
    data, sets = load(case["data"], data_dir=places.data_dir), sets_of(case["eps"])
    order = torch.randperm(len(data.x_train), generator=torch.Generator().manual_seed(0))[
        : case.get("n_train")
    ]
    data = dataclasses.replace(data, x_train=data.x_train[order], y_train=data.y_train[order])
    if "run" in case:
        model = load_checkpoint(places.runs / case["run"] / "checkpoint.pt").model
    else:
        spec = ModelSpec(
            case["network"], tuple(case["in_shape"]), CLASSES, options=case.get("options", {})
        )
        model = train(spec, data, sets, TrainConfig(**case["train"]), progress=False)
    x, y = to_unit(data.x_train), data.y_train.long()
    with torch.no_grad():
        right = float((model.eval()(x[:1000]).argmax(1) == y[:1000]).float().mean())
    return TrainedCase(model, sets, x, y, {"images": len(x), "accuracy on training images": right})
