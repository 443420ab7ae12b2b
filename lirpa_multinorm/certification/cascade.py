"""The cascade of union certification.

Attacks come first, then bounds from cheap to tight, each only on the pairs that are still open;
bounds that cost less than an attack precede it.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Sequence
from functools import partial
from typing import Callable

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..attacks import AttackSettings
from ..bounds import BoundedModule
from ..errors import (
    InvalidArgumentError,
    LirpaMultinormError,
    NotEnoughMemoryError,
    UnsupportedModelError,
)
from ..perturbations import PerturbationLpBox
from ..perturbations.described import AnySet, balls_of, certifiable_sets
from ..utils.memory import is_out_of_memory
from ..utils.modes import evaluating, tensor_float_32
from .attacking import ATTACK, attacked_images, broken_pairs
from .checks import check_problem
from .margin_thresholds import MarginThresholds
from .memory import MemoryBudget
from .metrics import ERROR, NOT_RUN, TIMEOUT, Certification
from .open_pairs import OpenPairs
from .progress import Progress
from .settings import CertifySettings
from .stage_list import stages_of
from .stages import Outcome, Stage

clock = time.perf_counter
Done = Callable[[Tensor, Certification], None]


def batches_of(n: int, batch_size: int) -> list[Tensor]:
    """Return groups of consecutive indices.

    They depend on nothing else, so that every run computes the same.
    """
    return list(torch.arange(n, device="cpu").split(batch_size))


class Cascade:
    """A model, images and sets, checked and ready to be certified batch by batch.

    Args: as of :func:`~lirpa_multinorm.certification.certify`.
    """

    def __init__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        perturbations: Sequence[AnySet],
        settings: CertifySettings,
    ) -> None:
        self.sets = certifiable_sets(perturbations)
        self.bounded = BoundedModule(
            model, perturbations=balls_of(self.sets), bound_opts=settings.bound_opts
        )
        self.x, self.y, self.settings = x, y, settings
        self.stages = [
            stage.within(settings.time_limit) for stage in stages_of(settings, self.sets)
        ]
        self.memory = MemoryBudget()
        self._worked: set[str] = set()
        self._unsupported: set[str] = set()
        self._end = math.inf
        self.classes, self._batched = check_problem(self.bounded, x, y, self.sets)
        self._thresholds = MarginThresholds(
            self.bounded, self.classes, settings.rounding, self.sets, x
        )
        self.rounding = self._thresholds.rounding

    def run(self, batches: Sequence[Tensor], done: Done, progress: bool | str = False) -> None:
        """Certify batches in order.

        Args:
            batches: Indices of the images of each.
            done: Called with each batch's indices and its certification, as they come.
            progress: Whether to show a progress bar; a string is its title.
        """
        self._end = clock() + (self.settings.total_time_limit or math.inf)
        messages: dict[int, str] = {}
        with evaluating(self.bounded), tensor_float_32(False), torch.no_grad():
            title = progress if isinstance(progress, str) else "certify"
            hidden = not (progress and batches)
            for images in tqdm(batches, desc=title, disable=hidden, unit="batch"):
                result = self.certify(images)
                messages.update(
                    {int(images[image]): message for image, message in result.errors.items()}
                )
                done(images, result)
        if messages:
            image, message = next(iter(messages.items()))
            warnings.warn(
                f"images with the status {ERROR!r}: {len(messages)}; image {image} because of"
                f" {message}",
                stacklevel=3,
            )

    def certify(self, images: Tensor) -> Certification:
        """Certify some images.

        Where a batch fails, its images are certified singly, so that only those at fault get the
        status "error".
        """
        if self._batched:
            try:
                return self._certify(self._start(images))
            except (LirpaMultinormError, RuntimeError) as error:
                if _is_no_images_fault(error):
                    raise
        return Certification.concatenate(
            [self._certify_single(image) for image in images.split(1)], self.sets
        )

    def _certify_single(self, image: Tensor) -> Certification:
        """Certify an image, given by an index of shape (1,); a failure is its status."""
        state = self._start(image)
        try:
            return self._certify(state)
        except (LirpaMultinormError, RuntimeError) as error:
            if _is_no_images_fault(error):
                raise
            state.close(state.everything(), ERROR)
            state.result.errors[0] = f"{type(error).__name__}: {error}"
        return state.result

    def _start(self, images: Tensor) -> Progress:
        """Return the state of some images before anything is done."""
        index = images.to(self.x.device)
        return Progress(
            self.x[index],
            self.y[index].long(),
            [perturbation.of_images(index, self.x) for perturbation in self.sets],
            images.tolist(),
            self.classes,
        )

    def _certify(self, state: Progress) -> Certification:
        """Run the model, the attacks and the stages on a batch."""
        if clock() >= self._end:
            return state.result
        with state.timed(state.everything(), clock):
            self.memory.run(
                "the model",
                state.everything(),
                lambda images: state.predict(self.bounded.model, images),
            )
        early = [stage for stage in self.stages if stage.precedes_attacks(self.bounded.model)]
        self._bound_all(state, early)
        for number, attack in enumerate(self.settings.attacks):
            self._work(state, ATTACK, partial(self._attack, state, attack, number))
        self._bound_all(state, [stage for stage in self.stages if stage not in early])
        return state.result

    def _bound_all(self, state: Progress, stages: Sequence[Stage]) -> None:
        """Let stages work in order, but those that do not support the model."""
        for stage in stages:
            if stage.name not in self._unsupported:
                self._work(state, stage.name, partial(self._bound, state, stage))

    def _work(self, state: Progress, name: str, work: Callable[[Tensor], None]) -> None:
        """Let an attack or a stage work on the images that are open and within their limit."""
        if clock() >= self._end:
            state.close(state.open_images(), NOT_RUN)
        state.close(state.late(self.settings.time_limit or math.inf), TIMEOUT)
        images = state.open_images()
        if len(images):
            self.memory.run(name, images, work)

    def _attack(self, state: Progress, attack: AttackSettings, number: int, images: Tensor) -> None:
        """Search adversarial examples of open (image, set) pairs."""
        pairs, key = state.open_pairs(images), (self.settings.seed, number)
        if self._is_repeated(attack, number):
            pairs = pairs.of_sets(PerturbationLpBox)
        if not len(pairs):
            return
        with state.timed(torch.cat(list(attacked_images(pairs).values())), clock):
            for broken in broken_pairs(self.bounded.model, pairs, attack, key, state.index):
                state.falsify(*broken, ATTACK)

    def _is_repeated(self, attack: AttackSettings, number: int) -> bool:
        """Return whether an attack adds nothing for sets that are no balls.

        Of the settings those attacks look at the numbers of steps and restarts only.
        """
        earlier = self.settings.attacks[:number]
        return any(
            other.steps >= attack.steps and other.restarts >= attack.restarts for other in earlier
        )

    def _bound(self, state: Progress, stage: Stage, images: Tensor) -> None:
        """Bound the open pairs of some images by a stage, if it supports the model."""
        if stage.name in self._unsupported:  # as the images just before these have shown
            return
        with state.timed(images, clock):
            self._set_thresholds(state, images)
        pairs = state.open_pairs(images).of_sets(stage.takes)
        if not len(pairs):
            return
        limit = self.settings.time_limit or math.inf
        deadline = min(
            self._end, clock() + (limit - state.result.seconds[images.cpu()]).sum().item()
        )
        try:
            with state.timed(pairs.image, clock):
                outcome = self._outcome_of(stage, pairs, deadline)
                state.tighten(pairs, outcome.bounds, stage.name)
                for (set_index, image), point in outcome.broken.items():
                    row = torch.tensor([image], device=self.x.device)
                    state.falsify(set_index, row, point.unsqueeze(0), stage.name)
        except UnsupportedModelError as error:
            if stage.name in self._worked or is_out_of_memory(error):
                raise
            self._unsupported.add(stage.name)
            warnings.warn(
                f"{stage.name} is left out, because it does not support this model: {error}",
                stacklevel=2,
            )
        else:
            self._worked.add(stage.name)

    def _outcome_of(self, stage: Stage, pairs: OpenPairs, deadline: float) -> Outcome:
        """Return what a stage finds of open pairs.

        A model that takes a single input is bounded set by set and image by image.
        """
        if self._batched:
            return stage.work(self.bounded, pairs, deadline)
        groups, bounds, broken = pairs.apart(), [], {}
        for remaining, group in zip(range(len(groups), 0, -1), groups):
            now = clock()
            outcome = stage.work(self.bounded, group, now + (deadline - now) / remaining)
            bounds.append(outcome.bounds)
            broken.update(outcome.broken)
        return Outcome(torch.cat(bounds), broken)

    def _set_thresholds(self, state: Progress, images: Tensor) -> None:
        """Find what margins must exceed for open (image, set) pairs, once for each pair."""
        for set_index in range(len(self.sets)):
            rows = state.unknown_rounding(set_index, images)
            if len(rows):
                perturbation = state.sets[set_index].of_images(rows, state.x)
                needed = self._thresholds.of(state.x[rows], perturbation, state.y[rows])
                state.need(set_index, rows, needed)


def _is_no_images_fault(error: Exception) -> bool:
    """Whether an error is the caller's or the machine's, so that no other image fares better."""
    return isinstance(error, (InvalidArgumentError, NotEnoughMemoryError)) or "CUDA error" in str(
        error
    )
