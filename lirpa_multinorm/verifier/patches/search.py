"""Certification against patches: groups of places by interval arithmetic, then places one by one.

All places of a patch lie in groups of 4x4 neighbours. Where a group's pixels may all be free, and
the linear forms are proved, all its places are proved. Only groups that are left open are divided:
into groups of 2x2 or, where that has no prospect, into single places, as published. What interval
arithmetic leaves open is left to CROWN, again in groups first, the worst before the others. The
worst place of the worst group comes before all this: an image where it stays open is given up.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ...errors import NaNBoundError
from ..relu_network import ReluNetwork
from .crown import RectangleCrown
from .differences import Differences
from .reach import Reaches, Rectangle

_GROUP = 4  # places of a group, per side
_PROSPECT = 0.6  # share of a value that a group's bound may lack for its parts to be groups
_CHUNK = 1 << 13  # pairs of a rectangle and an image between two looks at the clock


class PatchSettings(NamedTuple):
    """Settings of a search.

    Args:
        crown: Whether places that interval arithmetic leaves open are bounded by CROWN.
        every_place: Whether an image is searched on after a place of it has been given up, so that
            the map of its places is complete.
    """

    crown: bool = True
    every_place: bool = False


class PatchResult(NamedTuple):
    """What a search has found for B images.

    Args:
        bounds: Lower bounds of the linear forms on all patched images, (B, S); -inf where a place
            has not been looked at.
        places: Lower bounds of the linear forms at each place, (B, rows, columns, S).
        proved: The places where all linear forms exceed what they must, (B, rows, columns).
        passes: The multiplications that the bounds took, (B,), by those of interval arithmetic of
            the whole image. A neuron whose difference may be other than zero is multiplied (middle
            and half width) by its coefficients that are not zero; CROWN multiplies one number
            instead of two; the clean image takes half a pass. See
            :meth:`.links.Links.multiplications`.
        by_crown: How many groups and places CROWN has bounded, (B,).
    """

    bounds: Tensor
    places: Tensor
    proved: Tensor
    passes: Tensor
    by_crown: Tensor


class _Pairs(NamedTuple):
    """Pairs of a group of places and an image.

    Args:
        group: Index of the group, (R,), rising.
        image: (R,).
        lack: The largest share of a linear form's value that its bound lacks, (R,).
    """

    group: Tensor
    image: Tensor
    lack: Tensor

    def rows(self, index: Tensor) -> _Pairs:
        return _Pairs(*(field[index] for field in self))


class PatchSearch:
    """A search over the places of a patch in some images.

    Args:
        network: The network.
        reaches: What rectangles of pixels reach in it.
        images: (B, C, H, W), in [0, 1].
        C: Linear forms of the output for each image, (B, S, K).
        enough: What their bounds must exceed, (B, S); -inf for a form that is not asked for.
        size: Rows and columns of the patch.
        settings: Of the search.

    Raises:
        NaNBoundError: A clean value is NaN.
    """

    def __init__(
        self,
        network: ReluNetwork,
        reaches: Reaches,
        images: Tensor,
        C: Tensor,
        enough: Tensor,
        size: tuple[int, int],
        settings: PatchSettings = PatchSettings(),
    ) -> None:
        self._differences = Differences(network, reaches, images, C)
        self._enough, self._size, self._settings = enough, size, settings
        self._value, self._deadline = self._differences.value, math.inf
        rows, columns = (extent - side + 1 for extent, side in zip(images.shape[2:], size))
        self._bounds = images.new_full((len(images), rows, columns, C.shape[1]), -math.inf)
        self._passes = images.new_full((len(images),), 0.5)
        self._count = torch.zeros_like(self._passes, dtype=torch.long)
        self._ended = torch.zeros_like(self._passes, dtype=torch.bool)

    @torch.no_grad()
    def run(self, deadline: float = math.inf) -> PatchResult:
        """Search until every image is decided or the time is over."""
        self._deadline = deadline
        images = torch.arange(len(self._value), device=self._value.device)
        if not self._settings.every_place:  # the clean image is in the set
            self._ended = ~(self._value > self._enough).all(1)
        coarse = _divided(Rectangle(0, 0, *self._bounds.shape[1:3]), _GROUP)
        numbers = torch.arange(len(coarse), device=images.device)
        pairs = self._bounded(
            coarse, numbers.repeat_interleave(len(images)), images.repeat(len(coarse))
        )
        if not self._settings.every_place:
            pairs = self._worst_tried(coarse, pairs)
        good = pairs.lack < _PROSPECT
        fine, left = self._divide([(coarse, pairs.rows(good))], _GROUP // 2)
        self._divide([(coarse, pairs.rows(~good)), (fine, left)], 1)
        if self._settings.crown:
            for image in (~self._ended).nonzero().squeeze(1).tolist():
                self._crown(image)
        proved = (self._bounds > self._enough[:, None, None]).all(3)
        lowest = self._bounds.flatten(1, 2).amin(1)
        return PatchResult(lowest, self._bounds, proved, self._passes, self._count)

    def _divide(
        self, groups_with_pairs: Sequence[tuple[Sequence[Rectangle], _Pairs]], side: int
    ) -> tuple[list[Rectangle], _Pairs]:
        """Divide groups into smaller ones and bound these; return them, and the pairs left open."""
        parts: list[Rectangle] = []
        group, image = [], []
        for groups, pairs in groups_with_pairs:
            for number in pairs.group.unique().tolist():
                smaller = _divided(groups[number], side)
                images = pairs.image[pairs.group == number]
                index = torch.arange(len(parts), len(parts) + len(smaller), device=images.device)
                group.append(index.repeat_interleave(len(images)))
                image.append(images.repeat(len(smaller)))
                parts += smaller
        if not parts:
            return parts, groups_with_pairs[0][1]
        return parts, self._bounded(parts, torch.cat(group), torch.cat(image))

    def _bounded(self, groups: Sequence[Rectangle], group: Tensor, image: Tensor) -> _Pairs:
        """Bound pairs of a group and an image, and return those that are left open."""
        pixels = [self._pixels(rectangle) for rectangle in groups]
        going = ~self._ended[image]
        group, image = group[going], image[going]
        left = [_Pairs(group[:0], image[:0], self._value[:0, 0])]
        for at, of in zip(group.split(_CHUNK), image.split(_CHUNK)):
            if not len(at) or self._is_late():
                break
            bounds, passes = self._differences.bounds(pixels, at, of)
            self._passes.index_add_(0, of, passes)
            self._note(groups, at, of, bounds)
            pairs = _Pairs(at, of, self._lack(of, bounds))
            left.append(pairs.rows(~(bounds > self._enough[of]).all(1)))
        return _Pairs(*(torch.cat(fields) for fields in zip(*left)))

    def _is_late(self) -> bool:
        """Return whether the time is over, and end the search if it is."""
        if time.perf_counter() >= self._deadline:
            self._ended[:] = True
            return True
        return False

    def _note(
        self, groups: Sequence[Rectangle], group: Tensor, image: Tensor, bounds: Tensor
    ) -> None:
        """Note bounds of groups at all their places."""
        if bool(bounds.isnan().any()):
            raise NaNBoundError(
                "the bounds of patches contain NaN; check the model's weights for NaN or infinite "
                "values, or use float64"
            )
        top, left, height, width = torch.tensor(groups, device=group.device)[group].T
        for down, across in itertools.product(range(int(height.max())), range(int(width.max()))):
            rows = (down < height) & (across < width)
            at = image[rows], top[rows] + down, left[rows] + across
            self._bounds[at] = torch.maximum(self._bounds[at], bounds[rows])

    def _lack(self, image: Tensor, bounds: Tensor) -> Tensor:
        """Return the largest share of a value that a linear form's bound lacks, (R,)."""
        enough, value = self._enough[image], self._value[image]
        share = (enough - bounds) / (value - bounds).clamp(min=torch.finfo(value.dtype).tiny)
        return torch.where(bounds > enough, 0.0, share).amax(1)

    def _worst_tried(self, groups: Sequence[Rectangle], pairs: _Pairs) -> _Pairs:
        """Decide the worst place of each image's worst group, and end the search where it fails.

        Returns:
            The pairs of the other groups.
        """
        worst = []
        for image in pairs.image.unique().tolist():
            rows = (pairs.image == image).nonzero().squeeze(1)
            worst.append(rows[pairs.lack[rows].argmax()])
        if not worst:
            return pairs
        chosen = torch.stack(worst).sort().values
        places, left = self._divide([(groups, pairs.rows(chosen))], 1)
        for image in left.image.unique().tolist():
            rows = (left.image == image).nonzero().squeeze(1)
            if not self._is_late():
                number = int(left.group[rows[left.lack[rows].argmax()]])
                self._crowned_group(image, places[number], single=True)
        others = torch.ones_like(pairs.group, dtype=torch.bool)
        others[chosen] = False
        return pairs.rows(others.nonzero().squeeze(1))

    def _crown(self, image: int) -> None:
        """Bound open places of an image by CROWN, in groups first, the worst before the others."""
        bounds, enough = self._bounds[image], self._enough[image]
        lack = self._lack(torch.tensor([image], device=bounds.device), bounds.flatten(0, 1))
        lack = lack.view(bounds.shape[:2])
        groups = _divided(Rectangle(0, 0, *bounds.shape[:2]), _GROUP)
        groups.sort(key=lambda group: float(_at(lack, group).max()))
        while groups and not self._ended[image] and not self._is_late():
            group = groups.pop()
            is_open = ~(_at(bounds, group) > enough).all(2)
            if not bool(is_open.any()):
                continue
            group = _around(group, is_open)
            single = group.height * group.width == 1
            if not self._crowned_group(image, group, single) and not single:
                groups += _divided(group, 1 if max(group[2:]) <= 2 else 2)

    def _crowned_group(self, image: int, group: Rectangle, single: bool) -> bool:
        """Bound a group of places by CROWN and return whether it is proved, or need not be.

        A single place that is left open ends the search of its image.
        """
        bounds, enough = _at(self._bounds[image], group), self._enough[image]
        if self._settings.crown:
            asked = ~enough.isneginf()
            crown = RectangleCrown(self._differences, self._pixels(group), image)
            v = self._differences.C[image, asked]
            by_crown = torch.full_like(enough, -math.inf)
            by_crown[asked] = crown.bounds(v, enough[asked], tighten=single)
            bounds.copy_(torch.maximum(bounds, by_crown))
            self._passes[image] += crown.work / self._differences.multiplications
            self._count[image] += 1
        proved = bool((bounds > enough).all())
        if single and not proved and not self._settings.every_place:
            self._ended[image] = True
        return proved

    def _pixels(self, group: Rectangle) -> Rectangle:
        """Return the pixels that patches at a group of places cover."""
        height, width = self._size
        return group._replace(height=group.height + height - 1, width=group.width + width - 1)


def _at(values: Tensor, group: Rectangle) -> Tensor:
    """Return a view of values of places at those of a group."""
    return values[group.top :, group.left :][: group.height, : group.width]


def _around(group: Rectangle, marked: Tensor) -> Rectangle:
    """Return the smallest rectangle that holds the marked places of a group."""
    rows, columns = (marked.any(axis).nonzero().squeeze(1).tolist() for axis in (1, 0))
    return Rectangle(
        group.top + rows[0],
        group.left + columns[0],
        rows[-1] - rows[0] + 1,
        columns[-1] - columns[0] + 1,
    )


def _divided(group: Rectangle, side: int) -> list[Rectangle]:
    """Return a rectangle in parts with so many rows and columns, fewer at the ends."""
    return [
        Rectangle(
            top,
            left,
            min(side, group.top + group.height - top),
            min(side, group.left + group.width - left),
        )
        for top in range(group.top, group.top + group.height, side)
        for left in range(group.left, group.left + group.width, side)
    ]
