"""The verifier: lower bounds of ReLU networks by this package's own methods.

The methods are IBP, Lipschitz constants, Sparse-CROWN, SDP-CROWN, and branch and bound on top.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Callable

import torch
from torch import Tensor, nn

from ..errors import UnsupportedModelError
from ..perturbations import Region, take_rows
from .branching.branch_and_bound import BranchSettings, branch_and_bound
from .branching.input_splitting import MAX_INPUTS, split_inputs
from .folding import folded
from .intermediate_bounds import (
    crown_intermediate_bounds,
    initial_bounds,
    optimized_intermediate_bounds,
)
from .lipschitz.local_constants import local_lipschitz_constants, slopes_on
from .network_state import NetworkState
from .patches.search import PatchResult, PatchSearch, PatchSettings
from .problem import IntermediateBounds, Problem
from .readable import Reading, lipschitz_lower_bounds
from .receptive_fields import ReceptiveFields
from .relaxations.ascent import OptimizerSettings
from .relaxations.sdp_crown import optimized_bounds
from .relu_network import ReluNetwork
from .sparse_crown import interval_bounds, sparse_crown_bounds
from .stages import Stage, sdp_crown_stages, unclipped

_MAX_ELEMENTS = 1 << 26  # linear forms times neurons that are worked on at once
_INPUT_SECONDS = 10  # of splitting the input, where there is no deadline

#: Bounds linear forms (R, K), each on one of a problem's examples (R,), from below.
_Bounds = Callable[[Problem, Tensor, Tensor], Tensor]


class Verifier:
    """Lower bounds of a piecewise-linear network's outputs, by the methods of this package.

    Args:
        model: The network; eval mode.
        iterations: Steps that optimisers take; None: their own number.
    """

    def __init__(self, model: nn.Module, iterations: int | None = None) -> None:
        self._model, self._iterations = model, iterations
        self._state: NetworkState | None = None
        self._reading = Reading(model)

    def is_stale(self, x: Tensor) -> bool:
        """Return whether the network must be read (anew) for inputs like x."""
        return self._state is None or not self._state.is_of(self._model, x)

    def network(self, x: Tensor) -> ReluNetwork:
        """Return the network for inputs like x, read anew when the model or input shape changes.

        Raises:
            UnsupportedModelError: The model is not piecewise linear.
        """
        return self._state_of(x).network

    def lower_bounds(
        self, regions: Sequence[Region], v: Tensor, method: str, enough: float = math.inf
    ) -> Tensor:
        """Bound linear forms of the output from below.

        Args:
            regions: (centre, set) pairs, together B examples.
            v: Linear forms, (B, S, K).
            method: "IBP", "Lipschitz", "Sparse-CROWN", "SDP-CROWN" or "SDP-CROWN-Optimized".
            enough: The search stops for a linear form whose bound is above it, and for an example
                of which the lowest bound does not get there.

        Returns:
            Lower bounds, (B, S).

        Raises:
            UnsupportedModelError: An operator of the network is not piecewise linear.
        """
        if method == "Lipschitz":
            return lipschitz_lower_bounds(self._model, regions, v, self._state_of, self._reading)
        state = self._state_of(torch.cat([region.center for region in regions]))
        if method == "IBP":
            stages = [Stage(regions, crown=False, lipschitz=False)]
            return self._best(state, stages, v, math.inf, partial(_ibp, state.receptive_fields))
        if method == "Sparse-CROWN":
            stages = [Stage(regions, crown=False, lipschitz=False)]
            bounds = partial(sparse_crown_bounds, state.receptive_fields, threshold=enough)
            return self._best(state, stages, v, enough, bounds)
        stages = sdp_crown_stages(regions, method == "SDP-CROWN-Optimized")
        settings = self._settings(OptimizerSettings(enough=enough))
        known = lipschitz_lower_bounds(self._model, regions, v, self._state_of, self._reading)
        return self._best(state, stages, v, enough, partial(_sdp_crown, settings), known)

    def is_readable(self, x: Tensor) -> bool:
        """Return whether the model is piecewise linear; one that is not is read only once."""
        return self._reading.result(lambda: self._state_of(x)) is not None

    @torch.no_grad()
    def intermediate_bounds(self, regions: Sequence[Region], method: str) -> IntermediateBounds:
        """Return a method's bounds of the layers in front of the ReLUs on some regions.

        Args:
            regions: (centre, set) pairs, together B examples.
            method: As in :meth:`lower_bounds`; of a method with several stages, the bounds of the
                tightest one.

        Returns:
            Bounds, one row per example.
        """
        state = self._state_of(torch.cat([region.center for region in regions]))
        if method == "Sparse-CROWN":
            stage = Stage(regions, crown=False, lipschitz=False)
            initial, fields = self._hidden(state, stage, regions), state.receptive_fields
            return crown_intermediate_bounds(fields, regions, initial, intersect=False)
        stage = Stage(regions, crown=method != "Lipschitz", tighten=method == "SDP-CROWN-Optimized")
        return self._hidden(state, stage, regions)

    def lipschitz_constants(
        self, x: Tensor, region: Region | None, v: Tensor, norms: tuple[float, float]
    ) -> Tensor:
        """Return Lipschitz constants (B,) of linear forms of the output, in float64.

        Args:
            x: Inputs, (B, ...).
            region: The set around them; None: the whole input space.
            v: Linear forms, (B, S, K).
            norms: The norms of the input's move, and of the forms' move.
        """
        state = self._state_of(x)
        hidden = None if region is None else self.intermediate_bounds([region], "SDP-CROWN")
        slopes = slopes_on(state.network, x, hidden)
        return local_lipschitz_constants(state.network, state.constants(x), slopes, v, norms)

    def bound_patches(
        self,
        x: Tensor,
        size: tuple[int, int],
        v: Tensor,
        enough: Tensor,
        deadline: float,
        settings: PatchSettings,
    ) -> PatchResult:
        """Bound linear forms of the output, (B, S, K), on images with a patch anywhere.

        Args: as of :class:`.patches.search.PatchSearch`, and the deadline of its ``run``.

        Raises:
            UnsupportedModelError: The model is not piecewise linear, or its matrices are too large.
        """
        state = self._state_of(x)
        if not state.reaches.affordable():
            raise UnsupportedModelError(
                "model: the affine maps between its ReLUs are too large to be written out; use "
                "place by place IBP"
            )
        search = PatchSearch(state.network, state.reaches, x, v, enough, size, settings)
        return search.run(deadline)

    def branch_and_bound(
        self,
        region: Region,
        v: Tensor,
        deadline: float = math.inf,
        settings: BranchSettings = BranchSettings(),
    ) -> Tensor:
        """Prove linear forms of the output positive on a set around one input, by branch and bound.

        Args:
            region: The set, around one input.
            v: Linear forms, (S, K).
            deadline: Value of ``time.perf_counter()`` at which to stop.
            settings: Settings of the search.

        Returns:
            Lower bounds, (S,); positive where proved.
        """
        state, bounds = self._state_of(region.center), v.new_full((len(v),), -math.inf)
        if region.center.numel() <= MAX_INPUTS:  # cells of few inputs are decided sooner than ReLUs
            bounds = self._split_inputs(region, v, deadline)
        # Splitting at once is often quicker than optimising the hidden layers first; for boxes it
        # seldom is.
        stages = [Stage([region], crown=True, tighten=True)]
        if not region.perturbation.is_box():
            stages.insert(0, Stage([region], crown=False))
        for index, stage in enumerate(stages):
            rows = (~(bounds > settings.enough)).nonzero().squeeze(1)
            if not len(rows):
                break
            now = time.perf_counter()
            end = now + (deadline - now) / (len(stages) - index)
            # What holds on the ball holds on its part in the pixel range, and is cheaper to find.
            used = region if stage is stages[-1] else unclipped(region)
            hidden = self._hidden(state, stage, [region], end)
            problem = folded(state.matrices, Problem(state.network, [used], hidden))
            proved = branch_and_bound(problem, v[rows], end, settings)
            bounds[rows] = torch.maximum(bounds[rows], proved)
        return bounds

    def _split_inputs(self, region: Region, v: Tensor, deadline: float) -> Tensor:
        """Bound linear forms by splitting the input, for half the time that there is."""
        now = time.perf_counter()
        end = now + (_INPUT_SECONDS if deadline == math.inf else (deadline - now) / 2)

        def bounds(cells: Region, v: Tensor) -> Tensor:
            return self.lower_bounds([cells], v, "Sparse-CROWN", 0.0)

        return split_inputs(region, v, bounds, end)

    def _best(
        self,
        state: NetworkState,
        stages: Sequence[Stage],
        v: Tensor,
        threshold: float,
        bounds: _Bounds,
        known: Tensor | None = None,
    ) -> Tensor:
        """Return the best of some stages' bounds and of those that are known.

        Each stage works on the bounds that the stages before have not brought above the threshold.
        """
        best = v.new_full(v.shape[:2], -math.inf) if known is None else known.clone()
        first_regions = stages[0].regions
        repeated = (v == v[:, :1]).all(2)  # how a specification is padded
        repeated[:, 0] = False
        for stage in stages:
            is_open = (best <= threshold) & ~repeated
            if stage.regions is not first_regions:
                is_open &= stage.differs_from(first_regions)
            used = is_open.any(1).nonzero().squeeze(1)
            if not len(used):  # an empty tensor splits into one empty chunk
                continue
            for chunk in used.split(max(1, _MAX_ELEMENTS // (v.shape[1] * state.network.neurons))):
                example, column = is_open[chunk].nonzero(as_tuple=True)
                regions = take_rows(stage.regions, chunk)
                problem = Problem(state.network, regions, self._hidden(state, stage, regions))
                chunk_bounds = bounds(problem, example, v[chunk[example], column])
                at = chunk[example], column
                best[at] = torch.maximum(best[at], chunk_bounds)
        return torch.where(repeated, best[:, :1], best)

    def _hidden(
        self,
        state: NetworkState,
        stage: Stage,
        regions: Sequence[Region],
        deadline: float = math.inf,
    ) -> IntermediateBounds:
        """Return the bounds of the hidden layers on some regions of a stage."""
        constants = state.constants(regions[0].center) if stage.lipschitz else None
        hidden = initial_bounds(state.network, regions, constants)
        if stage.crown:
            hidden = crown_intermediate_bounds(state.receptive_fields, regions, hidden)
        if not stage.tighten:
            return hidden
        settings = self._settings(OptimizerSettings(rounds=(20,)))
        return optimized_intermediate_bounds(
            state.receptive_fields, regions, hidden, settings, deadline
        )

    def _settings(self, settings: OptimizerSettings) -> OptimizerSettings:
        """Return settings of the optimiser with the steps that the verifier is to take."""
        if self._iterations is None:
            return settings
        return replace(settings, rounds=(self._iterations,))

    def _state_of(self, x: Tensor) -> NetworkState:
        """Return the state, made anew where a weight, a buffer or the input's shape has changed."""
        if self._state is None or self.is_stale(x):
            self._state = NetworkState(self._model, x)
        return self._state


def _ibp(fields: ReceptiveFields, problem: Problem, example: Tensor, v: Tensor) -> Tensor:
    """Return the lower bounds of linear forms from the hidden intervals."""
    return interval_bounds(fields, problem, example, v)[1]


def _sdp_crown(settings: OptimizerSettings, problem: Problem, example: Tensor, v: Tensor) -> Tensor:
    """Return optimised lower bounds of linear forms; without a threshold each for itself."""
    groups = None if settings.enough == math.inf else example
    return optimized_bounds(problem.rows(example), v, settings, groups)
