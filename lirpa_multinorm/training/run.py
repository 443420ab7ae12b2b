"""A training run: built anew or restored from its folder, and saved between any two steps."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..data import ImageData
from ..errors import CheckpointError, LirpaMultinormError, OutputFolderError
from ..losses import build_loss
from ..models import shi_init_
from ..perturbations.described import AnySet
from ..utils import distributed
from ..utils.randomness import seed_generators
from .averaging import NO_AVERAGE, WeightAverage
from .checkpoint import initial_weights, load_checkpoint, load_weights, save_checkpoint
from .config import ModelSpec, TrainConfig, describe_sets
from .interrupt import Interruption
from .partial import PartialEpoch, State, put_back, snapshot
from .run_folder import CHECKPOINT, RunFolder, digest
from .runlog import RunLog
from .step import TrainingStep


class Run:
    """A run between two steps: what its checkpoint holds, and the way there and back.

    The arguments are those of :func:`lirpa_multinorm.training.train`.
    """

    #: Epochs done, and the state of the one that is going on.
    done: int = 0
    partial: PartialEpoch | None = None
    #: Weights before averaging, from where more epochs go on.
    unaveraged: State | None = None
    #: Means of the step before.
    before: dict[str, Tensor] | None = None
    #: The checkpoint on disk, in words.
    kept: str | None = None
    log: RunLog | None = None
    interruption: Interruption | None = None

    def __init__(
        self,
        spec: ModelSpec,
        data: ImageData,
        perturbations: Sequence[AnySet],
        config: TrainConfig,
        output: str | Path | None,
        device: str,
        initial: str | Path | None,
        resume: bool,
        overwrite: bool = False,
        extend: bool = False,
    ) -> None:
        seed_generators(config.seed, device)
        self.spec, self.config, self.device = spec, config, device
        self.perturbations = list(perturbations)
        self.model, initial_sha256 = _initial_model(spec, config, initial)
        self.model.to(device)
        self.average = None if config.average_from is None else WeightAverage(self.model)
        loss = build_loss(config.loss, perturbations, **config.loss_options)
        self.step = TrainingStep(self.model, loss, perturbations, config)
        self.steps = self.step.steps_per_epoch(data)
        self.data = dataclasses.replace(
            data, x_train=data.x_train.to(device), y_train=data.y_train.to(device)
        )
        self.origin = {
            "data": data.name,
            "n_train": len(data.x_train),
            "data_sha256": digest(data.x_train, data.y_train),
            "initial_sha256": initial_sha256,
        }
        self.folder: RunFolder | None = None
        if output is not None:
            self.folder = RunFolder(Path(output), self._settings(), resume, overwrite, extend)
            if resume:
                self._restore(self.folder)
        self._check_processes()
        if self.folder is not None and distributed.rank() == 0:
            self._begin(self.folder)

    def _settings(self) -> dict[str, Any]:
        """Return what the run is made of, as plain data."""
        return {
            "train": self.config.to_dict(),
            "model": self.spec.to_dict(),
            "perturbations": describe_sets(self.perturbations),
            **self.origin,
        }

    def _check_processes(self) -> None:
        """Raise InvalidArgumentError unless all processes are at the same point of the same run."""
        if not distributed.is_active():
            return
        partial = None if self.partial is None else (self.partial.natural, self.partial.steps)
        weights = digest(*self.model.state_dict().values())
        distributed.check_same(
            f"{self._settings()} {self.done} {partial} {weights}",
            "settings, data, initial weights or the checkpoint to resume",
        )

    # --- the folder -------------------------------------------------------------------------------

    def _begin(self, folder: RunFolder) -> None:
        """Write the first files of the run, or of its continuation."""
        if folder.continuations and folder.continuations[-1]["from_epoch"] == self.done:
            self.save()  # first of all: the checkpoint is what the next start believes
        folder.begin(self.device)
        self.log = RunLog(folder.path)
        self.log.keep(self.done)

    def _restore(self, folder: RunFolder) -> None:
        """Go on from the folder's checkpoint, if it is of the same run."""
        path, described = folder.path / CHECKPOINT, folder.described()
        if not path.exists():
            folder.check(described)
            return
        loaded = load_checkpoint(path)
        origin, state = dict(loaded.run["origin"]), loaded.run["state"]
        run = origin.pop("run", {})
        folder.check(
            {
                "train": loaded.config.to_dict(),
                "model": loaded.spec.to_dict(),
                "perturbations": describe_sets(loaded.perturbations),
                **origin,
            }
        )
        self._check_extension(loaded.config.epochs)
        folder.take_over(run, described)
        load_weights(self.model, loaded.model.state_dict(), path)
        self.done = loaded.epoch
        if state is None and self.done < self.config.epochs:
            raise CheckpointError(
                f"checkpoint {path} holds no state to resume from: it is the end of a run of an"
                " older version; start again with --overwrite (overwrite=True), or use it as"
                " initial weights"
            )
        if state is not None:
            self._put_state(state)
        folder.note_extension(loaded.config.epochs, from_epoch=self.done)
        self.kept = self._position(path)

    def _check_extension(self, epochs: int) -> None:
        """Raise OutputFolderError where more epochs would have changed the steps already taken."""
        loss = self.step.loss
        whole = self.config.adam.cosine or (loss is not None and loss.follows_run)
        if whole and epochs < self.config.epochs:
            raise OutputFolderError(
                f"extend: the run's learning rate or loss has followed its {epochs} epochs from the"
                " first step on, and those of a longer run would have been others; train anew, or"
                " from its checkpoint as initial weights"
            )

    def _put_state(self, state: dict) -> None:
        """Continue from the state in a checkpoint."""
        self.step.load_state_dict(state["step"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        partial, self.unaveraged = state.get("partial"), state.get("unaveraged")
        if partial is not None:
            self.partial = PartialEpoch.from_state(partial, self.device)
            self.step.order.set_state(self.partial.order)
            if self.partial.natural:
                put_back(self.model, state["natural"])
        if self.unaveraged is not None and self.done < self.config.epochs:
            put_back(self.model, self.unaveraged)
            self.unaveraged = None

    def save(self) -> None:
        """Replace the checkpoint by the present state; of several processes the first does so."""
        if self.folder is None:
            return
        path = self.folder.path / CHECKPOINT
        if not distributed.rank():
            self._write(self.folder, path)
        self.kept = self._position(path)

    def _write(self, folder: RunFolder, path: Path) -> None:
        """Write the checkpoint, with the certified weights also where a natural phase has begun."""
        partial = self.partial
        certified = None if partial is None else partial.certified
        natural = None if certified is None else snapshot(self.model)
        state = {
            "step": self.step.state_dict(),
            "average": NO_AVERAGE if self.average is None else self.average.state_dict(),
            "partial": None if partial is None else partial.state_dict(),
            "natural": natural,
            "unaveraged": self.unaveraged,
        }
        run = {**folder.identity, "continuations": folder.continuations}
        if certified is not None:
            put_back(self.model, certified)
        save_checkpoint(
            path,
            self.model,
            self.spec,
            self.perturbations,
            self.config,
            self.done,
            {**self.origin, "run": run},
            state,
        )
        if natural is not None:
            put_back(self.model, natural)

    def _position(self, path: Path) -> str:
        """Return a checkpoint's path and the time it was saved at, in words."""
        step = f", step {self.partial.steps} of the next" if self.partial is not None else ""
        return f"{str(path)!r} (epoch {self.done}{step})"

    @contextlib.contextmanager
    def logging(self) -> Iterator[None]:
        """Draw the learning curves at the end, even after an interruption, and close the log."""
        try:
            yield
        except BaseException:
            with contextlib.suppress(LirpaMultinormError):  # the first error is the one to report
                self._close()
            raise
        self._close()

    def _close(self) -> None:
        """Close the log, if there is one."""
        if self.log is not None:
            self.log.close()


def _initial_model(
    spec: ModelSpec, config: TrainConfig, initial: str | Path | None
) -> tuple[nn.Module, str | None]:
    """Return a fresh network with its initial weights, and the SHA-256 of those from a file."""
    model = spec.build()
    if initial is not None:
        initial_weights(initial, model)
        return model, digest(*model.state_dict().values())
    if config.initialization == "shi":
        shi_init_(model)
    return model, None
