"""The state of a batch's pairs while the stages of a cascade work on it."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Callable

import torch
from torch import Tensor, nn

from ..attacks import margin_loss
from ..perturbations.described import AnySet
from .metrics import CERTIFIED, FALSIFIED, Certification
from .open_pairs import OpenPairs


class Progress:
    """A batch, its certification so far, and the best bound of every margin.

    Args:
        x: Images, shape (B, ...).
        y: Labels, shape (B,).
        sets: The sets around them.
        index: The images' numbers in the whole data.
        classes: K.
    """

    def __init__(
        self, x: Tensor, y: Tensor, sets: Sequence[AnySet], index: list[int], classes: int
    ) -> None:
        self.x, self.y, self.sets, self.index, self.classes = x, y, sets, index, classes
        self.result = Certification.not_run(sets, len(x))
        #: Best lower bound of f_y - f_k, (sets, B, K), in float64 so that no bound is rounded; +inf
        #: at k = y.
        self.best = torch.full(
            (len(sets), len(x), classes), -math.inf, dtype=torch.float64, device=x.device
        )
        #: What each of them must exceed to be proved, in spite of rounding; infinite until it is
        #: set.
        self.needed = -self.best
        for values, at_label in ((self.best, math.inf), (self.needed, 0)):
            values.scatter_(2, y.expand(len(sets), -1).unsqueeze(2), at_label)

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
        images = [self.result.open(set_index) for set_index in range(len(self.sets))]
        return torch.cat(images).unique().to(self.x.device)

    def open_pairs(self, images: Tensor) -> OpenPairs:
        """Return the open pairs of some images.

        Their margins are not proved yet, and the image is still open for their set.
        """
        is_open = torch.zeros(self.best.shape[:2], dtype=torch.bool, device=self.x.device)
        for set_index in range(len(self.sets)):
            is_open[set_index, self.result.open(set_index).to(self.x.device)] = True
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
        """Return which margins are proved positive, (sets, B, K)."""
        return self.best > self.needed

    def unknown_rounding(self, set_index: int, images: Tensor) -> Tensor:
        """Return which of some images are open for a set and have no margin threshold yet.

        The threshold is what margins must exceed.
        """
        images = images[torch.isin(images, self.result.open(set_index).to(images.device))]
        return images[self.needed[set_index, images].isinf().any(1)]

    def need(self, set_index: int, images: Tensor, needed: Tensor) -> None:
        """Set what the margins of some images must exceed for a set, (b, K).

        Where it is NaN or +inf, no bound proves them.
        """
        needed = torch.where(needed.isnan(), torch.finfo(torch.float64).max, needed.to(self.needed))
        needed = needed.clamp(max=torch.finfo(torch.float64).max)
        self.needed[set_index, images] = needed.scatter(1, self.y[images].unsqueeze(1), 0)

    def tighten(self, pairs: OpenPairs, bounds: Tensor, method: str) -> None:
        """Keep the bounds that improve, and decide the (image, set) pairs that are now proved.

        A pair is proved when all its margins are.
        """
        key = (pairs.set_index, pairs.image, pairs.rival)
        old, new = self.best[key], bounds.to(self.best)
        self.best[key] = torch.where(new > old, new, old)  # a NaN is no improvement
        self.result.margin, proved = self.best.amin(2).cpu(), self._proved()
        for set_index in pairs.set_index.unique().tolist():
            images = pairs.image[pairs.set_index == set_index].unique()
            proved_images = images[proved[set_index, images].all(1)]
            self.result.decide(set_index, proved_images, CERTIFIED, method)

    def falsify(self, set_index: int, images: Tensor, points: Tensor, method: str) -> None:
        """Keep adversarial examples of some images."""
        self.result.decide(set_index, images, FALSIFIED, method)
        for image, point in zip(images.tolist(), points.detach().cpu()):
            self.result.adversarial[set_index, image] = point

    def late(self, limit: float) -> Tensor:
        """Return the open images that more than ``limit`` seconds were spent on."""
        images = self.open_images()
        return images[self.result.seconds[images.cpu()].to(images.device) > limit]

    def close(self, images: Tensor, status: str) -> None:
        """Give the open pairs of some images another status."""
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
