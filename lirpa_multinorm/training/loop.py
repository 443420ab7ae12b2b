"""The training loop: thin, seeded, logged, safe to interrupt and to resume."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import time
from pathlib import Path
from typing import Dict, Iterator, Optional, Sequence, Union

import torch
from torch import Tensor, nn
from tqdm import tqdm

from .. import distributed
from ..data import ImageData, center_crop
from ..errors import CheckpointError, InvalidArgumentError, LirpaMultinormError, NaNBoundError
from ..environment import environment
from ..io import ensure_writable, plain, remove_leftovers, write_json, writing
from ..losses import build_loss
from ..models import shi_init_
from ..perturbations import PerturbationLpBox, as_perturbations
from .averaging import WeightAverage, recompute_statistics
from .checkpoint import initial_weights, load_checkpoint, load_weights, save_checkpoint
from .config import ModelSpec, TrainConfig, describe_sets
from .preflight import check_run, check_space, weight_bytes
from .projection import merge_epochs
from .runlog import RunLog
from .step import EpochLog, TrainingStep

CHECKPOINT = "checkpoint.pt"


def train(spec: ModelSpec, data: ImageData, perturbations: Sequence[PerturbationLpBox], config: TrainConfig,
          output: Optional[Union[str, Path]] = None, device: str = "cpu", progress: bool = True,
          initial: Optional[Union[str, Path]] = None, resume: bool = False) -> nn.Module:
    """Train a network, from scratch or from given weights.

    Every epoch appends a line to ``output/log.jsonl`` and replaces ``output/checkpoint.pt``, so an interrupted run
    keeps the last whole epoch; ``resume`` goes on from there and, on a CPU, comes to the same weights bit for bit.
    Started by ``torchrun``, inside :func:`lirpa_multinorm.distributed.process_group`, all processes train together.

    Args:
        spec: The network.
        data: Training images and labels.
        perturbations: The sets, cut with the pixel range [0, 1].
        config: Everything else.
        output: Folder for checkpoint, log, learning curves and configuration; None writes nothing.
        device: Where to train.
        progress: Whether to show a progress bar.
        initial: File of weights to start from (fine-tuning): a checkpoint of this package or a plain state dict.
        resume: Whether to go on with the run in ``output``; starts anew where there is none.

    Returns:
        The trained network, in eval mode.

    Raises:
        OutputFolderError: The folder cannot be written, found before training starts; or the disk is full, and the
            last checkpoint is intact.
        InvalidArgumentError: The settings cannot be used, the data do not fit the network, a batch is larger than the
            training set, or the run to resume has other settings.
        CheckpointError: The initial weights, or the checkpoint to resume, cannot be used.
        NaNBoundError: A loss, bound, gradient or weight became NaN or infinite; says where and in which step. The last
            good checkpoint is intact.
    """
    run = _Run(spec, data, perturbations, config, output, device, initial, resume)
    show = progress and distributed.rank() == 0
    with run.logging(), tqdm(total=config.epochs * run.steps, initial=run.done * run.steps, desc=config.loss,
                             disable=not show, unit="step") as bar:
        while run.done < config.epochs:
            run.epoch(bar)
    distributed.wait_for_all()  # the others may read the checkpoint next
    return run.model.eval()


class _Run:
    """A run between two epochs: what is on disk is what is in memory."""

    def __init__(self, spec, data, perturbations, config, output, device, initial, resume) -> None:
        data = check_run(spec, data, perturbations, config, device, initial)
        config, perturbations = config.in_epochs(), as_perturbations(perturbations)
        if output is not None:
            check_space(output, weight_bytes(spec))
        self.folder = None if output is None else ensure_writable(output)
        torch.manual_seed(config.seed)
        self.model = spec.build()
        if initial is not None:
            initial_weights(initial, self.model)
        elif config.initialization == "shi":
            shi_init_(self.model)
        self.model.to(device)
        loss = build_loss(config.loss, perturbations, **config.loss_options)
        self.step = TrainingStep(self.model, loss, perturbations, config)
        self.steps = self.step.steps_per_epoch(data)
        self.spec, self.perturbations, self.config, self.done = spec, list(perturbations), config, 0
        self.device = device
        self.data = dataclasses.replace(data, x_train=data.x_train.to(device), y_train=data.y_train.to(device))
        self.average = WeightAverage()
        self.origin = {"data": data.name, "n_train": len(data.x_train),
                       "data_sha256": digest(data.x_train, data.y_train),
                       "initial_sha256": None if initial is None else _file_digest(initial)}
        self.log = None
        if resume and self.folder is not None and (self.folder / CHECKPOINT).exists():
            self._restore()
        if distributed.is_active():
            distributed.check_same(f"{self._settings()} {self.done} {digest(*self.model.state_dict().values())}",
                                   "settings, data, initial weights or the checkpoint to resume")
        if self.folder is not None and distributed.rank() == 0:
            self._open_folder()

    # --- the folder ---------------------------------------------------------------------------------------------

    def _open_folder(self) -> None:
        remove_leftovers(self.folder)
        with writing(self.folder / "config.json"):
            write_json(self.folder / "config.json", {**self._settings(), "environment": environment(self.device),
                                                     "processes": distributed.world_size()})
        self.log = RunLog(self.folder)
        if self.done:
            self.log.keep(self.done)

    def _settings(self) -> dict:
        return plain({"train": self.config.to_dict(), "model": self.spec.to_dict(),
                      "perturbations": describe_sets(self.perturbations), **self.origin})

    def _restore(self) -> None:
        """Go on from the folder's checkpoint, if it is of the same run."""
        path = self.folder / CHECKPOINT
        found = load_checkpoint(path)
        theirs = plain({"train": found.config.to_dict(), "model": found.spec.to_dict(),
                        "perturbations": describe_sets(found.perturbations), **found.run["origin"]})
        changes = differences(theirs, self._settings())
        if changes:
            raise InvalidArgumentError(f"resume: the run in {str(self.folder)!r} has other settings: "
                                       f"{'; '.join(changes)}. Give the same ones, or another output folder")
        load_weights(self.model, found.model.state_dict(), path)
        self.done, state = found.epoch, found.run["state"]
        if state is None and self.done < self.config.epochs:
            raise CheckpointError(f"checkpoint {path} holds no state to resume from; start again without resume")
        if state is not None:
            self.step.load_state_dict(state["step"])
            self.average.load_state_dict(state["average"])

    def _save(self, line: Dict[str, float]) -> None:
        if self.log is None:
            return
        over = self.done == self.config.epochs
        state = None if over else {"step": self.step.state_dict(), "average": self.average.state_dict()}
        if self.done == 1:  # not before: until then log and checkpoint of an earlier run stay together
            self.log.keep(0)
        # The log first: a line whose epoch the checkpoint does not know is dropped on resuming.
        self.log.append(line)
        save_checkpoint(self.folder / CHECKPOINT, self.model, self.spec, self.perturbations, self.config, self.done,
                        self.origin, state)

    # --- epochs -------------------------------------------------------------------------------------------------

    def epoch(self, bar: tqdm) -> None:
        """Train one epoch, log it and save."""
        started, config = time.perf_counter(), self.config
        self.step.start_epoch(self.done)
        projected = (config.projection is not None and self.step.loss is not None
                     and config.schedule.eps_scale(self.done) >= 1)
        start = (_snapshot(self.model), self.step.moments()) if projected else None
        line = self._certified_epoch(bar)
        if projected:
            line.update(self._project(*start))
        self._check_weights()
        self.done += 1
        if config.precise_bn:
            self._recompute_statistics()
        if config.average_from is not None and self.done > config.average_from:
            self.average.add(self.model)
            if self.done == config.epochs:
                self.average.apply_to(self.model)
                self._recompute_statistics()
        self._save({"epoch": self.done, **self.step.state(self.done), **line,
                    "seconds": round(time.perf_counter() - started, 3)})

    def _recompute_statistics(self) -> None:
        images = center_crop(self.data.x_train, *self.data.in_shape[1:])  # larger where augmentation crops
        recompute_statistics(self.model, images, self.config.batch_size)

    def _certified_epoch(self, bar: tqdm) -> Dict[str, float]:
        log = EpochLog()
        for index, (x, y) in enumerate(self.step.batches(self.data)):
            try:
                values = self.step(x, y, self.done + index / self.steps)
            except NaNBoundError as error:
                raise self._diverged(error, index) from error
            log.add(len(x), values)
            bar.update()
            if index % 10 == 0 and not bar.disable:
                bar.set_postfix(epoch=self.done + 1, **{name: f"{value:.3f}" for name, value in log.means().items()},
                                refresh=False)
        return log.means()

    def _project(self, start: Dict[str, Tensor], moments: Optional[dict]) -> Dict[str, float]:
        """Train a natural epoch from the same weights and merge the two; the cost is logged apart."""
        started, settings = time.perf_counter(), self.config.projection
        certified = _snapshot(self.model)
        _restore(self.model, start)
        try:
            values = self.step.natural_epoch(self.data, moments)
        except NaNBoundError as error:
            raise self._diverged(NaNBoundError(f"in the natural epoch: {error}"), self.steps - 1) from error
        weights = {name for name, _ in self.model.named_parameters()}
        merged = [name for name, value in start.items() if name in weights
                  or (settings.statistics == "mixed" and value.is_floating_point() and value.ndim)]
        natural = _snapshot(self.model)
        _restore(self.model, {**certified, **merge_epochs({name: start[name] for name in merged}, natural, certified,
                                                          settings.beta)})
        return {"projection_natural_loss": values["natural_loss"],
                "projection_seconds": round(time.perf_counter() - started, 3)}

    def _diverged(self, error: Exception, index: int) -> NaNBoundError:
        kept = "no checkpoint was written yet"
        if self.folder is not None and self.done:
            kept = f"the last good checkpoint is {str(self.folder / CHECKPOINT)!r} (epoch {self.done})"
        return NaNBoundError(f"training diverged in step {self.done * self.steps + index + 1} (epoch {self.done + 1}): "
                             f"{error}; {kept}. Lower learning_rate, anneal longer, or set clip_norm")

    def _check_weights(self) -> None:
        """Raise NaNBoundError where the epoch's last update has broken a weight, which no loss has seen yet."""
        for name, value in self.model.state_dict().items():
            if not bool(torch.isfinite(value).all()):
                raise self._diverged(NaNBoundError(f"the weights of {name} are NaN or infinite"), self.steps - 1)

    @contextlib.contextmanager
    def logging(self) -> Iterator[None]:
        """Draw the learning curves at the end, also of a run that was interrupted, and close the log."""
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


def differences(old: dict, new: dict, place: str = "") -> list:
    """Return "name: old -> new" for every leaf in which two nested dicts differ."""
    found = []
    for name in sorted({**old, **new}, key=str):
        there, here = old.get(name), new.get(name)
        if isinstance(there, dict) and isinstance(here, dict):
            found += differences(there, here, f"{place}{name}.")
        elif there != here:
            found.append(f"{place}{name}: {there!r} -> {here!r}")
    return found


def _snapshot(model: nn.Module) -> Dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


@torch.no_grad()
def _restore(model: nn.Module, state: Dict[str, Tensor]) -> None:
    """Put values back in place, so that optimisers and traces keep their tensors."""
    for name, value in model.state_dict().items():
        value.copy_(state[name])


def digest(*tensors: Tensor) -> str:
    """Return the SHA-256 of some tensors' values."""
    sha = hashlib.sha256()
    for tensor in tensors:
        sha.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return sha.hexdigest()


def _file_digest(path: Union[str, Path]) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
