"""The margins of a batch that are still open, and the specifications that bound them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from ..perturbations import PerturbationLpBox, Region
from ..perturbations.described import AnySet

_UNREACHABLE = 1e30  # a threshold that no bound of a network's margin exceeds


class Gathered(NamedTuple):
    """The open pairs of one set as a host call takes them: images with a specification each.

    Args:
        set_index: Index of the set.
        images: Images with an open class, shape (b,), rising.
        C: Rows ``f_y - f_k`` of the open classes k, shape (b, S, K); images with fewer than S
            repeat one of theirs.
    """

    set_index: int
    images: Tensor
    C: Tensor


class AllRivals(NamedTuple):
    """The open images of one set, with all classes as rivals.

    Args:
        set_index: Index of the set.
        perturbation: The set, of the class that the stage takes.
        images: Images with an open class, shape (b,), rising.
        C: Rows ``f_y - f_k`` of all classes k, shape (b, K, K).
        enough: What their bounds must exceed, shape (b, K); -inf where a class is not open.
    """

    set_index: int
    perturbation: Any
    images: Tensor
    C: Tensor
    enough: Tensor


@dataclass(frozen=True)
class OpenPairs:
    """The (set, image, class) pairs of a batch whose margin ``f_y - f_k`` is not proved positive.

    The three index tensors have one entry per pair, in rising order of (set_index, image, rival).

    Args:
        x: Images of the batch, shape (B, ...).
        y: Their labels, shape (B,).
        sets: The sets around all B images (a radius per example has B values).
        classes: K.
        set_index: Which set, shape (P,).
        image: Which image, shape (P,).
        rival: Which class k, shape (P,).
        needed: What each margin must exceed to be proved in spite of rounding, shape (P,); None: 0.
        best: The best lower bound of each margin so far, shape (P,), -inf where there is none;
            None: none.

    Example:
        >>> # one set, two images, three classes
        >>> is_open = torch.tensor([[[False, True, True], [False, False, True]]])
        >>> sets, y = [PerturbationLpBox(2, 0.1)], torch.tensor([0, 0])
        >>> pairs = OpenPairs.where(torch.rand(2, 4), y, sets, is_open)
        >>> pairs.image, pairs.rival
        (tensor([0, 0, 1]), tensor([1, 2, 2]))
        >>> pairs.gathered()[0].C[1]  # the second image has one open class only
        tensor([[ 1.,  0., -1.],
                [ 1.,  0., -1.]])
    """

    x: Tensor
    y: Tensor
    sets: Sequence[AnySet]
    classes: int
    set_index: Tensor
    image: Tensor
    rival: Tensor
    needed: Tensor | None = None
    best: Tensor | None = None

    @classmethod
    def where(
        cls,
        x: Tensor,
        y: Tensor,
        sets: Sequence[AnySet],
        is_open: Tensor,
        needed: Tensor | None = None,
        best: Tensor | None = None,
    ) -> OpenPairs:
        """Return the pairs that a mask of shape (sets, B, K) marks.

        ``needed`` and ``best`` have the same shape.
        """
        set_index, image, rival = is_open.to(x.device).nonzero(as_tuple=True)
        needed, best = (
            None if values is None else values[set_index, image, rival] for values in (needed, best)
        )
        return cls(x, y, sets, is_open.shape[2], set_index, image, rival, needed, best)

    def threshold(self, rows: Tensor | None = None) -> float:
        """Return the value that the margins of all pairs must exceed to be proved.

        It is 0 where no bound can prove any of them.

        Args:
            rows: Mask of the pairs to look at, (P,); None: all.
        """
        if self.needed is None:
            return 0.0
        needed = self.needed if rows is None else self.needed[rows]
        needed = needed[needed < _UNREACHABLE]
        return float(needed.max()) * (1 + 1e-6) if len(needed) else 0.0

    def __len__(self) -> int:
        return len(self.set_index)

    def mask(self) -> Tensor:
        """Return the pairs as a mask of shape (sets, B, K)."""
        mask = torch.zeros(
            len(self.sets), len(self.x), self.classes, dtype=torch.bool, device=self.x.device
        )
        mask[self.set_index, self.image, self.rival] = True
        return mask

    def region(self, set_index: int, images: Tensor) -> Region:
        """Return a ball around some of the images."""
        perturbation = cast(PerturbationLpBox, self.sets[set_index])
        return Region(self.x[images], perturbation.of_images(images, self.x))

    def of_sets(self, kind: type) -> OpenPairs:
        """Return the pairs whose sets are of a class."""
        wanted = [isinstance(perturbation, kind) for perturbation in self.sets]
        if all(wanted):
            return self
        rows = torch.tensor(wanted, device=self.set_index.device)[self.set_index]
        chosen: dict[str, Any] = {
            name: None if getattr(self, name) is None else getattr(self, name)[rows]
            for name in ("set_index", "image", "rival", "needed", "best")
        }
        return replace(self, **chosen)

    def with_all_rivals(self) -> list[AllRivals]:
        """Return the images with an open pair set by set, each with all K classes as rivals."""
        shape = len(self.sets), len(self.x), self.classes
        enough = self.x.new_full(shape, -math.inf)
        needed = self.x.new_zeros(len(self)) if self.needed is None else self.needed
        # Rounded up, where the thresholds have more digits than the bounds.
        above = enough.new_full((len(self),), math.inf)
        enough[self.set_index, self.image, self.rival] = torch.nextafter(needed.to(enough), above)
        problems = []
        for set_index in self.set_index.unique().tolist():
            images = self.image[self.set_index == set_index].unique()
            rivals = torch.arange(self.classes, device=images.device).expand(len(images), -1)
            C = _margin_rows(self.y[images], rivals, self.classes, self.x.dtype)
            problems.append(
                AllRivals(set_index, self.sets[set_index], images, C, enough[set_index, images])
            )
        return problems

    def from_all_rivals(self, bounds: Sequence[Tensor]) -> Tensor:
        """Return one value per pair, (P,), from (b, K) of each of :meth:`with_all_rivals`."""
        values = self.x.new_full((len(self.sets), len(self.x), self.classes), -math.inf)
        for problem, bound in zip(self.with_all_rivals(), bounds):
            values[problem.set_index, problem.images] = bound
        return values[self.set_index, self.image, self.rival]

    def apart(self) -> list[OpenPairs]:
        """Return the pairs of each set and image by themselves, in order."""
        groups = torch.stack([self.set_index, self.image], dim=1)
        sizes = groups.unique_consecutive(dim=0, return_counts=True)[1].tolist()
        chunks = {
            name: value.split(sizes)
            for name, value in (
                ("set_index", self.set_index),
                ("image", self.image),
                ("rival", self.rival),
                ("needed", self.needed),
                ("best", self.best),
            )
            if value is not None
        }
        return [replace(self, **dict(zip(chunks, values))) for values in zip(*chunks.values())]

    def lack(self, model: nn.Module) -> Tensor:
        """Return how much of each clean margin m the best bound b lacks.

        It is ``-b / (m - b)``, and 0 without a bound; shape (P,).
        """
        if self.best is None:
            return torch.zeros(len(self), device=self.x.device)
        images, row = self.image.unique(return_inverse=True)
        with torch.no_grad():  # image by image: some models take a single input
            logits = torch.cat(
                [model(self.x[image : image + 1]).flatten(1) for image in images.tolist()]
            ).to(self.best)
        clean = (self.specification().squeeze(1).to(logits) * logits[row]).sum(1)
        return torch.where(self.best.isfinite(), -self.best / (clean - self.best), 0.0)

    def specification(self) -> Tensor:
        """Return one row ``f_y - f_k`` per pair, shape (P, 1, K)."""
        return _margin_rows(self.y[self.image], self.rival.unsqueeze(1), self.classes, self.x.dtype)

    def gathered(self) -> list[Gathered]:
        """Return the pairs set by set, all with the S of the image with the most open classes."""
        mask = self.mask()
        count = mask.sum(2)
        most = int(count.max())
        # Open classes first, in rising order.
        rivals = (~mask).to(torch.uint8).argsort(dim=2, stable=True)[..., :most]
        padded = torch.arange(most, device=mask.device) >= count.unsqueeze(2)
        rivals = torch.where(padded, rivals[..., :1], rivals)
        groups = []
        for set_index in range(len(self.sets)):
            images = count[set_index].nonzero().squeeze(1)
            if len(images):
                C = _margin_rows(
                    self.y[images], rivals[set_index, images], self.classes, self.x.dtype
                )
                groups.append(Gathered(set_index, images, C))
        return groups

    def from_gathered(self, bounds: Sequence[Tensor]) -> Tensor:
        """Return one value per pair, (P,), from values (b, S) of each entry of :meth:`gathered`."""
        mask, values = self.mask(), []
        column = mask.cumsum(2) - 1
        for (set_index, images, _), bound in zip(self.gathered(), bounds):
            is_open = mask[set_index, images]
            row = is_open.nonzero(as_tuple=True)[0]
            values.append(bound[row, column[set_index, images][is_open]])
        return torch.cat(values)


def _margin_rows(labels: Tensor, rivals: Tensor, classes: int, dtype: torch.dtype) -> Tensor:
    """Return rows that give ``f_y - f_k``, (b, S, K) for rivals k of shape (b, S)."""
    eye = torch.eye(classes, dtype=dtype, device=labels.device)
    return eye[labels].unsqueeze(1) - eye[rivals]
