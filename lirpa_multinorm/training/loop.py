"""The training loop: thin, seeded, logged, safe to interrupt."""

from __future__ import annotations

import time
from pathlib import Path
from typing import List, Optional, Sequence, Union

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from ..bounds import BoundedModule
from ..data import ImageData, augment_cifar, batches
from ..errors import InvalidArgumentError, NaNBoundError
from ..io import append_jsonl, ensure_writable, environment, write_json
from ..losses import MultiNormLoss, build_loss
from ..perturbations import PerturbationLpBox
from .checkpoint import save_checkpoint
from .config import ModelSpec, TrainConfig, describe_sets


class EpochLog:
    """Means over one epoch, weighted by batch size; a value may be missing in some batches."""

    def __init__(self) -> None:
        self.sums, self.counts = {}, {}

    def add(self, size: int, **values: float) -> None:
        """Add a batch's means."""
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + size * float(value)
            self.counts[name] = self.counts.get(name, 0) + size

    def means(self) -> dict:
        """Return the means so far."""
        return {name: total / self.counts[name] for name, total in self.sums.items()}


def train(spec: ModelSpec, data: ImageData, perturbations: Sequence[PerturbationLpBox], config: TrainConfig,
          output: Optional[Union[str, Path]] = None, device: str = "cpu", progress: bool = True) -> nn.Module:
    """Train a network from scratch.

    Every epoch appends a line to ``output/log.jsonl`` and replaces ``output/checkpoint.pt``, so an interrupted run
    keeps the last whole epoch.

    Args:
        spec: The network.
        data: Training images and labels.
        perturbations: The sets, cut with the pixel range [0, 1].
        config: Everything else.
        output: Folder for checkpoint, log and configuration; None writes nothing.
        device: Where to train.
        progress: Whether to show a progress bar.

    Returns:
        The trained network, in eval mode.

    Raises:
        OutputFolderError: The folder cannot be written; found before training starts.
        InvalidArgumentError: The settings cannot be used, or a batch is larger than the training set.
        NaNBoundError: The loss or a weight became NaN or infinite; the checkpoint of the epoch before is intact.
    """
    folder = None if output is None else ensure_writable(output)
    torch.manual_seed(config.seed)
    model = spec.build().to(device)
    loss = build_loss(config.loss, perturbations, **config.loss_options)
    step = TrainingStep(model, loss, perturbations, config)
    steps = step.steps_per_epoch(data)
    if folder is not None:
        write_json(folder / "config.json", {"train": config.to_dict(), "model": spec.to_dict(),
                                            "perturbations": describe_sets(list(perturbations)), "data": data.name,
                                            "n_train": len(data.x_train), "environment": environment(device)})
        (folder / "log.jsonl").unlink(missing_ok=True)
    bar = tqdm(total=config.epochs * steps, desc=config.loss, disable=not progress, unit="step")
    with bar:
        for epoch in range(config.epochs):
            line = _run_epoch(step, data, epoch, device, bar)
            _check_weights(model, epoch)
            if folder is not None:
                append_jsonl(folder / "log.jsonl", line)
                save_checkpoint(folder / "checkpoint.pt", model, spec, perturbations, config, epoch + 1)
    return model.eval()


def _run_epoch(step: "TrainingStep", data: ImageData, epoch: int, device: str, bar: tqdm) -> dict:
    log, started, count = EpochLog(), time.perf_counter(), step.steps_per_epoch(data)
    step.start_epoch(epoch)
    for index, (x, y) in enumerate(step.batches(data)):
        values = step(x.to(device), y.to(device), epoch + index / count)
        log.add(len(x), **values)
        bar.update()
        if index % 10 == 0:
            bar.set_postfix(epoch=epoch + 1, **{name: f"{value:.3f}" for name, value in log.means().items()},
                            refresh=False)
    line = {"epoch": epoch + 1, **step.state(epoch + 1), **log.means(),
            "seconds": round(time.perf_counter() - started, 3)}
    bar.set_postfix(epoch=epoch + 1, **{name: f"{value:.3f}" for name, value in log.means().items()})
    return line


