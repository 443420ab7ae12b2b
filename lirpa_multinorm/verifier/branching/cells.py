"""Certification of transforms by splitting their parameters, as finely as each image needs.

A cell is a box of parameters. Interval arithmetic bounds the network on the range of its pixels.
Where that proves nothing, the pixels are linear forms of the parameters; DeepZ bounds the network
on them, and CROWN what is nearly proved. A cell that stays open is cut in two along the parameter
that most of the ReLUs' slack falls to. Where the network fails at an open cell's middle,
the image has a counterexample and its search ends.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ...transforms import exact_range, linear_forms, transformed
from ...transforms.forms import LinearForms
from ..relu_network import ReluNetwork
from ..zonotope import (
    IntervalBounds,
    interval_bounds,
    slack_by_parameter,
    zonotope_bounds,
    zonotope_crown,
)

_CHUNK = 256  # cells that are bounded at once
_TOGETHER = 64  # images that are searched side by side
_FIRST_GAIN = 0.3  # what CROWN is first expected to close of what DeepZ's bounds lack
_EXPLORED = 8  # CROWN is tried on one cell of so many wherever DeepZ leaves it open
_SUSPECT = 0.5  # share from which the middle of a cell may be a counterexample
_HOPELESS = 0.9  # share from which a cell is cut in four at once
_NEGLIGIBLE = 0.04  # share of the pixels' moves below which a parameter gets no generator


class CellSettings(NamedTuple):
    """Settings of a search.

    Args:
        max_cells: Cells to bound for each image, at most.
    """

    max_cells: int = 4000


class CellResult(NamedTuple):
    """What a search has found for B images.

    Args:
        bounds: Lower bounds of the linear forms on all transforms, (B, R); -inf where a cell is
            left open.
        broken: Parameters of a transform under which a linear form is not positive, by image.
        cells: Cells that were bounded, (B,).
        passes: Forward passes of the network that they took, (B,): one for a cell's intervals, one
            for each generator where these do not do, and half a pass for each linear form that
            CROWN propagated backward.
    """

    bounds: Tensor
    broken: dict[int, Tensor]
    cells: Tensor
    passes: Tensor


class _Cells(NamedTuple):
    """Boxes of parameters, each of an image, and the best bounds there.

    Args:
        image: (N,).
        lower: (N, 7).
        upper: (N, 7).
        bounds: (N, R).
    """

    image: Tensor
    lower: Tensor
    upper: Tensor
    bounds: Tensor

    def rows(self, index: Tensor) -> _Cells:
        return _Cells(*(field[index] for field in self))

    def joined(self, others: _Cells) -> _Cells:
        return _Cells(*(torch.cat(fields) for fields in zip(self, others)))


class CellSearch:
    """A search over the cells of some images' transforms.

    Args:
        network: The network.
        images: (B, C, H, W), in [0, 1].
        C: Linear forms of the output for each image, (B, R, K).
        enough: What their bounds must exceed, (B, R); -inf for a form that is not asked for.
        cells: The first cells' bounds, (lower, upper), (N, 7) each.
        active: The parameters with a width.
        settings: Of the search.
    """

    def __init__(
        self,
        network: ReluNetwork,
        images: Tensor,
        C: Tensor,
        enough: Tensor,
        cells: tuple[Tensor, Tensor],
        active: Sequence[int],
        settings: CellSettings = CellSettings(),
    ) -> None:
        self._network, self._images, self._C, self._enough = network, images, C, enough
        self._active, self._settings = list(active), settings
        lower, upper = (end.to(images) for end in cells)
        # Images that share a cell stand side by side; what their pixels share is found once.
        groups = torch.arange(len(images), device=images.device).split(_TOGETHER)
        image = torch.cat([group.repeat(len(lower)) for group in groups])
        cell = torch.cat(
            [
                torch.arange(len(lower), device=images.device).repeat_interleave(len(group))
                for group in groups
            ]
        )
        bounds = images.new_full((len(image), C.shape[1]), -math.inf)
        self._open = _Cells(image, lower[cell], upper[cell], bounds)
        self._crown_gain = _FIRST_GAIN
        zeros = images.new_zeros(len(images))
        self._result = CellResult(
            images.new_full((len(images), C.shape[1]), math.inf), {}, zeros.long(), zeros.clone()
        )

    @torch.no_grad()
    def run(self, deadline: float = math.inf) -> CellResult:
        """Search until every image is decided, out of cells, or the time is over."""
        while len(self._open.image) and time.perf_counter() < deadline:
            # The last ones first, so that some images are finished before the next are begun.
            chunk, start = self._open, max(0, len(self._open.image) - _CHUNK)
            everything = torch.arange(len(chunk.image), device=chunk.image.device)
            self._open = chunk.rows(everything[:start])
            self._step(chunk.rows(everything[start:]))
        self._give_up(self._open.image.unique())
        return self._result

    def _step(self, cells: _Cells) -> None:
        """Bound some cells, and split those that stay open."""
        cells, intervals = self._left_by_intervals(cells)
        if not len(cells.image):
            return
        forms, kept = self._forms(cells)
        bounds, lack, layers = self._bounded(cells, forms, intervals)
        cells = cells._replace(bounds=torch.maximum(cells.bounds, bounds))
        proved = self._proved(cells)
        # Where the bound is not far below the middle's value, the middle is no counterexample.
        self._give_up(self._hopeless(cells.rows(~proved & (lack > _SUSPECT))))
        spent = self._result.cells[cells.image] >= self._settings.max_cells
        self._give_up(cells.image[~proved & spent])
        ended = self._result.bounds[cells.image].isneginf().any(1)
        rows = (~proved & ~ended).nonzero().squeeze(1)
        if len(rows):
            open_layers = [layer.rows(rows) for layer in layers]
            slack = slack_by_parameter(forms.rows(rows), open_layers)
            halves = _split(cells.rows(rows), lack[rows], slack, kept)
            self._open = self._open.joined(halves)

    def _left_by_intervals(self, cells: _Cells) -> tuple[_Cells, IntervalBounds]:
        """Return the cells that interval arithmetic leaves open, with its bounds."""
        box = exact_range(self._images[cells.image], cells.lower, cells.upper)
        intervals = interval_bounds(self._network.graph, box, self._C[cells.image])
        self._count(cells.image, torch.ones_like(intervals.lower[:, 0]), 1)
        cells = cells._replace(bounds=torch.maximum(cells.bounds, intervals.lower))
        left = (~self._proved(cells)).nonzero().squeeze(1)
        return cells.rows(left), intervals.rows(left)

    def _proved(self, cells: _Cells) -> Tensor:
        """Return which cells are proved, (N,), and take note of their bounds."""
        proved = (cells.bounds > self._enough[cells.image]).all(1)
        done = cells.rows(proved)
        index = done.image.unsqueeze(1).expand_as(done.bounds)
        self._result.bounds.scatter_reduce_(0, index, done.bounds, "amin")
        return proved

    def _forms(self, cells: _Cells) -> tuple[LinearForms, Tensor]:
        """Return the pixels of some cells, and the parameters that have a generator, (P,)."""
        forms = linear_forms(self._images[cells.image], cells.lower, cells.upper, self._active)
        moved = forms.generators.abs().flatten(2).sum(2)
        share = moved / moved.sum(1, keepdim=True).clamp(min=torch.finfo(moved.dtype).tiny)
        negligible = (share < _NEGLIGIBLE).all(0)
        negligible[moved.sum(0).argmax()] = False  # one at least is there to be cut
        active = torch.tensor(self._active, device=moved.device)
        return forms.without(negligible), active[~negligible]

    def _bounded(
        self, cells: _Cells, forms: LinearForms, intervals: IntervalBounds
    ) -> tuple[Tensor, Tensor, list[LinearForms]]:
        """Return lower bounds on cells, (N, R), what they lack, (N,), and the layers."""
        C, enough = self._C[cells.image], self._enough[cells.image]
        result = zonotope_bounds(self._network.graph, forms, C, intervals)
        lower = result.lower
        self._count(cells.image, torch.zeros_like(lower[:, 0]), forms.generators.shape[1])
        is_open = torch.maximum(lower, cells.bounds) <= enough
        # What bounds lack, as a share of how far they are below the middle's value.
        below = (result.value - lower).clamp(min=torch.finfo(lower.dtype).tiny)
        lack = torch.where(is_open, (enough - lower) / below, 0.0).amax(1)
        tried = lack < self._crown_gain
        tried[::_EXPLORED] = True
        rows = (is_open & tried.unsqueeze(1)).nonzero(as_tuple=True)
        if len(rows[0]):
            layers = [layer.rows(rows[0]) for layer in result.layers]
            crown = zonotope_crown(self._network, forms.rows(rows[0]), layers, C[rows])
            self._learn((crown - lower[rows]) / below[rows], forms.generators.shape[1])
            lower[rows] = torch.maximum(lower[rows], crown)
            self._count(cells.image[rows[0]], torch.zeros_like(crown), 0.5)
        return lower, lack, result.layers

    def _learn(self, gains: Tensor, generators: int) -> None:
        """Take note of the lack that CROWN closes often enough for its cost.

        It costs about a pass, and spares two cells of a pass and one for each generator.
        """
        self._crown_gain = gains.quantile(1 - 1 / (2 * (1 + generators))).item()

    def _count(self, image: Tensor, cells: Tensor, passes: float) -> None:
        """Count cells, and the passes that each entry took."""
        self._result.cells.index_add_(0, image, cells.long())
        self._result.passes.index_add_(0, image, torch.full_like(cells, passes))

    def _hopeless(self, cells: _Cells) -> Tensor:
        """Return the images that fail at the middle of an open cell, or are too close to it."""
        middle = (cells.lower + cells.upper) / 2
        points = transformed(self._images[cells.image], middle)
        value = torch.matmul(
            self._C[cells.image], self._network.layers(points)[-1].flatten(1).unsqueeze(2)
        ).squeeze(2)
        enough = self._enough[cells.image]
        failed = ((value <= 0) & ~enough.isneginf()).any(1)
        for image, parameters in zip(cells.image[failed].tolist(), middle[failed]):
            self._result.broken.setdefault(image, parameters)
        # No bound on the cell can exceed the middle's value.
        return cells.image[failed | (value <= enough).any(1)].unique()

    def _give_up(self, images: Tensor) -> None:
        """End the search of some images: their bounds say nothing."""
        if len(images):
            self._result.bounds[images] = -math.inf
            kept = ~torch.isin(self._open.image, images)
            self._open = self._open.rows(kept.nonzero().squeeze(1))


def _split(cells: _Cells, lack: Tensor, slack: Tensor, parameters: Tensor) -> _Cells:
    """Return parts of cells: halves along the parameter with the most slack, or quarters.

    Args:
        cells: The cells.
        lack: What their bounds lack, (N,).
        slack: The slack that falls to each parameter, (N, P).
        parameters: The indices of these parameters, (P,).
    """
    most = slack.argmax(1)
    halves = _halves(cells, parameters[most])
    again = (lack > _HOPELESS).repeat(2)
    # A half has half the slack of its cut.
    rest = slack.scatter(1, most.unsqueeze(1), slack.amax(1, keepdim=True) / 2)
    next_cut = parameters[rest.argmax(1)].repeat(2)
    quarters = _halves(halves.rows(again), next_cut[again])
    return halves.rows(~again).joined(quarters)


def _halves(cells: _Cells, parameters: Tensor) -> _Cells:
    """Return the lower and then the upper halves of cells along a parameter of each, (N,)."""
    index = parameters.unsqueeze(1)
    middle = ((cells.lower + cells.upper) / 2).gather(1, index)
    return cells._replace(upper=cells.upper.scatter(1, index, middle)).joined(
        cells._replace(lower=cells.lower.scatter(1, index, middle))
    )
