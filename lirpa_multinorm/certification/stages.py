"""The cascade's stages: each gives lower bounds of margins that are still open."""

from __future__ import annotations

import difflib
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..bounds import BoundedModule
from ..bounds.methods import METHODS, Method, canonical_name
from ..errors import InvalidArgumentError, UnsupportedModelError
from ..perturbations import PerturbationLpBox, Region
from ..utils.memory import is_out_of_memory
from ..verifier.branching.branch_and_bound import BranchSettings

_NOTHING_DOES = 1e30  # a margin that is needed and that no bound of a network's reaches


class Gathered(NamedTuple):
    """The open pairs of one set as a host call takes them: images with a specification each.

    Args:
        place: Which set.
        images: Images with an open class, shape (b,), rising.
        C: Rows ``f_y - f_k`` of the open classes k, shape (b, S, K); images with fewer than S
            repeat one of theirs.
    """

    place: int
    images: Tensor
    C: Tensor


@dataclass(frozen=True)
class OpenPairs:
    """The (set, image, class) pairs of a batch whose margin ``f_y - f_k`` is not proved positive.

    The three index tensors have one entry per pair, in rising order of (place, image, rival).

    Args:
        x: Images of the batch, shape (B, ...).
        y: Their labels, shape (B,).
        sets: The sets around all B images (a radius per example has B values).
        classes: K.
        place: Which set, shape (P,).
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
    sets: Sequence[PerturbationLpBox]
    classes: int
    place: Tensor
    image: Tensor
    rival: Tensor
    needed: Tensor | None = None
    best: Tensor | None = None

    @classmethod
    def where(
        cls,
        x: Tensor,
        y: Tensor,
        sets: Sequence[PerturbationLpBox],
        is_open: Tensor,
        needed: Tensor | None = None,
        best: Tensor | None = None,
    ) -> OpenPairs:
        """Return the pairs that a mask of shape (sets, B, K) marks.

        ``needed`` and ``best`` have the same shape.
        """
        place, image, rival = is_open.to(x.device).nonzero(as_tuple=True)
        return cls(
            x,
            y,
            sets,
            is_open.shape[2],
            place,
            image,
            rival,
            *(None if values is None else values[place, image, rival] for values in (needed, best)),
        )

    def enough(self, own: Tensor | None = None) -> float:
        """Return the value that all margins, or those that a mask marks, must exceed.

        Where none can, 0.
        """
        needed = (
            torch.zeros(1)
            if self.needed is None
            else self.needed
            if own is None
            else self.needed[own]
        )
        needed = needed[needed < _NOTHING_DOES]
        return float(needed.max()) * (1 + 1e-6) if len(needed) else 0.0

    def __len__(self) -> int:
        return len(self.place)

    def mask(self) -> Tensor:
        """Return the pairs as a mask of shape (sets, B, K)."""
        found = torch.zeros(
            len(self.sets), len(self.x), self.classes, dtype=torch.bool, device=self.x.device
        )
        found[self.place, self.image, self.rival] = True
        return found

    def region(self, place: int, images: Tensor) -> Region:
        """Return a set around some of the images."""
        return Region(self.x[images], self.sets[place].of_images(images, self.x))

    def apart(self) -> list[OpenPairs]:
        """Return the pairs of each set and image by themselves, in order."""
        groups = torch.stack([self.place, self.image], dim=1)
        sizes = groups.unique_consecutive(dim=0, return_counts=True)[1].tolist()
        each = {
            name: value.split(sizes)
            for name, value in (
                ("place", self.place),
                ("image", self.image),
                ("rival", self.rival),
                ("needed", self.needed),
                ("best", self.best),
            )
            if value is not None
        }
        return [replace(self, **dict(zip(each, parts))) for parts in zip(*each.values())]

    def lack(self, model: nn.Module) -> Tensor:
        """Return how much of each clean margin m the best bound b lacks.

        ``-b / (m - b)``, 0 without a bound, (P,).
        """
        if self.best is None:
            return torch.zeros(len(self), device=self.x.device)
        images, own = self.image.unique(return_inverse=True)
        with torch.no_grad():  # one by one: some models take a single input
            logits = torch.cat(
                [model(self.x[image : image + 1]).flatten(1) for image in images.tolist()]
            ).to(self.best)
        clean = (self.specification().squeeze(1).to(logits) * logits[own]).sum(1)
        return torch.where(self.best.isfinite(), -self.best / (clean - self.best), 0.0)

    def specification(self) -> Tensor:
        """Return one row ``f_y - f_k`` per pair, shape (P, 1, K)."""
        return _rows(self.y[self.image], self.rival.unsqueeze(1), self.classes, self.x.dtype)

    def gathered(self) -> list[Gathered]:
        """Return the pairs set by set, all with the S of the image that has most open classes."""
        mask = self.mask()
        count = mask.sum(2)
        most = int(count.max())
        # Open classes first, in rising order.
        rivals = (~mask).to(torch.uint8).argsort(dim=2, stable=True)[..., :most]
        padded = torch.arange(most, device=mask.device) >= count.unsqueeze(2)
        rivals = torch.where(padded, rivals[..., :1], rivals)
        found = []
        for place in range(len(self.sets)):
            images = count[place].nonzero().squeeze(1)
            if len(images):
                found.append(
                    Gathered(
                        place,
                        images,
                        _rows(self.y[images], rivals[place, images], self.classes, self.x.dtype),
                    )
                )
        return found

    def from_gathered(self, bounds: Sequence[Tensor]) -> Tensor:
        """Return one value per pair, (P,), from values (b, S) of each entry of :meth:`gathered`."""
        mask, values = self.mask(), []
        column = mask.cumsum(2) - 1
        for (place, images, _), bound in zip(self.gathered(), bounds):
            own = mask[place, images]
            values.append(bound[own.nonzero(as_tuple=True)[0], column[place, images][own]])
        return torch.cat(values)


def _rows(labels: Tensor, rivals: Tensor, classes: int, dtype: torch.dtype) -> Tensor:
    """Return rows that give ``f_y - f_k``, (b, S, K) for rivals k of shape (b, S)."""
    eye = torch.eye(classes, dtype=dtype, device=labels.device)
    return eye[labels].unsqueeze(1) - eye[rivals]


class Stage:
    """A method of the cascade.

    A stage that cannot bound the model raises UnsupportedModelError, and is then left out for that
    model.

    Args:
        name: What it is called in settings and results.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def within(self, time_limit: float | None) -> Stage:
        """Return the stage as it is to run with a time limit per image, or without one."""
        return self

    def bound(self, bounded: BoundedModule, pairs: OpenPairs, deadline: float) -> Tensor:
        """Return a sound lower bound of each open pair's margin, shape (P,).

        Args:
            bounded: The network, in eval mode.
            pairs: What is open; at least one pair.
            deadline: Value of ``time.perf_counter()`` by which to return, with what is then known
                (-inf: nothing); infinite without a limit. A stage that cannot stop half-way may
                ignore it.
        """
        raise NotImplementedError