_REMEDY = "lower learning_rate, or anneal longer (the last whole epoch's checkpoint is intact)"


def _check_loss(loss: Tensor, now: float) -> None:
    if not bool(torch.isfinite(loss)):
        raise NaNBoundError(f"the loss became {float(loss)} in epoch {int(now) + 1}; {_REMEDY}")


def _check_weights(model: nn.Module, epoch: int) -> None:
    """Raise NaNBoundError where the epoch's last update has broken a weight, which no loss has seen yet."""
    for name, value in model.state_dict().items():
        if not bool(torch.isfinite(value).all()):
            raise NaNBoundError(f"{name} became NaN or infinite in epoch {epoch + 1}; {_REMEDY}")


class TrainingStep:
    """One optimisation step: clean forward, regions, bounds, loss, update.

    Args:
        model: The network.
        loss: A certified loss, or None for natural training.
        perturbations: The sets.
        config: Settings.
    """

    def __init__(self, model: nn.Module, loss: Optional[MultiNormLoss], perturbations: Sequence[PerturbationLpBox],
                 config: TrainConfig) -> None:
        self.model, self.loss, self.config = model, loss, config
        self.bounded = BoundedModule(model, perturbations=perturbations)
        self.optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate)
        self.order = torch.Generator().manual_seed(config.seed)
        self.starts = torch.Generator().manual_seed(config.seed + 1)

    def steps_per_epoch(self, data: ImageData) -> int:
        """Return the number of whole batches in the training set."""
        count = len(data.x_train) // self.config.batch_size
        if not count:
            raise InvalidArgumentError(f"batch_size={self.config.batch_size} is larger than the {len(data.x_train)} "
                                       "training images; use a smaller one")
        return count

    def batches(self, data: ImageData):
        """Return shuffled whole batches of the training set."""
        return batches(data.x_train, data.y_train, self.config.batch_size, generator=self.order,
                       augment=augment_cifar if self.config.augment else None, drop_last=True)

    def start_epoch(self, epoch: int) -> None:
        """Set the learning rate and training mode."""
        drops = sum(epoch >= milestone for milestone in self.config.milestones)
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * self.config.decay ** drops
        self.bounded.train()

    def state(self, now: float) -> dict:
        """Return learning rate, radius factor and kappa for the log; ``now`` is in epochs."""
        return {"learning_rate": self.optimizer.param_groups[0]["lr"],
                "eps_scale": self.config.schedule.eps_scale(now), "kappa": self.config.schedule.kappa(now)}

    def __call__(self, x: Tensor, y: Tensor, now: float) -> dict:
        """Take one step and return its means; ``now`` is the time in epochs."""
        kappa = 1.0 if self.loss is None else self.config.schedule.kappa(now)
        logits = self.bounded(x)  # also sets the BatchNorm statistics that the bounds use
        natural = F.cross_entropy(logits, y)
        _check_loss(natural, now)  # before the bounds, whose error could not name the epoch
        values = {"natural_loss": natural, "accuracy": (logits.argmax(1) == y).float().mean()}
        total = kappa * natural
        if kappa < 1:
            scale = self.config.schedule.eps_scale(now)
            robust = self.loss(self.bounded, x, y, eps_scale=scale, generator=self.starts)
            values.update(robust_loss=robust.value, **_proved(robust.margins))
            total = total + (1 - kappa) * robust.value
        if self.config.l1:
            total = total + self.config.l1 * sum(p.abs().sum() for p in self.model.parameters())
        _check_loss(total, now)
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        self.optimizer.step()
        return {name: float(value.detach()) for name, value in values.items()}


def _proved(margins: List[Tensor]) -> dict:
    """Share of each branch's examples whose training region is proved by IBP (not a certificate of the set)."""
    return {f"region_proved_{i}": (lower.detach() > 0).all(1).float().mean() for i, lower in enumerate(margins)}
