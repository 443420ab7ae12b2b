"""A training run as it is remembered: built anew or restored, and saved between any two steps."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path

from ..errors import CheckpointError, LirpaMultinormError
from ..losses import build_loss
from ..models import shi_init_
from ..utils import distributed
from ..utils.randomness import seed_generators
from .averaging import WeightAverage
from .checkpoint import initial_weights, load_checkpoint, load_weights, save_checkpoint
from .config import describe_sets
from .partial import PartialEpoch, put_back, snapshot
from .run_folder import CHECKPOINT, RunFolder, digest
from .runlog import RunLog
from .step import TrainingStep


class Run:
    """A run between two steps.

    Everything that its checkpoint must hold, and the way there and back.

    The arguments are those of :func:`lirpa_multinorm.training.train`.
    """

    def __init__(
        self,
        spec,
        data,
        perturbations,
        config,
        output,
        device,
        initial,
        resume,
        overwrite=False,
        extend=False,
    ) -> None:
        seed_generators(config.seed, device)
        self.model = spec.build()
        if initial is not None:
            initial_weights(initial, self.model)
        elif config.initialization == "shi":
            shi_init_(self.model)
        initial_sha256 = None if initial is None else digest(*self.model.state_dict().values())
        self.model.to(device)
        loss = build_loss(config.loss, perturbations, **config.loss_options)
        self.step = TrainingStep(self.model, loss, perturbations, config)
        self.steps = self.step.steps_per_epoch(data)
        self.spec, self.perturbations, self.config, self.device = (
            spec,
            list(perturbations),
            config,
            device,
        )
        self.data = dataclasses.replace(
            data, x_train=data.x_train.to(device), y_train=data.y_train.to(device)
        )
        self.origin = {
            "data": data.name,
            "n_train": len(data.x_train),
            "data_sha256": digest(data.x_train, data.y_train),
            "initial_sha256": initial_sha256,
        }
        self.average, self.done, self.partial = WeightAverage(), 0, None
        self.unaveraged, self.interruption, self.log = None, None, None
        self.kept, self.before = None, None
        settings = {
            "train": config.to_dict(),
            "model": spec.to_dict(),
            "perturbations": describe_sets(perturbations),
            **self.origin,
        }
        self.folder = (
            None if output is None else RunFolder(Path(output), settings, resume, overwrite, extend)
        )
        if resume and self.folder is not None:
            self._restore()
        if distributed.is_active():
            partial = None if self.partial is None else (self.partial.natural, self.partial.steps)
            distributed.check_same(
                f"{settings} {self.done} {partial} {digest(*self.model.state_dict().values())}",
                "settings, data, initial weights or the checkpoint to resume",
            )
        if self.folder is not None and distributed.rank() == 0:
            self._begin()

    # --- the folder -------------------------------------------------------------------------------

    def _begin(self) -> None:
        if self.folder.continuations and self.folder.continuations[-1]["from_epoch"] == self.done:
            self.save()  # first of all: the checkpoint is what the next start believes
        self.folder.begin(self.device)
        self.log = RunLog(self.folder.path)
        self.log.keep(self.done)

    def _restore(self) -> None:
        """Go on from the folder's checkpoint, if it is of the same run."""
        path, described = self.folder.path / CHECKPOINT, self.folder.described()
        if not path.exists():
            self.folder.check(described)
            return
        loaded = load_checkpoint(path)
        origin, state = dict(loaded.run["origin"]), loaded.run["state"]
        run = origin.pop("run", {})
        self.folder.check(
            {
                "train": loaded.config.to_dict(),
                "model": loaded.spec.to_dict(),
                "perturbations": describe_sets(loaded.perturbations),
                **origin,
            }
        )
        self.folder.take_over(run, described)
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
        self.folder.note_extension(loaded.config.epochs, from_epoch=self.done)
        self.kept = self._position(path)

    def _put_state(self, state: dict) -> None:
        self.step.load_state_dict(state["step"])
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
        """Replace the checkpoint by one of this moment.

        The first of several processes does so for all.
        """
        if self.folder is None:
            return
        path = self.folder.path / CHECKPOINT
        if not distributed.rank():
            self._write(path)
        self.kept = self._position(path)

    def _write(self, path: Path) -> None:
        """Write the checkpoint.

        Its network is the certified one also where a natural phase has begun.
        """
        partial = None if self.partial is None else self.partial.state_dict()
        natural = (
            snapshot(self.model) if self.partial is not None and self.partial.natural else None
        )
        state = {
            "step": self.step.state_dict(),
            "average": self.average.state_dict(),
            "partial": partial,
            "natural": natural,
            "unaveraged": self.unaveraged,
        }
        run = {**self.folder.identity, "continuations": self.folder.continuations}
        if natural is not None:
            put_back(self.model, self.partial.certified)
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
        if self.log is not None:
            self.log.close()