class BoundStage(Stage):
    """A method of ``compute_region_bounds``: one call over all sets, for open classes only."""

    def bound(self, bounded: BoundedModule, pairs: OpenPairs, deadline: float) -> Tensor:
        """Return the method's bounds; see :meth:`Stage.bound`."""
        method = METHODS[self.name]
        if method.faster is None:
            return self._by(method, bounded, pairs)
        try:
            return self._by(METHODS[method.faster], bounded, pairs)
        except UnsupportedModelError as error:
            if is_out_of_memory(error):
                raise
            return self._by(method, bounded, pairs)

    @staticmethod
    def _by(method: Method, bounded: BoundedModule, pairs: OpenPairs) -> Tensor:
        groups = pairs.gathered()
        regions = [pairs.region(place, images) for place, images, _ in groups]
        options = {"enough": pairs.enough()} if "enough" in method.options else {}
        found = bounded.compute_region_bounds(
            regions, [C for _, _, C in groups], method.name, bound_upper=False, **options
        )
        return pairs.from_gathered([lower.detach() for lower, _ in found])


#: Domains that branch and bound splits for an image and set where no time limit ends it.
MAX_SPLITS = 200
#: It begins only where no bound of a margin lacks more than this share of the clean one: more it
#: hardly ever makes up for.
MAX_LACK = 0.5


class BranchStage(Stage):
    """Branch and bound, image by image, each with its share of the time that is left.

    Args:
        name: See :class:`Stage`.
        max_splits: Domains to split for each image and set; None for no limit.
        max_lack: Share of a clean margin that its bound may lack for a search to begin; see
            :meth:`OpenPairs.lack`.
    """

    def __init__(
        self, name: str, max_splits: int | None = MAX_SPLITS, max_lack: float = MAX_LACK
    ) -> None:
        super().__init__(name)
        self.max_splits, self.max_lack = max_splits, max_lack

    def within(self, time_limit: float | None) -> Stage:
        """Return a stage that is ended by the time limit alone, or, without one, is as it is.

        Numbers, unlike a time, find the same on every machine.
        """
        return self if time_limit is None else BranchStage(self.name, None, math.inf)

    def bound(self, bounded: BoundedModule, pairs: OpenPairs, deadline: float) -> Tensor:
        """Return bounds, positive where proved; see :meth:`Stage.bound`."""
        C, found = (
            pairs.specification().squeeze(1),
            torch.full((len(pairs),), -math.inf, dtype=pairs.x.dtype),
        )
        found = found.to(pairs.x.device)
        groups = torch.stack([pairs.place, pairs.image], dim=1)
        hopeless = (
            []
            if self.max_lack == math.inf
            else (groups[pairs.lack(bounded.model) > self.max_lack].unique(dim=0).tolist())
        )
        every = [one for one in groups.unique(dim=0).tolist() if one not in hopeless]
        start = time.perf_counter()
        for place, image in every:
            own = (groups == groups.new_tensor([place, image])).all(1)
            region = pairs.region(place, torch.tensor([image], device=pairs.x.device))
            share = (deadline - start) / len(every)
            found[own] = bounded.branch_and_bound(
                region,
                C[own],
                time.perf_counter() + share,
                BranchSettings(max_splits=self.max_splits, enough=pairs.enough(own)),
            )
        return found


#: The stages by name. A method of one's own: ``STAGES[stage.name] = stage``.
STAGES: dict[str, Stage] = {
    method.name: BoundStage(method.name) if method.bounds else BranchStage(method.name)
    for method in METHODS.values()
}


def stage_of(method: str) -> Stage:
    """Return the stage of a name, in any case and under any of the host's other names.

    Raises:
        InvalidArgumentError: There is none.
    """
    own = {name.lower(): stage for name, stage in STAGES.items()}
    spelled = (str(method).lower(), canonical_name(method).lower())
    found = next((own[name] for name in spelled if name in own), None)
    if found is None or not isinstance(method, str):
        near = difflib.get_close_matches(str(method), STAGES, n=1)
        hint = f" did you mean {near[0]!r}?" if near else ""
        raise InvalidArgumentError(f"methods: {method!r} is unknown;{hint} use {', '.join(STAGES)}")
    return found
