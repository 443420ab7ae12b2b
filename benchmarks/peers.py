"""Training beside CTRAIN: the same network, images, epochs and cascade, its schedule and ours.

    python -m benchmarks.run peers --ctrain DIR --data-dir DATA

DIR is a folder with ``pip install --no-deps --target DIR ctrain==0.6.1`` and what that imports
(onnx2pytorch, onnxruntime, onnxoptimizer, skl2onnx, gurobipy, psutil, sortedcontainers, pandas); it
needs auto_LiRPA 0.7. Its training functions are called as its wrappers call them, with their
defaults unless the configuration says otherwise; the wrappers themselves want a hyperparameter
optimiser that has no part in training.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import importlib.util
import io
import sys
import time
from functools import partial
from typing import Callable

import torch
from torch import Tensor, nn

from lirpa_multinorm import CertifySettings, PerturbationLinf, certify, host
from lirpa_multinorm.certification import METHODS
from lirpa_multinorm.data import ImageData, load, to_unit
from lirpa_multinorm.errors import InvalidArgumentError
from lirpa_multinorm.training import TrainConfig, train
from lirpa_multinorm.training.config import ModelSpec

from .common import CLASSES
from .run import Places, Task

#: What CTRAIN's wrappers give to its training functions, by method.
DEFAULTS = {
    "sabr": {
        "subselection_ratio": 0.2,
        "pgd_steps": 8,
        "pgd_step_size": 0.5,
        "pgd_restarts": 1,
        "pgd_early_stopping": False,
        "pgd_decay_checkpoints": (4, 7),
        "pgd_decay_factor": 0.1,
    },
    "mtl_ibp": {
        "alpha": 0.5,
        "pgd_n_steps": 1,
        "pgd_step_size": 10,
        "pgd_restarts": 1,
        "pgd_early_stopping": False,
        "pgd_decay_checkpoints": (),
        "pgd_decay_factor": 0.1,
    },
}
COMMON = {
    "gradient_clip": 10,
    "l1_regularisation_weight": 1e-6,
    "shi_regularisation_weight": 0.5,
    "shi_reg_decay": True,
}


class _Loader:
    """Shuffled whole batches, with what CTRAIN asks of a loader."""

    normalised = False
    mean, std = torch.zeros(1), torch.ones(1)
    min, max = torch.zeros(1, 1, 1), torch.ones(1, 1, 1)

    def __init__(self, x: Tensor, y: Tensor, batch: int, seed: int) -> None:
        self._x, self._y, self._batch, self._generator = (
            x,
            y,
            batch,
            torch.Generator().manual_seed(seed),
        )

    def __len__(self) -> int:
        return len(self._x) // self._batch

    def __iter__(self):
        order = torch.randperm(len(self._x), generator=self._generator)
        return (
            (self._x[rows], self._y[rows])
            for rows in order[: len(self) * self._batch].split(self._batch)
        )


def by_ctrain(
    spec: ModelSpec, data: ImageData, settings: dict, method: str, options: dict, places: Places
) -> nn.Module:
    """Train by a function of CTRAIN's.

    Args:
        spec: The network.
        data: Training images.
        settings: "eps", "epochs", "batch", "seed", "learning_rate".
        method: "sabr" or "mtl_ibp".
        options: "warm_up" and "ramp_up" in epochs, "milestones" of the learning rate, and arguments
            that differ from :data:`DEFAULTS`.
        places: Where CTRAIN is.
    """
    function = training_function(method, places)
    torch.manual_seed(settings["seed"])
    model, options = spec.build(), dict(options)
    warm_up, ramp_up, milestones = (
        options.pop(name) for name in ("warm_up", "ramp_up", "milestones")
    )
    hardened = hardened_model(model, spec)
    optimizer = torch.optim.Adam(hardened.parameters(), lr=settings["learning_rate"])
    loader = _Loader(
        to_unit(data.x_train), data.y_train.long(), settings["batch"], settings["seed"]
    )
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        function(
            original_model=model,
            hardened_model=hardened,
            train_loader=loader,
            num_epochs=settings["epochs"],
            eps=settings["eps"],
            eps_schedule=(warm_up, ramp_up),
            optimizer=optimizer,
            n_classes=CLASSES,
            lr_scheduler=torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, gamma=0.2),
            results_path=None,
            device="cpu",
            **{**COMMON, **DEFAULTS[method], **options},
        )
    trained = spec.build()
    trained.load_state_dict(dict(zip(trained.state_dict(), hardened.state_dict().values())))
    return trained


def training_function(method: str, places: Places) -> Callable[..., object]:
    """Return CTRAIN's training function of a method.

    Raises:
        InvalidArgumentError: The host is of a version that CTRAIN does not work with.
    """
    if str(places.ctrain) not in sys.path:
        sys.path.append(
            str(places.ctrain)
        )  # behind all else, so that none of its neighbours is taken for ours
    if importlib.util.find_spec("auto_LiRPA.operators.relu") is None:
        raise InvalidArgumentError(
            f"ctrain={str(places.ctrain)!r}: CTRAIN needs auto_LiRPA 0.7, and this is "
            f"{host.version}; put a checkout of it on PYTHONPATH"
        )
    module = importlib.import_module(f"CTRAIN.train.certified.{method}")
    return getattr(module, f"{method}_train_model")


def hardened_model(model: nn.Module, spec: ModelSpec) -> host.HostModule:
    """Return the host's module of a network, as CTRAIN's wrappers make it."""
    with host.tracing():
        return host.HostModule(
            model.eval(),
            torch.zeros(1, *spec.in_shape),
            device="cpu",
            bound_opts=dict(host.DEFAULT_OPTIONS, conv_mode="patches", relu="adaptive"),
        )


def compare(settings: dict, row: dict, places: Places) -> dict:
    """Train one network, by CTRAIN or by this package, and certify it by our cascade."""
    data = load(settings["data"], data_dir=places.data_dir)
    order = torch.randperm(len(data.x_train), generator=torch.Generator().manual_seed(0))[
        : settings["n_train"]
    ]
    data = dataclasses.replace(data, x_train=data.x_train[order], y_train=data.y_train[order])
    spec = ModelSpec(settings["network"], tuple(settings["in_shape"]), CLASSES)
    linf, started = PerturbationLinf(settings["eps"]), time.process_time()
    if "ctrain" in row:
        model = by_ctrain(spec, data, settings, row["ctrain"], row["options"], places)
    else:
        config = TrainConfig(
            **{
                "epochs": settings["epochs"],
                "batch_size": settings["batch"],
                "seed": settings["seed"],
                "learning_rate": settings["learning_rate"],
                "milestones": (),
                **row["train"],
            }
        )
        model = train(spec, data, [linf], config, progress=False)
    seconds = time.process_time() - started
    x, y = to_unit(data.x_test[: settings["n_test"]]), data.y_test[: settings["n_test"]].long()
    how = CertifySettings(settings.get("methods", METHODS))
    summary = certify(model.eval(), x, y, [linf], how).summary()
    return {
        "clean %": 100 * summary["clean"],
        "certified %": 100 * summary["certified_union"],
        "n": summary["n"],
        "CPU seconds": seconds,
        "settings": {**{k: v for k, v in settings.items() if k != "runs"}, **row},
    }


def tasks(settings: dict, places: Places) -> dict[str, Task]:
    """Return one task per training."""
    return {name: partial(compare, settings, row, places) for name, row in settings["runs"].items()}


def tables(rows: list[dict]) -> dict[str, list[dict]]:
    """Return clean and certified accuracy of every training."""
    return {
        "Trainings": [
            {
                "training": row["key"],
                **{name: row[name] for name in ("clean %", "certified %", "n", "CPU seconds")},
            }
            for row in rows
        ]
    }
