"""The methods of this package for ReLU networks.

Lipschitz, SDP-CROWN and branch and bound on top of it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from functools import partial
from typing import Callable, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import UnsupportedModelError
from ..perturbations import Region, take_rows
from ..tracing.clean_pass import CHANGING
from ..tracing.staleness import Watch
from .affine_matrices import AffineMatrices
from .branching.branch_and_bound import BranchSettings, branch_and_bound
from .branching.input_splitting import MAX_INPUTS, split_inputs
from .folding import folded
from .intermediate_bounds import (
    crown_intermediate_bounds,
    initial_bounds,
    optimized_intermediate_bounds,
)
from .lipschitz.constants import LipschitzConstants, l1_radius
from .problem import IntermediateBounds, Problem
from .receptive_fields import ReceptiveFields
from .relaxations.sdp_crown import OptimizerSettings, optimized_bounds
from .relu_network import ReluNetwork
from .sparse_crown import interval_bounds, sparse_crown_bounds

_MAX_ELEMENTS = 1 << 26  # linear forms times neurons that are worked on at once

#: Bounds linear forms (R, K), each on one of a problem's examples (R,), from below.
_Bounds = Callable[[Problem, Tensor, Tensor], Tensor]


class _Stage(NamedTuple):
    """One try at bounds: on which sets, and how well the hidden layers are bounded first."""

    regions: Sequence[Region]
    crown: bool
    tighten: bool = False
    lipschitz: bool = True


class Verifier:
    """Lower bounds of a piecewise-linear network's outputs, by the methods of this package.

    Args:
        model: The network; eval mode.
        iterations: Steps that optimisers take; None: their own number.
    """

    def __init__(self, model: nn.Module, iterations: int | None = None) -> None:
        self._model, self._state = model, None
        self._rounds = {} if iterations is None else {"rounds": (iterations,)}

    def is_stale(self, x: Tensor) -> bool:
        """Whether the network must be read (anew) for inputs like x."""
        return self._state is None or not self._state.is_of(self._model, x)

    def network(self, x: Tensor) -> ReluNetwork:
        """Return the network for inputs like x, read anew when the model or input shape changes.

        Raises:
            UnsupportedModelError: It is not piecewise linear.
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
            UnsupportedModelError: Something in the network is not piecewise linear.
        """
        x = torch.cat([region.center for region in regions])
        state = self._state_of(x)
        if method == "Lipschitz":
            return self._lipschitz(state, regions, x, v)
        if method == "IBP":
            return self._best(
                state,
                [_Stage(regions, crown=False, lipschitz=False)],
                v,
                math.inf,
                lambda problem, example, v: interval_bounds(state.windows, problem, example, v)[1],
            )
        if method == "Sparse-CROWN":
            return self._best(
                state,
                [_Stage(regions, crown=False, lipschitz=False)],
                v,
                enough,
                partial(sparse_crown_bounds, state.windows, enough=enough),
            )
        settings = OptimizerSettings(enough=enough, **self._rounds)
        return self._best(
            state,
            self._stages(regions, method == "SDP-CROWN-Optimized"),
            v,
            enough,
            lambda problem, example, v: optimized_bounds(
                problem.rows(example), v, settings, None if enough == math.inf else example
            ),
        )

    @torch.no_grad()
    def intermediate_bounds(self, regions: Sequence[Region], method: str) -> IntermediateBounds:
        """Return where a method knows the layers in front of the ReLUs to lie on some regions.

        Args:
            regions: (centre, set) pairs, together B examples.
            method: As in :meth:`lower_bounds`; of several tries that it may take, the one with
                the tightest sets.

        Returns:
            Sets, one row per example.
        """
        state = self._state_of(torch.cat([region.center for region in regions]))
        if method == "Sparse-CROWN":
            ends = self._hidden(state, _Stage(regions, crown=False, lipschitz=False), regions)
            return crown_intermediate_bounds(state.windows, regions, ends, intersect=False)
        stage = _Stage(
            regions, crown=method != "Lipschitz", tighten=method == "SDP-CROWN-Optimized"
        )
        return self._hidden(state, stage, regions)

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
            settings: Of the search.

        Returns:
            Lower bounds, (S,); positive where proved.
        """
        state, found = self._state_of(region.center), v.new_full((len(v),), -math.inf)
        if region.center.numel() <= MAX_INPUTS:  # cells of few inputs are decided sooner than ReLUs
            end = (
                min(deadline, time.perf_counter() + 10)
                if deadline == math.inf
                else (time.perf_counter() + (deadline - time.perf_counter()) / 2)
            )
            found = split_inputs(
                region, v, lambda cells, v: self.lower_bounds([cells], v, "Sparse-CROWN", 0.0), end
            )
        # Splitting at once is often quicker than optimising the hidden layers first; for boxes it
        # seldom is.
        stages = [_Stage([region], crown=True, tighten=True)]
        if not region.perturbation.is_box():
            stages.insert(0, _Stage([region], crown=False))
        for place, stage in enumerate(stages):
            rows = (~(found > settings.enough)).nonzero().squeeze(1)
            if not len(rows):
                break
            now = time.perf_counter()
            end = now + (deadline - now) / (len(stages) - place)
            # What holds on the whole ball holds on its part in the pixel range, and is cheaper to
            # find.
            used = (
                region._replace(perturbation=region.perturbation.unclipped())
                if stage is not stages[-1]
                else region
            )
            hidden = self._hidden(state, stage, [region], end)
            problem = folded(state.matrices, Problem(state.network, [used], hidden))
            found[rows] = torch.maximum(
                found[rows], branch_and_bound(problem, v[rows], end, settings)
            )
        return found

    @torch.no_grad()
    def _lipschitz(
        self, state: _NetworkState, regions: Sequence[Region], x: Tensor, v: Tensor
    ) -> Tensor:
        """``v . f(x) - r ||v A|| - sum_i r_i ||v A_i||``.

        The clean value less what the last layer makes of balls.
        """
        network, moves = state.network, state.constants(x).moves(regions)
        reach, reach_1 = (
            torch.cat([one.perturbation.l2_radius(one.center) for one in regions]),
            l1_radius(regions),
        )
        flat = v.flatten(0, 1)
        _, at_input, at_relus = network.maps(len(flat), x).pull(
            len(network.shapes) - 1, flat.view(len(flat), *network.shapes[-1])
        )
        value = (v * network.layers(x)[-1].flatten(1).unsqueeze(1)).sum(2)
        if at_input is not None:
            in_l2, in_l1 = (
                torch.linalg.vector_norm(at_input.flatten(1), dual, dim=1).view_as(value)
                for dual in (2, math.inf)
            )
            value = value - torch.fmin(reach.unsqueeze(1) * in_l2, reach_1.unsqueeze(1) * in_l1)
        for part, move in zip(at_relus, moves.layers):
            if part is not None:
                value = value - move.unsqueeze(1) * torch.linalg.vector_norm(
                    part.flatten(1), dim=1
                ).view_as(value)
        return value

    def _best(
        self,
        state: _NetworkState,
        stages: Sequence[_Stage],
        v: Tensor,
        enough: float,
        bounds: _Bounds,
    ) -> Tensor:
        """Return the best bounds of some stages.

        Each sees what the ones before it have not brought above enough.
        """
        best, whole = v.new_full(v.shape[:2], -math.inf), stages[0].regions
        repeated = (v == v[:, :1]).all(2)  # how a specification is padded
        repeated[:, 0] = False
        for stage in stages:
            new = torch.cat(
                [
                    torch.full_like(
                        one.center.flatten(1)[:, :1], one is not old or stage.regions is whole
                    )
                    for one, old in zip(stage.regions, whole)
                ]
            ).bool()
            left = (best <= enough) & new & ~repeated
            used = left.any(1).nonzero().squeeze(1)
            if not len(used):  # an empty tensor splits into one empty part
                continue
            for part in used.split(max(1, _MAX_ELEMENTS // (v.shape[1] * state.network.neurons))):
                example, place = left[part].nonzero(as_tuple=True)
                own = take_rows(stage.regions, part)
                problem = Problem(state.network, own, self._hidden(state, stage, own))
                found = bounds(problem, example, v[part[example], place])
                best[part[example], place] = torch.maximum(best[part[example], place], found)
        return torch.where(repeated, best[:, :1], best)

    @staticmethod
    def _stages(regions: Sequence[Region], tighten: bool) -> list[_Stage]:
        """Return the stages of SDP-CROWN, cheap ones first.

        What the Lipschitz constants say of the hidden layers costs nothing, but of boxes they say
        little. Relaxations are not monotone: sometimes the whole ball has the better bound than its
        part in the pixel range.
        """
        stages = [
            _Stage(regions, True, tight) for tight in ((False, True) if tighten else (False,))
        ]
        if not all(one.perturbation.is_box() for one in regions):
            stages.insert(0, _Stage(regions, False))
        if any(
            one.perturbation.clip is not None and not one.perturbation.is_box() for one in regions
        ):
            balls = [
                (
                    one
                    if one.perturbation.is_box() or one.perturbation.clip is None
                    else one._replace(perturbation=one.perturbation.unclipped())
                )
                for one in regions
            ]
            stages.extend([stage._replace(regions=balls) for stage in stages])
        return stages

    def _hidden(
        self,
        state: _NetworkState,
        stage: _Stage,
        regions: Sequence[Region],
        deadline: float = math.inf,
    ) -> IntermediateBounds:
        """Return the hidden layers' sets on some regions of a stage."""
        constants = state.constants(regions[0].center) if stage.lipschitz else None
        hidden = initial_bounds(state.network, regions, constants)
        if stage.crown:
            hidden = crown_intermediate_bounds(state.windows, regions, hidden)
        if not stage.tighten:
            return hidden
        settings = OptimizerSettings(**{"rounds": (20,), **self._rounds})
        return optimized_intermediate_bounds(state.windows, regions, hidden, settings, deadline)

    def _state_of(self, x: Tensor) -> _NetworkState:
        """Return the network's state, made anew where it or the input's shape has changed.

        The network has changed where a weight or a buffer has.
        """
        if self.is_stale(x):
            self._state = _NetworkState(self._model, x)
        return self._state


class _NetworkState:
    """A network as affine maps, and what is worked out once for its weights."""

    def __init__(self, model: nn.Module, x: Tensor) -> None:
        for name, layer in model.named_modules():
            if layer.training and isinstance(layer, CHANGING):
                raise UnsupportedModelError(
                    f"model: {layer} at {name!r} is in training mode, which this package's own "
                    "methods do not bound; call eval() on it, or use IBP, CROWN-IBP or CROWN"
                )
        self._watch = Watch(model)
        self.network = ReluNetwork(model, x)
        self._watch.settle()
        self.matrices = AffineMatrices(self.network)
        self.windows = ReceptiveFields(self.matrices)
        self._state = [value.detach().clone() for value in (*model.parameters(), *model.buffers())]
        self._modes = [layer.training for layer in model.modules()]
        self._constants: LipschitzConstants | None = None

    def is_of(self, model: nn.Module, x: Tensor) -> bool:
        """Whether the model is as it was, and inputs like x can be bounded."""
        state = [*model.parameters(), *model.buffers()]
        return (
            self.network.input_shape == x.shape[1:]
            and not self._watch.is_stale()
            and self._modes == [layer.training for layer in model.modules()]
            and len(state) == len(self._state)
            and all(
                one.device == other.device and one.dtype == other.dtype and torch.equal(one, other)
                for one, other in zip(self._state, state)
            )
        )

    def constants(self, like: Tensor) -> LipschitzConstants:
        """Return the network's Lipschitz constants."""
        if self._constants is None:
            self._constants = LipschitzConstants(self.network, like)
        return self._constants
