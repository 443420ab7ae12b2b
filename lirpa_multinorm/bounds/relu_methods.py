"""The methods of this package for ReLU networks: Lipschitz, SDP-CROWN and branch and bound on top of it."""

from __future__ import annotations

import math
import time
from typing import List, Optional, Sequence

import torch
from torch import Tensor

from ..errors import UnsupportedModelError
from ..perturbations import Region, take_rows
from .branch_and_bound import BranchSettings, branch_and_bound
from .hidden_sets import hidden_sets, tightened_sets
from .lipschitz import LipschitzBounds, lipschitz_bounds
from .relu_network import ReluNetwork
from .sdp_crown import OptimizerSettings, optimized_bounds

_MAX_ELEMENTS = 1 << 26  # functionals times neurons that are worked on at once

RELU_METHODS = ("Lipschitz", "SDP-CROWN", "SDP-CROWN-Optimized")


class ReluMethods:
    """Lower bounds of linear functionals of a ReLU network's output, by methods that the host does not have.

    Args:
        bounded: The module to bound; eval mode.
    """

    def __init__(self, bounded) -> None:
        self._bounded, self._state, self._constants = bounded, None, None

    def lower(self, regions: Sequence[Region], v: Tensor, method: str, enough: float = math.inf) -> Tensor:
        """Bound functionals of the output from below.

        Args:
            regions: (centre, set) pairs, together B examples.
            v: Functionals, (B, S, K).
            method: One of :data:`RELU_METHODS`.
            enough: The search stops for a functional whose bound is above it, and for an example of which the lowest
                bound does not get there.

        Returns:
            Lower bounds, (B, S).

        Raises:
            UnsupportedModelError: Something in the network is neither affine nor a ReLU, or (Lipschitz) it is too
                large.
        """
        x = torch.cat([region.center for region in regions])
        network = ReluNetwork(self._bounded, x)
        if method == "Lipschitz":
            return self._lipschitz(network, regions, x, v)
        return self._sdp_crown(network, regions, v, OptimizerSettings(enough=enough), method == "SDP-CROWN-Optimized")

    def branch(self, region: Region, v: Tensor, deadline: float = math.inf,
               settings: BranchSettings = BranchSettings()) -> Tensor:
        """Prove functionals of the output positive on a set around one input, by branch and bound.

        Args:
            region: The set, around one input.
            v: Functionals, (S, K).
            deadline: Value of ``time.perf_counter()`` at which to stop.
            settings: Of the search.

        Returns:
            Lower bounds, (S,); positive where proved.
        """
        network, found = ReluNetwork(self._bounded, region.center), v.new_full((len(v),), -math.inf)
        constants = self._constants_or_none(network, v)
        # Splitting at once is often quicker than optimising the hidden layers first; for boxes it seldom is.
        stages = [(("IBP", "CROWN"), True)]
        if constants is not None and not region.perturbation.is_box():
            stages.insert(0, (("IBP",), False))
        for place, (methods, tight) in enumerate(stages):
            rows = (~(found > 0)).nonzero().squeeze(1)
            if not len(rows):
                break
            now = time.perf_counter()
            end = now + (deadline - now) / (len(stages) - place)
            hidden = hidden_sets(self._bounded, network, [region], constants, methods)
            if tight:
                hidden = tightened_sets(network, [region], hidden, deadline=end)
            same = torch.zeros_like(rows)
            found[rows] = torch.maximum(found[rows], branch_and_bound(network, region.rows(same), v[rows],
                                                                      hidden.rows(same), end, settings))
        return found

    @torch.no_grad()
    def _lipschitz(self, network: ReluNetwork, regions: Sequence[Region], x: Tensor, v: Tensor) -> Tensor:
        """``v . f(x) - r sum_i L_i ||v A_i||``: the clean value less what the last layer can make of the balls."""
        constants = self.constants(network, x)
        reach = torch.cat([region.perturbation.l2_radius(region.center) for region in regions])
        flat = v.flatten(0, 1)
        _, at_input, at_relus = network.maps(len(flat), x).pull(len(network.shapes) - 1, flat)
        fall = torch.zeros_like(flat[:, 0])
        for part, length in zip([at_input, *at_relus], [1.0, *constants.layers]):
            if part is not None:
                fall += length * torch.linalg.vector_norm(part.flatten(1), dim=1)
        value = (v * network.layers(x)[-1].flatten(1).unsqueeze(1)).sum(2)
        return value - reach.unsqueeze(1) * fall.view_as(value)

    def _sdp_crown(self, network: ReluNetwork, regions: Sequence[Region], v: Tensor, settings: OptimizerSettings,
                   tighten: bool) -> Tensor:
        constants = self._constants_or_none(network, v)
        best = v.new_full(v.shape[:2], -math.inf)
        for whole, methods, tight in self._stages(regions, constants, tighten):
            new = torch.cat([torch.full_like(one.center.flatten(1)[:, :1], one is not old or whole is regions)
                             for one, old in zip(whole, regions)]).bool()
            left = (best <= settings.enough) & new
            used = left.any(1).nonzero().squeeze(1)
            if not len(used):  # an empty tensor splits into one empty part
                continue
            for part in used.split(max(1, _MAX_ELEMENTS // (v.shape[1] * network.neurons))):
                example, place = left[part].nonzero(as_tuple=True)
                own = take_rows(whole, part)
                hidden = hidden_sets(self._bounded, network, own, constants, methods)
                if tight:
                    hidden = tightened_sets(network, own, hidden)
                found = optimized_bounds(network, take_rows(own, example), v[part[example], place],
                                         hidden.rows(example), settings,
                                         groups=None if settings.enough == math.inf else example)
                best[part[example], place] = torch.maximum(best[part[example], place], found)
        return best

    @staticmethod
    def _stages(regions: Sequence[Region], constants: Optional[LipschitzBounds], tighten: bool) -> List[tuple]:
        """Return (regions, methods for the hidden layers, whether to optimise these bounds too), cheap ones first.

        What the Lipschitz constants say of the hidden layers costs nothing, but of boxes they say little. Relaxations
        are not monotone: sometimes the whole ball has the better bound than its part in the pixel range.
        """
        stages = [(regions, ("IBP", "CROWN"), tight) for tight in ((False, True) if tighten else (False,))]
        if constants is not None and not all(one.perturbation.is_box() for one in regions):
            stages.insert(0, (regions, ("IBP",), False))
        if any(one.perturbation.clip is not None and not one.perturbation.is_box() for one in regions):
            balls = [one if one.perturbation.is_box() or one.perturbation.clip is None else
                     one._replace(perturbation=one.perturbation.unclipped()) for one in regions]
            stages.extend([(balls, methods, tight) for _, methods, tight in stages])
        return stages

    def _constants_or_none(self, network: ReluNetwork, like: Tensor) -> Optional[LipschitzBounds]:
        try:
            return self.constants(network, like)
        except UnsupportedModelError:  # too large: the intervals alone give the balls
            return None

    def constants(self, network: ReluNetwork, like: Tensor) -> LipschitzBounds:
        """Return the network's Lipschitz constants, computed anew when a weight or buffer has changed."""
        state = [value.detach() for value in self._bounded.state_dict().values()]
        same = self._state is not None and len(self._state) == len(state) and all(
            one.device == other.device and torch.equal(one, other) for one, other in zip(self._state, state))
        if not same:
            self._constants = lipschitz_bounds(network, like)
            self._state = [value.clone() for value in state]
        return self._constants
