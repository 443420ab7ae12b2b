"""Union certification.

Attack first, then bounds from cheap to tight, each only on what is still open.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Callable

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..attacks import AttackSettings, RowGenerator, attack_regions, margin_loss
from ..bounds import BoundedModule
from ..bounds.checks import check_input, check_weights
from ..bounds.margins import check_labels
from ..errors import (
    InvalidArgumentError,
    LirpaMultinormError,
    NotEnoughMemoryError,
    UnsupportedModelError,
)
from ..perturbations import PerturbationLpBox, Region, as_perturbations
from ..tracing.trace_check import takes_batches
from ..utils.memory import is_out_of_memory
from ..utils.modes import evaluating, sheltered, tensor_float_32
from ..verifier.rounding.errors import RoundingErrors
from .memory import MemoryBudget
from .metrics import ERROR, NOT_RUN, TIMEOUT, Certification
from .progress import Progress
from .settings import CertifySettings
from .stages import OpenPairs, Stage, stage_of

ATTACK = "PGD"
clock = time.perf_counter
_GENEROUS = (
    1000  # units in the last place that a margin must have where nothing is known of rounding
)
Done = Callable[[Tensor, Certification], None]


@sheltered
def certify(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    perturbations: Sequence[PerturbationLpBox],
    settings: CertifySettings = CertifySettings(),
    progress: bool = False,
) -> Certification:
    """Certify a classifier against every set, and so against their union.

    An image is certified for a set if it is classified correctly and all its margins have a
    positive lower bound on the whole set. A NaN certifies nothing: logits that are NaN count as
    wrong, and an image whose bounds are NaN gets the status "error". To keep records that survive
    an interruption, see :func:`~lirpa_multinorm.certification.certify_to`.

    Args:
        model: Classifier (B, ...) -> (B, K); put in eval mode meanwhile, and each layer back into
            its own.
        x: Images in [0, 1] (or whatever clip the sets have), shape (n, ...).
        y: Labels, shape (n,).
        perturbations: The sets.
        settings: Methods, attacks, batch size and time limits.
        progress: Whether to show a progress bar.

    Returns:
        The status of every (image, set) pair, and who decided it.

    Raises:
        InvalidArgumentError: No images, inputs and labels that do not fit, or weights that are NaN
            or infinite.
        NotEnoughMemoryError: Memory runs out even for one image.

    Source: union certified accuracy as in Jiang and Singh 2024 (CURE), section 5.

    Example:
        >>> from lirpa_multinorm import PerturbationLinf
        >>> model = nn.Sequential(nn.Linear(2, 2, bias=False))
        >>> _ = model[0].weight.data.copy_(torch.eye(2))
        >>> x, y = torch.tensor([[0.9, 0.1], [0.5, 0.45]]), torch.tensor([0, 0])
        >>> result = certify(model, x, y, [PerturbationLinf(eps=0.1)])
        >>> result.summary()["certified_union"], result.summary()["n"]
        (0.5, 2)
    """
    cascade, parts = Cascade(model, x, y, perturbations, settings), []
    cascade.run(
        batches_of(len(x), settings.batch_size), lambda images, part: parts.append(part), progress
    )
    return Certification.concatenate(parts, cascade.sets)


def batches_of(n: int, batch_size: int) -> list[Tensor]:
    """Return groups of consecutive indices.

    They depend on nothing else, so that every run computes the same.
    """
    return list(torch.arange(n).split(batch_size))


class Cascade:
    """A model, images and sets, checked and ready to be certified batch by batch.

    Args: as of :func:`certify`.
    """

    def __init__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        perturbations: Sequence[PerturbationLpBox],
        settings: CertifySettings,
    ) -> None:
        self.sets = as_perturbations(perturbations)
        self.bounded = BoundedModule(model, perturbations=self.sets, bound_opts=settings.bound_opts)
        self.x, self.y, self.settings = x, y, settings
        self.stages = [stage_of(method).within(settings.time_limit) for method in settings.methods]
        self.memory = MemoryBudget()
        self._worked: set[str] = set()
        self._unsupported: set[str] = set()
        self._end = math.inf
        self.classes = self._check()
        self._errors = RoundingErrors(self.bounded, settings.rounding == "probable")
        self.rounding = self._check_rounding()

    def _check(self) -> int:
        """Return the number of classes, or raise InvalidArgumentError."""
        if not len(self.x):
            raise InvalidArgumentError("x is empty; give at least one image")
        check_weights(self.bounded.model)
        with evaluating(self.bounded), torch.no_grad():
            check_input(
                self.x,
                next((one for one in self.bounded.parameters() if one.is_floating_point()), None),
            )
            classes = self.bounded.output_shape(self.x[:1]).numel()
            self._single = not takes_batches(self.bounded.model, self.x)
        if classes < 2:
            raise InvalidArgumentError(f"model has {classes} output; a classifier needs at least 2")
        check_labels(self.y, classes, len(self.x), self.x.device)
        for one in self.sets:
            one.check_input(self.x)
        return classes

    def _check_rounding(self) -> str:
        """Return what certificates withstand.

        The settings' "rounding", or "not bounded" with a warning.
        """
        if self.settings.rounding == "ignored":
            return "ignored"
        try:
            with evaluating(self.bounded), tensor_float_32(False):
                first = torch.zeros(1, dtype=torch.long, device=self.x.device)
                self._errors.of(
                    [Region(self.x[:1], one.of_images(first, self.x)) for one in self.sets]
                )
        except UnsupportedModelError as error:
            if is_out_of_memory(error):
                raise
            warnings.warn(
                f"rounding errors are not bounded ({error}): a certificate then needs a margin of "
                f"{_GENEROUS} units in the last place of the largest output",
                stacklevel=4,
            )
            return "not bounded"
        return self.settings.rounding

    def run(self, batches: Iterable[Tensor], done: Done, progress: bool = False) -> None:
        """Certify batches one after the other.

        Args:
            batches: Indices of the images of each.
            done: Called with each batch's indices and its certification, as they come.
            progress: Whether to show a progress bar.
        """
        self._end, messages = clock() + (self.settings.total_time_limit or math.inf), {}
        with evaluating(self.bounded), tensor_float_32(False), torch.no_grad():
            for images in tqdm(batches, desc="certify", disable=not progress, unit="batch"):
                part = self.certify(images)
                messages.update(
                    {int(images[image]): message for image, message in part.errors.items()}
                )
                done(images, part)
        if messages:
            image, message = next(iter(messages.items()))
            warnings.warn(
                f"images with the status {ERROR!r}: {len(messages)}; image {image} because of"
                f" {message}",
                stacklevel=3,
            )

    def certify(self, images: Tensor) -> Certification:
        """Certify some images.

        Where a batch fails, one by one, so that only those at fault get status "error".
        """
        if not self._single:
            try:
                return self._certify(self._start(images))
            except (LirpaMultinormError, RuntimeError) as error:
                if _is_no_images_fault(error):
                    raise
        return Certification.concatenate(
            [self._certify_one(one) for one in images.split(1)], self.sets
        )

    def _certify_one(self, image: Tensor) -> Certification:
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
        there = images.to(self.x.device)
        return Progress(
            self.x[there],
            self.y[there].long(),
            [one.of_images(there, self.x) for one in self.sets],
            images.tolist(),
            self.classes,
        )

    def _certify(self, state: Progress) -> Certification:
        if clock() >= self._end:
            return state.result
        with state.timed(state.everything(), clock):
            self.memory.run(
                "the model",
                state.everything(),
                lambda part: state.predict(self.bounded.model, part),
            )
        for number, attack in enumerate(self.settings.attacks):
            self._work(state, ATTACK, partial(self._attack, state, attack, number))
        for stage in self.stages:
            if stage.name not in self._unsupported:
                self._work(state, stage.name, partial(self._bound, state, stage))
        return state.result

    def _work(self, state: Progress, name: str, work: Callable[[Tensor], None]) -> None:
        """Let an attack or a stage work on the images that are open and have time left."""
        if clock() >= self._end:
            state.close(state.open_images(), NOT_RUN)
        state.close(state.late(self.settings.time_limit or math.inf), TIMEOUT)
        images = state.open_images()
        if len(images):
            self.memory.run(name, images, work)

    def _attack(self, state: Progress, attack: AttackSettings, number: int, images: Tensor) -> None:
        """Search adversarial examples of open (image, set) pairs."""
        open_pairs = state.open_pairs(images)
        places = [
            (place, open_pairs.image[open_pairs.place == place].unique())
            for place in range(len(self.sets))
        ]
        places = [(place, there) for place, there in places if len(there)]
        regions = [open_pairs.region(place, there) for place, there in places]
        # A start depends on the image, never on what else is in the batch.
        starts = [
            RowGenerator(
                [
                    (self.settings.seed, number, place, state.index[image])
                    for image in there.tolist()
                ]
            )
            for place, there in places
        ]
        with state.timed(torch.cat([there for _, there in places]), clock):
            found = attack_regions(
                self.bounded.model, regions, [state.y[there] for _, there in places], attack, starts
            )
            for (place, there), region, points in zip(places, regions, found):
                broken = margin_loss(self.bounded.model(points), state.y[there]) >= 0
                # Rounding in the attack must not count a point outside the set.
                broken &= region.perturbation.contains(points, region.center)
                state.falsify(place, there[broken], points[broken], ATTACK)

    def _bound(self, state: Progress, stage: Stage, images: Tensor) -> None:
        """Bound the open pairs of some images by a stage, if it supports the model."""
        if stage.name in self._unsupported:  # said so just now, by the images before these
            return
        with state.timed(images, clock):
            self._allow_for_rounding(state, images)
        pairs = state.open_pairs(images)
        limit = self.settings.time_limit or math.inf
        deadline = min(
            self._end, clock() + (limit - state.result.seconds[images.cpu()]).sum().item()
        )
        try:
            with state.timed(pairs.image, clock):
                bounds = self._bounds_by(stage, pairs, deadline)
                state.tighten(pairs, bounds, stage.name)
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

    def _bounds_by(self, stage: Stage, pairs: OpenPairs, deadline: float) -> Tensor:
        """Return a stage's bounds of open pairs.

        Set by set, image by image where the model takes a single input.
        """
        if not self._single:
            return stage.bound(self.bounded, pairs, deadline)
        parts, found = pairs.apart(), []
        for left, part in zip(range(len(parts), 0, -1), parts):
            now = clock()
            found.append(
                stage.bound(self.bounded, part, now + (deadline - now) / left)
            )  # its share of the time
        return torch.cat(found)

    def _allow_for_rounding(self, state: Progress, images: Tensor) -> None:
        """Find out what margins must exceed for open (image, set) pairs, once for each pair."""
        for place in range(len(self.sets)):
            there = state.unknown_rounding(place, images)
            if not len(there):
                continue
            center = state.x[there]
            if self.rounding == "ignored":
                error = center.new_zeros(len(there), self.classes)
            elif self.rounding == "not bounded":
                logits = self.bounded.model(center).detach().flatten(1)
                unit = torch.finfo(logits.dtype).eps / 2
                error = (logits.abs().amax(1, keepdim=True) * (_GENEROUS * unit / 4)).expand_as(
                    logits
                )
            else:
                error = self._errors.of(
                    [Region(center, state.sets[place].of_images(there, state.x))]
                )
            error = error.double()
            # Twice: for the network as it runs, and for the bound.
            state.need(place, there, 2 * (error + error.gather(1, state.y[there].unsqueeze(1))))


def _is_no_images_fault(error: Exception) -> bool:
    """Whether an error is the caller's or the machine's, so that no other image fares better."""
    return isinstance(error, (InvalidArgumentError, NotEnoughMemoryError)) or "CUDA error" in str(
        error
    )
