"""Several (centre, set) pairs as one batch that the host propagates in one pass."""

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
    """A set put around centres of its own.

    Args:
        center: Tensor of shape (B, ...).
        perturbation: The set around each of them.
    """

    center: Tensor
    perturbation: PerturbationLpBox

    def rows(self, index: Tensor) -> Region:
        """Return the region of some of the centres; what is given per example follows them."""
        return Region(self.center[index], self.perturbation.of_images(index, self.center))

    def columns(self, pixels: Tensor) -> Region:
        """Return the region as linear forms of some pixels see it, with flat centres (B, m)."""
        return Region(
            self.center.flatten(1)[:, pixels], self.perturbation.of_pixels(pixels, self.center)
        )


def take_rows(regions: Sequence[Region], index: Tensor) -> list[Region]:
    """Return the regions of some rows of the stacked batch.

    Raises:
        InvalidArgumentError: There are several regions, and ``index`` does not rise: rows would
            change places.
    """
    if len(regions) > 1 and bool((index[1:] < index[:-1]).any()):
        raise InvalidArgumentError(
            "index must rise where there are several regions, so that rows keep their order"
        )
    found, start = [], 0
    for region in regions:
        stop = start + len(region.center)
        own = index[(index >= start) & (index < stop)] - start
        if len(own):
            found.append(region.rows(own))
        start = stop
    return found


class PerturbationStack(host.PerturbationLpNorm):
    """Regions stacked along the batch; each slice is concretised by its own set.

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
        self._box, self._base = None, None

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
        """Return whether every set is a box, so that interval arithmetic sees all there is."""
        return all(region.perturbation.is_box() for region in self.regions)

    def box(self) -> tuple[Tensor, Tensor]:
        """Return (x_L, x_U), the smallest box around each set, stacked."""
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
        """Return the bound of the linear forms A over each slice's own set, shape (B, S).

        Args:
            x: Stacked centres (only their shape is used).
            A: Tensor (B, S, *input), host patches or identity; None gives None.
            sign: -1 for lower bounds, +1 for upper bounds.
            aux: Unused (part of the host's protocol).
        """
        if A is None:
            return None
        rows, (x_L, x_U) = as_rows(A, x.shape[1:]), self.box()
        if (
            self._base is None
        ):  # where each set is widest both ways: a box's middle, a ball's centre
            self._base = torch.cat(
                [
                    (x_L[index] + x_U[index]) / 2 if region.perturbation.is_box() else region.center
                    for index, region in self.slices()
                ]
            )
        value, deviations = rows.apply(self._base), []
        for index, (center, perturbation) in self.slices():
            part = rows[index]
            if perturbation.is_box():
                deviations.append(part.apply_abs((x_U[index] - x_L[index]) / 2))
            else:
                ends, eps = perturbation.offsets(center), perturbation.radius(center)
                deviation = perturbation.deviation(part, ends, eps, sign)
                deviations.append(deviation.expand_as(value[index]))
        return host.shaped_bound(value + sign * torch.cat(deviations), A, x.shape[1:])

    def __repr__(self) -> str:
        return f"PerturbationStack({[region.perturbation for region in self.regions]})"
