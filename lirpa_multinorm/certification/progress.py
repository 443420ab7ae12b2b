"""What is known of a batch's pairs while the stages of a cascade work on it."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Callable

import torch
from torch import Tensor, nn

from ..attacks import margin_loss
from ..perturbations import PerturbationLpBox
from .metrics import CERTIFIED, FALSIFIED, Certification
from .stages import OpenPairs


class Progress:
    """A batch, what has been found, and the best bound of every margin.

    Args:
        x: Images, shape (B, ...).
        y: Labels, shape (B,).
        sets: The sets around them.
        index: The images' numbers in the whole data.
        classes: K.
    """

    def __init__(
        self,
        x: Tensor,
        y: Tensor,
        sets: Sequence[PerturbationLpBox],
        index: list[int],
        classes: int,
    ) -> None:
        self.x, self.y, self.sets, self.index, self.classes = x, y, sets, index, classes
        self.result = Certification.not_run(sets, len(x))
        #: Best lower bound of f_y - f_k, (sets, B, K), in float64 so that no bound is rounded; +inf
        #: at k = y.
        self.best = torch.full(
            (len(sets), len(x), classes), -math.inf, dtype=torch.float64, device=x.device
        )
        #: What each of them must exceed to be proved, in spite of rounding; infinite until it is
        #: known.
        self.needed = -self.best
        for values, own in ((self.best, math.inf), (self.needed, 0)):
            values.scatter_(2, y.expand(len(sets), -1).unsqueeze(2), own)

    def everything(self) -> Tensor:
        """Return the indices of all images of the batch."""
        return torch.arange(len(self.x), device=self.x.device)

    def predict(self, model: nn.Module, images: Tensor) -> None:
        """Classify some of the images; those that are wrong are decided."""
        logits = model(self.x[images])
        self.result.predict(
            images.cpu(), logits.argmax(1).cpu(), (margin_loss(logits, self.y[images]) < 0).cpu()
        )

    def open_images(self) -> Tensor:
        """Return the images that are open for some set."""
        found = [self.result.open(place) for place in range(len(self.sets))]
        return torch.cat(found).unique().to(self.x.device)

    def open_pairs(self, images: Tensor) -> OpenPairs:
        """Return the open pairs of some images.

        Their margins are not proved yet, and the image is still open for their set.
        """
        is_open = torch.zeros(self.best.shape[:2], dtype=torch.bool, device=self.x.device)
        for place in range(len(self.sets)):
            is_open[place, self.result.open(place).to(self.x.device)] = True
        chosen = torch.zeros_like(is_open[0])
        chosen[images] = True
        return OpenPairs.where(
            self.x,
            self.y,
            self.sets,
            (is_open & chosen).unsqueeze(2) & ~self._proved(),
            self.needed,
            self.best,
        )

    def _proved(self) -> Tensor:
        return self.best > self.needed

    def unknown_rounding(self, place: int, images: Tensor) -> Tensor:
        """Return which of some images are open for a set and have no known margin threshold.

        The threshold is what margins must exceed.
        """
        images = images[torch.isin(images, self.result.open(place).to(images.device))]
        return images[self.needed[place, images].isinf().any(1)]

    def need(self, place: int, images: Tensor, needed: Tensor) -> None:
        """Set what the margins of some images must exceed for a set, (b, K).

        NaN and +inf: nothing proves them.
        """
        needed = torch.where(needed.isnan(), torch.finfo(torch.float64).max, needed.to(self.needed))
        needed = needed.clamp(max=torch.finfo(torch.float64).max)
        self.needed[place, images] = needed.scatter(1, self.y[images].unsqueeze(1), 0)

    def tighten(self, pairs: OpenPairs, bounds: Tensor, method: str) -> None:
        """Keep what a stage's bounds improve, and decide the (image, set) pairs now proved.

        A pair is proved when all its margins are.
        """
        key = (pairs.place, pairs.image, pairs.rival)
        old, new = self.best[key], bounds.to(self.best)
        self.best[key] = torch.where(new > old, new, old)  # a NaN is no improvement
        self.result.margin, proved = self.best.amin(2).cpu(), self._proved()
        for place in pairs.place.unique().tolist():
            images = pairs.image[pairs.place == place].unique()
            self.result.decide(place, images[proved[place, images].all(1)], CERTIFIED, method)

    def falsify(self, place: int, images: Tensor, points: Tensor, method: str) -> None:
        """Keep adversarial examples of some images."""
        self.result.decide(place, images, FALSIFIED, method)
        for image, point in zip(images.tolist(), points.detach().cpu()):
            self.result.adversarial[place, image] = point

    def late(self, limit: float) -> Tensor:
        """Return the open images that more than ``limit`` seconds were spent on."""
        images = self.open_images()
        return images[self.result.seconds[images.cpu()].to(images.device) > limit]

    def close(self, images: Tensor, status: str) -> None:
        """Give what is open of some images another status."""
        for image in images.tolist():
            self.result.close(image, status)

    @contextlib.contextmanager
    def timed(self, images: Tensor, clock: Callable[[], float]) -> Iterator[None]:
        """Share the time of the block among images, once for each time that they are named."""
        start = clock()
        try:
            yield
        finally:
            share = (clock() - start) / max(1, len(images))
            self.result.seconds += share * torch.bincount(images.cpu(), minlength=len(self.x))
