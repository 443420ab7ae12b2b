"""Intermediate bounds: intervals and balls of the hidden layers, from all methods together."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Callable, NamedTuple

import torch
from torch import Tensor

from ..perturbations import PerturbationStack, Region
from .lipschitz.constants import LipschitzConstants
from .problem import IntermediateBounds, Problem
from .receptive_fields import AnyReceptiveField, ReceptiveFields
from .relaxations.ascent import OptimizerSettings
from .relaxations.crown import CrownSlopes, crown_bounds
from .relaxations.sdp_crown import optimized_bounds
from .relu_network import ReluNetwork

_MAX_ELEMENTS = 1 << 19  # linear forms times neurons that are bounded at once

#: Bounds linear forms (R, m) of a receptive field's neurons for some examples from below, (R,).
_Bounds = Callable[[AnyReceptiveField, Tensor, Tensor], Tensor]


@torch.no_grad()
def initial_bounds(
    network: ReluNetwork, regions: Sequence[Region], lipschitz: LipschitzConstants | None = None
) -> IntermediateBounds:
    """Return the bounds of the layers in front of the ReLUs that cost next to nothing.

    An interval is that of IBP (exact for a first Linear or Conv layer) cut with the clean value
    plus and minus how far the neuron moves by its Lipschitz constant. A ball lies around the clean
    value, with the distance that the layer moves as its radius, or that of the ball around the
    interval if it is smaller.

    Args:
        network: The network as affine maps.
        regions: (centre, set) pairs, stacked.
        lipschitz: The network's constants; None does without.

    Returns:
        Intervals and balls of each layer, one row per example of the stack.
    """
    x = torch.cat([region.center for region in regions])
    center = [value.flatten(1) for value in network.layers(x)[:-1]]
    intervals = network.intervals(PerturbationStack(regions))
    lower, upper = [interval[0] for interval in intervals], [interval[1] for interval in intervals]
    moves = None if lipschitz is None else lipschitz.moves(regions)
    if moves is not None:
        lower = [
            torch.maximum(bound, value - move)
            for bound, value, move in zip(lower, center, moves.neurons)
        ]
        upper = [
            torch.minimum(bound, value + move)
            for bound, value, move in zip(upper, center, moves.neurons)
        ]
    # Rounding may leave the centre just outside, which a large multiplier of the ball would make
    # much of.
    lower = [torch.minimum(bound, value) for bound, value in zip(lower, center)]
    upper = [torch.maximum(bound, value) for bound, value in zip(upper, center)]
    radius = [
        torch.linalg.vector_norm(torch.maximum(above - value, value - below), dim=1)
        for below, above, value in zip(lower, upper, center)
    ]
    if moves is not None:
        radius = [torch.minimum(length, move) for length, move in zip(radius, moves.layers)]
    return IntermediateBounds(lower, upper, center, radius)


def crown_intermediate_bounds(
    receptive_fields: ReceptiveFields,
    regions: Sequence[Region],
    hidden: IntermediateBounds,
    intersect: bool = True,
) -> IntermediateBounds:
    """Return the bounds with those of CROWN for every unstable neuron, layer by layer.

    Args:
        receptive_fields: The receptive fields of the network.
        regions: (centre, set) pairs, stacked.
        hidden: The bounds to start from.
        intersect: Whether an interval is the intersection of CROWN's and the given one. CROWN's
            alone are the host's: its slopes jump where an interval shrinks, so that neither has
            always the better bounds behind it.

    Returns:
        Bounds, inside the given ones if intersected.

    Source: Zhang et al. 2018 (CROWN).
    """

    def start(layer: int, intermediate: IntermediateBounds) -> _Bounds:
        """Return CROWN's bounds of a layer's neurons, from the bounds of the layers before."""
        slopes = CrownSlopes.of(intermediate, layer)
        return lambda receptive_field, rows, v: crown_bounds(
            receptive_field.network,
            receptive_field.regions(regions, rows),
            CrownSlopes(*[receptive_field.rows(field, rows) for field in slopes]),
            v,
        )

    both_sides = intersect and not PerturbationStack(regions).is_box()
    first = int(receptive_fields.first_is_exact)
    return _tightened(receptive_fields, hidden, start, first, intersect, both_sides)


def optimized_intermediate_bounds(
    receptive_fields: ReceptiveFields,
    regions: Sequence[Region],
    hidden: IntermediateBounds,
    settings: OptimizerSettings = OptimizerSettings(rounds=(20,)),
    deadline: float = math.inf,
) -> IntermediateBounds:
    """Return the bounds with optimised ones for every unstable neuron, layer by layer.

    Args:
        receptive_fields: The receptive fields of the network.
        regions: (centre, set) pairs, stacked.
        hidden: The bounds to start from.
        settings: Settings of the optimiser; at the default the bounds of a neuron are optimised no
            further once it is stable.
        deadline: Value of ``time.perf_counter()`` from which on the bounds stay as they are.

    Returns:
        Bounds inside the given ones.
    """

    def start(layer: int, intermediate: IntermediateBounds) -> _Bounds:
        """Return optimised bounds of a layer's neurons, from the bounds of the layers before."""

        def bounds(receptive_field: AnyReceptiveField, rows: Tensor, v: Tensor) -> Tensor:
            """Return optimised bounds of a receptive field's neurons."""
            lower, upper, center = (receptive_field.rows(field, rows) for field in intermediate[:3])
            radius = [layer_radius[rows] for layer_radius in intermediate.radius[:layer]]
            problem = Problem(
                receptive_field.network,
                receptive_field.regions(regions, rows),
                IntermediateBounds(lower, upper, center, radius),
            )
            return optimized_bounds(problem, v, settings)

        return bounds

    both_sides = not PerturbationStack(regions).is_box()
    return _tightened(receptive_fields, hidden, start, both_sides=both_sides, deadline=deadline)


