"""The training loop: thin, seeded, logged, safe to interrupt and to resume."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Callable

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..data import ImageData, center_crop
from ..errors import NaNBoundError
from ..perturbations.described import AnySet, certifiable_sets
from ..utils import distributed
from ..utils.files import ensure_writable
from ..utils.randomness import generators_kept
from .averaging import recompute_statistics
from .config import ModelSpec, TrainConfig
from .diagnosis import broken_terms, remedy
from .disk_space import check_space, weight_bytes
from .interrupt import Interruption
from .partial import PartialEpoch, put_back, snapshot
from .preflight import check_run
from .projection import merge_epochs
from .run import Run
from .run_folder import check_choices, occupied


def train(
    spec: ModelSpec,
    data: ImageData,
    perturbations: Sequence[AnySet],
    config: TrainConfig,
    output: str | Path | None = None,
    device: str = "cpu",
    progress: bool | str = True,
    initial: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    extend: bool = False,
) -> nn.Module:
    """Train a network, from scratch or from given weights.

    Every epoch appends a line to ``output/log.jsonl`` and replaces ``output/checkpoint.pt``. Ctrl-C
    ends the step, saves a checkpoint in the middle of the epoch and raises KeyboardInterrupt; a
    second one stops at once, and like a kill keeps the checkpoint that was there. ``resume`` goes
    on from the checkpoint and, on a CPU, comes to the same weights bit for bit. Torch's generators
    are afterwards as they were before. Started by ``torchrun``, inside
    :func:`lirpa_multinorm.utils.distributed.process_group`, all processes train together.

    Args:
        spec: The network.
        data: Training images and labels.
        perturbations: The sets, cut with the pixel range [0, 1].
        config: Everything else.
        output: Folder of this run alone, for checkpoint, log, learning curves and configuration;
            None writes nothing.
        device: Where to train.
        progress: Whether to show a progress bar; a string is its title.
        initial: File of weights to start from (fine-tuning): a checkpoint of this package or a
            plain state dict.
        resume: Whether to go on with the run in ``output``; starts anew where there is none.
        overwrite: Whether to remove the run in ``output``, whatever it is, once everything else has
            been checked.
        extend: Whether the run to resume may have been one of fewer epochs. It ends with the
            weights of a run that had ``config.epochs`` from the start; config.json and checkpoint
            record it under "continuations".

    Returns:
        The trained network, in eval mode.

    Raises:
        OutputFolderError: The folder cannot be written or has no room, another process has a run
            there, or it holds a run and neither ``resume`` nor ``overwrite`` is given, or
            ``resume`` and other settings, all found before training starts; or the disk is full,
            and the last checkpoint is intact.
        InvalidArgumentError: The settings cannot be used, the data do not fit the network, or a
            batch is larger than the training set.
        CheckpointError: The initial weights, or the checkpoint to resume, cannot be used.
        NaNBoundError: A loss, bound, gradient or weight became NaN or infinite; says where and in
            which step. The last good checkpoint is intact.
        KeyboardInterrupt: Ctrl-C; its message says what was saved and how to go on.
    """
    check_choices(resume, overwrite, extend)
    data = check_run(spec, data, perturbations, config, device, initial)
    config, perturbations = config.in_epochs(), certifiable_sets(perturbations)
    if output is not None:
        check_space(output, weight_bytes(spec))
    with contextlib.ExitStack() as stack:
        stack.enter_context(generators_kept(device))
        folder = None if output is None else ensure_writable(output)
        if folder is not None:
            stack.enter_context(occupied(folder))
        run = Training(
            spec, data, perturbations, config, folder, device, initial, resume, overwrite, extend
        )
        stack.enter_context(run.logging())
        if folder is not None:
            run.interruption = stack.enter_context(Interruption())
        with run.bar(progress) as bar:
            while run.done < config.epochs:
                run.epoch(bar)
        distributed.wait_for_all()  # the others may read the checkpoint next
    return run.model.eval()


class Training(Run):
    """A run and its epochs."""

    # --- epochs -----------------------------------------------------------------------------------

    def bar(self, wanted: bool | str) -> tqdm:
        """Return the progress bar, which counts the steps of certified phases.

        Args:
            wanted: Whether to show it; a string is its title, the loss is otherwise.
        """
        behind = 0
        if self.partial is not None:
            behind = self.steps if self.partial.natural else self.partial.steps
        return tqdm(
            total=self.config.epochs * self.steps,
            initial=self.done * self.steps + behind,
            desc=wanted if isinstance(wanted, str) else self.config.loss,
            disable=not (wanted and distributed.rank() == 0),
            unit="step",
        )

    def epoch(self, bar: tqdm) -> None:
        """Train an epoch, or the rest of one, log it and save."""
        config = self.config
        self.step.start_epoch(self.done)
        partial = self.partial = self.partial or self._begun()
        if not partial.natural:
            line = self.certified_epoch(bar)
            if partial.start is not None:
                partial.begin_natural(line, self.step.order.get_state(), snapshot(self.model))
                put_back(self.model, partial.start)
                self.step.start_natural(partial.moments)
        if partial.natural:
            line = {**partial.line, **self._projected_epoch()}
        self.check_weights()
        self.done, self.partial = self.done + 1, None
        if self.step.loss is not None and self.done == config.epochs:
            self.step.loss.advance(self.model, 1.0)
        if config.precise_bn:
            self._recompute_statistics()
        if self.average is not None and self.done > (config.average_from or 0):
            self.average.add(self.model)
            if self.done == config.epochs:
                self.unaveraged = snapshot(self.model)  # from where more epochs would go on
                self.average.apply_to(self.model)
                self._recompute_statistics()
        partial.count_time()
        self._finish(
            {
                "epoch": self.done,
                **self.step.state(self.done),
                **line,
                "seconds": round(partial.seconds, 3),
            }
        )

    def _finish(self, line: dict) -> None:
        """Log an epoch and save the checkpoint."""
        if self.log is not None and self.folder is not None:
            # The log first: a line whose epoch the checkpoint does not know is dropped on resuming.
            self.log.append({**line, "run_sha256": self.folder.identity["run_sha256"]})
        self.save()
        self._stop_if_asked(saved=True)

    @property
    def _current(self) -> PartialEpoch:
        """The epoch that is going on."""
        assert self.partial is not None  # epoch() sets it before its first step
        return self.partial

    def _begun(self) -> PartialEpoch:
        """Return a new epoch, which starts at the present weights."""
        projected = (
            self.config.projection is not None
            and self.step.loss is not None
            and self.config.schedule.eps_scale(self.done) >= 1
        )
        return PartialEpoch(
            self.step.order.get_state(),
            snapshot(self.model) if projected else None,
            self.step.moments() if projected else None,
        )

    def _recompute_statistics(self) -> None:
        """Set BatchNorm's statistics to those of the training set."""
        # Training images are larger than the network's inputs where augmentation crops.
        images = center_crop(self.data.x_train, *self.data.in_shape[1:])
        recompute_statistics(self.model, images, self.config.batch_size)

    def certified_epoch(self, bar: tqdm) -> dict[str, float]:
        """Train the certified phase and return its means."""
        partial = self._current
        for x, y in self.step.batches(self.data, partial.steps):
            self._take(lambda x, y: self.step(x, y, self.done + partial.steps / self.steps), x, y)
            bar.update()
            if partial.steps % 10 == 1 and not bar.disable:
                means = {name: f"{value:.3f}" for name, value in partial.log.means().items()}
                bar.set_postfix(epoch=self.done + 1, **means, refresh=False)
        return partial.log.means()

    def _projected_epoch(self) -> dict[str, float]:
        """Train a natural epoch from the same weights, merge both, and return its loss and cost."""
        partial, settings = self._current, self.config.projection
        start, certified = partial.start, partial.certified
        # A natural phase begins only with gradient projection, after the certified phase.
        assert settings is not None and start is not None and certified is not None
        for x, y in self.step.batches(self.data, partial.steps):
            self._take(self.step.natural_step, x, y)
        self.step.end_natural()
        weights = {name for name, _ in self.model.named_parameters()}
        names = [
            name
            for name, value in start.items()
            if name in weights
            or (settings.statistics == "mixed" and value.is_floating_point() and value.ndim)
        ]
        merged = merge_epochs(
            {name: start[name] for name in names}, snapshot(self.model), certified, settings.beta
        )
        put_back(self.model, {**certified, **merged})
        partial.count_time()
        return {
            "projection_natural_loss": partial.log.means()["natural_loss"],
            "projection_seconds": round(partial.natural_seconds, 3),
        }

    # --- steps ------------------------------------------------------------------------------------

    def _take(self, step: Callable, x: Tensor, y: Tensor) -> None:
        """Take a step of the present phase, note it, and stop after it if asked to."""
        try:
            values = step(x, y)
        except NaNBoundError as error:
            phase = "in the natural epoch: " if self._current.natural else ""
            raise self._diverged(f"{phase}{error}", (x, y)) from error
        self._current.log.add(len(x), values)
        self._current.steps += 1
        self.before = values
        self._stop_if_asked()

    def _stop_if_asked(self, saved: bool = False) -> None:
        """Raise KeyboardInterrupt after Ctrl-C in any process, with the checkpoint saved."""
        if self.interruption is None or not distributed.in_any(self.interruption.asked):
            return
        if not saved:
            self.check_weights()
            self.save()
        raise KeyboardInterrupt(
            f"the checkpoint {self.kept} is saved; go on with the same command and --resume "
            "(resume=True)"
        )

    def _diverged(self, location: str, batch: tuple[Tensor, Tensor] | None = None) -> NaNBoundError:
        """Return the error that says where a run became NaN, in which step, and what to change."""
        partial = self._current
        step = self.done * self.steps + partial.steps + (batch is not None)
        sets = before = ""
        # Of several processes the others may not take part.
        if batch is not None and not partial.natural and not distributed.is_active():
            scale = self.config.schedule.eps_scale(self.done + partial.steps / self.steps)
            sets = broken_terms(self.step.bounded, self.step.loss, *batch, scale)
        if self.before is not None:
            means = (f"{name} {float(value):.4g}" for name, value in self.before.items())
            before = f"; the step before had {', '.join(means)}"
        kept = "no checkpoint was written yet"
        if self.kept is not None:
            kept = f"the last good checkpoint is {self.kept}"
        return NaNBoundError(
            f"training diverged in step {step} (epoch {self.done + 1}): {location}{sets}{before};"
            f" {kept}. {remedy(location, self.data.x_train)}"
        )

    def check_weights(self) -> None:
        """Raise NaNBoundError where the last update broke a weight, which no loss shows yet."""
        for name, value in self.model.state_dict().items():
            if not bool(torch.isfinite(value).all()):
                raise self._diverged(f"the weights of {name} are NaN or infinite")
