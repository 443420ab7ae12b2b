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
from ..perturbations import PerturbationLpBox, as_perturbations
from ..utils import distributed
from ..utils.files import ensure_writable
from ..utils.randomness import generators_kept
from .averaging import recompute_statistics
from .config import ModelSpec, TrainConfig
from .diagnosis import broken_terms, remedy
from .interrupt import Interruption
from .partial import PartialEpoch, put_back, snapshot
from .preflight import check_run, check_space, weight_bytes
from .projection import merge_epochs
from .run import Run
from .run_folder import check_choices, occupied
from .step import TrainingStep


def train(
    spec: ModelSpec,
    data: ImageData,
    perturbations: Sequence[PerturbationLpBox],
    config: TrainConfig,
    output: str | Path | None = None,
    device: str = "cpu",
    progress: bool = True,
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
        progress: Whether to show a progress bar.
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
    config, perturbations = config.in_epochs(), as_perturbations(perturbations)
    if output is not None:
        check_space(output, weight_bytes(spec))
    with contextlib.ExitStack() as stack:
        stack.enter_context(generators_kept(device))
        folder = None if output is None else ensure_writable(output)
        if folder is not None:
            stack.enter_context(occupied(folder))
        run = _Run(
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


class _Run(Run):
    """A run and its epochs."""

    step: TrainingStep

    # --- epochs -----------------------------------------------------------------------------------

    def bar(self, wanted: bool) -> tqdm:
        """Return the progress bar."""
        behind = (
            0
            if self.partial is None
            else self.steps
            if self.partial.natural
            else self.partial.steps
        )
        return tqdm(
            total=self.config.epochs * self.steps,
            initial=self.done * self.steps + behind,
            desc=self.config.loss,
            disable=not (wanted and distributed.rank() == 0),
            unit="step",
        )

    def epoch(self, bar: tqdm) -> None:
        """Train one epoch, or what is left of it, log it and save."""
        config = self.config
        self.step.start_epoch(self.done)
        partial = self.partial = self.partial or self._begun()
        if not partial.natural:
            line = self._certified_epoch(bar)
            if partial.start is not None:
                partial.begin_natural(line, self.step.order.get_state(), snapshot(self.model))
                put_back(self.model, partial.start)
                self.step.start_natural(partial.moments)
        if partial.natural:
            line = {**partial.line, **self._projected_epoch()}
        self._check_weights()
        self.done, self.partial = self.done + 1, None
        if config.precise_bn:
            self._recompute_statistics()
        if config.average_from is not None and self.done > config.average_from:
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
        if self.log is not None:
            # The log first: a line whose epoch the checkpoint does not know is dropped on resuming.
            self.log.append({**line, "run_sha256": self.folder.identity["run_sha256"]})
        self.save()
        self._stop_if_asked(saved=True)

    def _begun(self) -> PartialEpoch:
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
        images = center_crop(
            self.data.x_train, *self.data.in_shape[1:]
        )  # larger where augmentation crops
        recompute_statistics(self.model, images, self.config.batch_size)

    def _certified_epoch(self, bar: tqdm) -> dict[str, float]:
        for x, y in self.step.batches(self.data, self.partial.steps):
            self._take(
                lambda x, y: self.step(x, y, self.done + self.partial.steps / self.steps), x, y
            )
            bar.update()
            if self.partial.steps % 10 == 1 and not bar.disable:
                means = self.partial.log.means().items()
                bar.set_postfix(
                    epoch=self.done + 1,
                    **{name: f"{value:.3f}" for name, value in means},
                    refresh=False,
                )
        return self.partial.log.means()

    def _projected_epoch(self) -> dict[str, float]:
        """Train a natural epoch from the same weights and merge the two.

        The cost is logged apart.
        """
        partial, settings = self.partial, self.config.projection
        for x, y in self.step.batches(self.data, partial.steps):
            self._take(self.step.natural_step, x, y)
        self.step.end_natural()
        weights, start = {name for name, _ in self.model.named_parameters()}, partial.start
        merged = [
            name
            for name, value in start.items()
            if name in weights
            or (settings.statistics == "mixed" and value.is_floating_point() and value.ndim)
        ]
        natural, certified = snapshot(self.model), partial.certified
        put_back(
            self.model,
            {
                **certified,
                **merge_epochs(
                    {name: start[name] for name in merged}, natural, certified, settings.beta
                ),
            },
        )
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
            where = "in the natural epoch: " if self.partial.natural else ""
            raise self._diverged(f"{where}{error}", x, y) from error
        self.partial.log.add(len(x), values)
        self.partial.steps += 1
        self.before = values
        self._stop_if_asked()

    def _stop_if_asked(self, saved: bool = False) -> None:
        if self.interruption is None or not distributed.in_any(self.interruption.asked):
            return
        if not saved:
            self._check_weights()
            self.save()
        raise KeyboardInterrupt(
            f"the checkpoint {self.kept} is saved; go on with the same command and --resume "
            "(resume=True)"
        )

    def _diverged(
        self, what: str, x: Tensor | None = None, y: Tensor | None = None
    ) -> NaNBoundError:
        step = self.done * self.steps + self.partial.steps + (x is not None)
        sets = ""
        if (
            x is not None and not self.partial.natural and not distributed.is_active()
        ):  # others may not take part
            scale = self.config.schedule.eps_scale(self.done + self.partial.steps / self.steps)
            sets = broken_terms(self.step.bounded, self.step.loss, x, y, scale)
        before = (
            ""
            if self.before is None
            else "; the step before had "
            + ", ".join(f"{name} {float(value):.4g}" for name, value in self.before.items())
        )
        kept = (
            "no checkpoint was written yet"
            if self.kept is None
            else f"the last good checkpoint is {self.kept}"
        )
        return NaNBoundError(
            f"training diverged in step {step} (epoch {self.done + 1}): {what}{sets}{before};"
            f" {kept}. {remedy(what, self.data.x_train)}"
        )

    def _check_weights(self) -> None:
        """Raise NaNBoundError where the last update broke a weight, which no loss has seen yet."""
        for name, value in self.model.state_dict().items():
            if not bool(torch.isfinite(value).all()):
                raise self._diverged(f"the weights of {name} are NaN or infinite")