@torch.no_grad()
def _tightened(
    receptive_fields: ReceptiveFields,
    hidden: IntermediateBounds,
    start: Callable[[int, IntermediateBounds], _Bounds],
    first: int = 1,
    intersect: bool = True,
    both_sides: bool = True,
    deadline: float = math.inf,
) -> IntermediateBounds:
    """Bound every unstable neuron, layer by layer, from the layers before as they are by then."""
    lower, upper, center, radius = ([*field] for field in hidden)
    for layer in range(first, len(lower)):
        bounds = start(layer, IntermediateBounds(lower, upper, center, radius))
        signed_bounds = torch.stack([lower[layer], -upper[layer]])  # lower bounds of z and of -z
        unstable = (signed_bounds < 0).all(0)
        for receptive_field in receptive_fields.of(layer, signed_bounds, int(unstable.sum())):
            example, column = unstable[:, receptive_field.neurons].nonzero(as_tuple=True)
            chunks = _Chunks(
                signed_bounds, center[layer], receptive_field, bounds, intersect, deadline
            )
            chunks.tighten(example, column, both_sides)
        lower[layer], upper[layer] = signed_bounds[0], -signed_bounds[1]
        box = torch.maximum(upper[layer] - center[layer], center[layer] - lower[layer])
        radius[layer] = torch.minimum(radius[layer], torch.linalg.vector_norm(box, dim=1))
    return IntermediateBounds(lower, upper, center, radius)


class _Chunks(NamedTuple):
    """Bounds of a receptive field's neurons, worked out some linear forms at a time.

    Args:
        signed_bounds: Lower bounds of z and of -z of the layer, (2, R, n), which are tightened.
        center: The layer's clean values, (R, n).
        receptive_field: The neurons and what they depend on.
        bounds: The bounds of linear forms of the neurons.
        intersect: Whether a bound that is looser than the one before is left out.
        deadline: Value of ``time.perf_counter()`` at which to stop.
    """

    signed_bounds: Tensor
    center: Tensor
    receptive_field: AnyReceptiveField
    bounds: _Bounds
    intersect: bool
    deadline: float

    def tighten(self, example: Tensor, column: Tensor, both_sides: bool) -> None:
        """Bound some neurons on some examples.

        Without ``both_sides`` the bound that the clean value is far from is tightened only where
        the other one has not shown that the neuron is stable: no relaxation of such a neuron asks
        for it. Where little is to do, both are tightened at once.
        """
        field, neurons = self.receptive_field, self.receptive_field.neurons
        near = (self.center[example, neurons[column]] < 0).long()
        if both_sides or 2 * len(near) * field.size <= _MAX_ELEMENTS:
            self._bound(
                torch.stack([near, 1 - near], dim=1).flatten(),
                example.repeat_interleave(2),
                column.repeat_interleave(2),
            )
            return
        self._bound(near, example, column)
        unstable = (self.signed_bounds[:, example, neurons[column]] < 0).all(0)
        self._bound(1 - near[unstable], example[unstable], column[unstable])

    def _bound(self, side: Tensor, example: Tensor, column: Tensor) -> None:
        """Tighten lower (side 0) or upper (side 1) bounds."""
        signed_bounds, neurons = self.signed_bounds, self.receptive_field.neurons
        step = max(1, _MAX_ELEMENTS // self.receptive_field.size)
        for chunk in torch.arange(len(side), device=signed_bounds.device).split(step):
            # An empty tensor splits into one empty chunk.
            if not len(chunk) or time.perf_counter() > self.deadline:
                return
            at = side[chunk], example[chunk], neurons[column[chunk]]
            sign = (1 - 2 * at[0]).to(signed_bounds)
            v = torch.nn.functional.one_hot(column[chunk], len(neurons)) * sign.unsqueeze(1)
            bounds = self.bounds(self.receptive_field, example[chunk], v)
            bounds = torch.maximum(bounds, signed_bounds[at]) if self.intersect else bounds
            signed_bounds[at] = torch.minimum(bounds, sign * self.center[at[1:]])
