"""Several (centre, set) pairs as a batch that the host propagates in one pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .. import host
from ..errors import InvalidArgumentError
from .lp_box import PerturbationLpBox
from .rows import as_rows


class Region(NamedTuple):
    """A set around the centres of a batch.

    Args:
        center: Tensor of shape (B, ...).
        perturbation: The set around each centre.
    """

    center: Tensor
    perturbation: PerturbationLpBox

    def rows(self, index: Tensor) -> Region:
        """Return the region of the centres at ``index``, with their radii and ranges."""
        return Region(self.center[index], self.perturbation.of_images(index, self.center))

    def columns(self, pixels: Tensor) -> Region:
        """Return the region projected onto ``pixels``, with flat centres (B, m)."""
        return Region(
            self.center.flatten(1)[:, pixels], self.perturbation.of_pixels(pixels, self.center)
        )


def take_rows(regions: Sequence[Region], index: Tensor) -> list[Region]:
    """Return the regions of the rows of the stacked batch at ``index``.

    Raises:
        InvalidArgumentError: There are several regions, and ``index`` does not rise: rows would
            change their order.
    """
    if len(regions) > 1 and bool((index[1:] < index[:-1]).any()):
        raise InvalidArgumentError(
            "index must rise where there are several regions, so that rows keep their order"
        )
    taken: list[Region] = []
    start = 0
    for region in regions:
        stop = start + len(region.center)
        rows = index[(index >= start) & (index < stop)] - start
        if len(rows):
            taken.append(region.rows(rows))
        start = stop
    return taken


class PerturbationStack(host.PerturbationLpNorm):
    """Regions stacked along the batch; the set of each slice concretises it.

    To the host's interval arithmetic the stack is the smallest box around each set (norm inf),
    which is sound for every operator. The sets themselves act where linear forms of the input are
    concretised, and in the first layer.

    Args:
        regions: (centre, set) pairs; the centres have the same shape behind the batch.
    """

    def __init__(self, regions: Sequence[Region]) -> None:
        super().__init__(eps=0.0)
        # The host views tensors as it goes, which channels-last inputs would break.
        self.regions = [
            Region(center.contiguous(), perturbation) for center, perturbation in regions
        ]
        self._box: tuple[Tensor, Tensor] | None = None
        self._base: Tensor | None = None

    def centers(self) -> Tensor:
        """Return the stacked centres, shape (sum of B, ...)."""
        return torch.cat([region.center for region in self.regions])

    def slices(self) -> Iterator[tuple[slice, Region]]:
        """Yield (slice of the stacked batch, region)."""
        start = 0
        for region in self.regions:
            stop = start + region.center.shape[0]
            yield slice(start, stop), region
            start = stop

    def is_box(self) -> bool:
        """Return whether every set is a box, which interval arithmetic represents exactly."""
        return all(region.perturbation.is_box() for region in self.regions)

    def box(self) -> tuple[Tensor, Tensor]:
        """Return (lower, upper) of the smallest box around each set, stacked."""
        if self._box is None:
            lower, upper = zip(
                *[region.perturbation.enclosing_box(region.center) for region in self.regions]
            )
            self._box = (torch.cat(lower), torch.cat(upper))
        return self._box

    def init(self, x, aux=None, forward=False):
        """Give the host the enclosing boxes as its input interval."""
        if forward:
            raise InvalidArgumentError(
                "method: the host's forward-mode bounds are not supported for these sets; use "
                "IBP, CROWN-IBP, CROWN or CROWN-Optimized"
            )
        self.x_L, self.x_U = self.box()
        return super().init(x, aux=aux, forward=False)

    def concretize(self, x, A, sign=-1, aux=None, **_):
        """Return the bound of the linear forms A over the set of each slice, shape (B, S).

        Args:
            x: Stacked centres (only their shape is used).
            A: Tensor (B, S, *input), host patches or identity; None gives None.
            sign: -1 for lower bounds, +1 for upper bounds.
            aux: Unused (part of the host's protocol).
        """
        if A is None:
            return None
        rows, (lower, upper) = as_rows(A, x.shape[1:]), self.box()
        value, deviations = rows.apply(self._middles()), []
        for index, (center, perturbation) in self.slices():
            if perturbation.is_box():
                deviation = rows[index].apply_abs((upper[index] - lower[index]) / 2)
            else:
                offsets, eps = perturbation.offsets(center), perturbation.radius(center)
                deviation = perturbation.deviation(rows[index], offsets, eps, sign)
                deviation = deviation.expand_as(value[index])
            deviations.append(deviation)
        return host.shaped_bound(value + sign * torch.cat(deviations), A, x.shape[1:])

    def _middles(self) -> Tensor:
        """Return the points from which sets reach equally far both ways: middles or centres."""
        if self._base is None:
            lower, upper = self.box()
            self._base = torch.cat(
                [
                    (lower[index] + upper[index]) / 2
                    if region.perturbation.is_box()
                    else region.center
                    for index, region in self.slices()
                ]
            )
        return self._base

    def __repr__(self) -> str:
        return f"PerturbationStack({[region.perturbation for region in self.regions]})"
