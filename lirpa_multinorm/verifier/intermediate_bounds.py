"""Everything that is known of the hidden layers, put together."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Callable

import torch
from torch import Tensor

from ..perturbations import PerturbationStack, Region
from .lipschitz.constants import LipschitzConstants
from .problem import IntermediateBounds, Problem
from .receptive_fields import AnyReceptiveField, ReceptiveFields
from .relaxations.crown import CrownSlopes, crown_bounds
from .relaxations.sdp_crown import OptimizerSettings, optimized_bounds
from .relu_network import ReluNetwork

_MAX_ELEMENTS = 1 << 19  # linear forms times neurons that are bounded at once

#: Bounds linear forms (R, m) of a window's neurons for some examples from below, (R,).
_Bounds = Callable[[AnyReceptiveField, Tensor, Tensor], Tensor]


@torch.no_grad()
def initial_bounds(
    network: ReluNetwork, regions: Sequence[Region], lipschitz: LipschitzConstants | None = None
) -> IntermediateBounds:
    """Return what is known of the layers in front of the ReLUs at no cost.

    Intervals: by IBP (of a first Linear or Conv layer they are exact), and the clean value plus and
        minus how far the
    neuron moves by its Lipschitz constant. Balls: around the clean value, as far as the layer
    moves, or around the interval if that is smaller.

    Args:
        network: The network as affine maps.
        regions: (centre, set) pairs, stacked.
        lipschitz: The network's constants; None does without.

    Returns:
        Intervals and balls of each layer, one row per example of the stack.
    """
    x = torch.cat([region.center for region in regions])
    center = [value.flatten(1) for value in network.layers(x)[:-1]]
    ends = network.intervals(PerturbationStack(regions))
    lower, upper = [low for low, _ in ends], [high for _, high in ends]
    moves = None if lipschitz is None else lipschitz.moves(regions)
    if moves is not None:
        lower = [
            torch.maximum(low, value - move)
            for low, value, move in zip(lower, center, moves.neurons)
        ]
        upper = [
            torch.minimum(high, value + move)
            for high, value, move in zip(upper, center, moves.neurons)
        ]
    # Rounding may leave the centre just outside, which a large multiplier of the ball would make
    # much of.
    lower = [torch.minimum(low, value) for low, value in zip(lower, center)]
    upper = [torch.maximum(high, value) for high, value in zip(upper, center)]
    radius = [
        torch.linalg.vector_norm(torch.maximum(high - value, value - low), dim=1)
        for low, high, value in zip(lower, upper, center)
    ]
    if moves is not None:
        radius = [torch.minimum(one, move) for one, move in zip(radius, moves.layers)]
    return IntermediateBounds(lower, upper, center, radius)


def crown_intermediate_bounds(
    windows: ReceptiveFields,
    regions: Sequence[Region],
    hidden: IntermediateBounds,
    intersect: bool = True,
) -> IntermediateBounds:
    """Return the sets with CROWN's bounds of every unstable neuron, layer by layer.

    Args:
        windows: Of the network.
        regions: (centre, set) pairs, stacked.
        hidden: What is known already.
        intersect: Whether an interval is the intersection of CROWN's and the given one. CROWN's
            alone are the host's: its slopes jump where an interval shrinks, so that neither has
            always the better bounds behind it.

    Returns:
        Sets, inside the given ones if intersected.

    Source: Zhang et al. 2018 (CROWN).
    """

    def start(layer: int, known: IntermediateBounds) -> _Bounds:
        """Return CROWN's bounds of a layer's neurons, of the sets known by then."""
        slopes = CrownSlopes.of(known, layer)
        return lambda window, rows, v: crown_bounds(
            window.network,
            window.regions(regions, rows),
            CrownSlopes(*[window.rows(one, rows) for one in slopes]),
            v,
        )

    balls_matter = intersect and not PerturbationStack(regions).is_box()
    return _tightened(
        windows, hidden, start, int(windows.first_is_exact), intersect, both_ends=balls_matter
    )


def optimized_intermediate_bounds(
    windows: ReceptiveFields,
    regions: Sequence[Region],
    hidden: IntermediateBounds,
    settings: OptimizerSettings = OptimizerSettings(rounds=(20,)),
    deadline: float = math.inf,
) -> IntermediateBounds:
    """Return the sets with optimised bounds of every unstable neuron, layer by layer.

    Args:
        windows: Of the network.
        regions: (centre, set) pairs, stacked.
        hidden: What is known already.
        settings: Of the optimiser; at the default a neuron that is seen to be stable is left
            there.
        deadline: Value of ``time.perf_counter()`` from which on the bounds stay as they are.

    Returns:
        Sets inside the given ones.
    """

    def start(layer: int, known: IntermediateBounds) -> _Bounds:
        """Return optimised bounds of a layer's neurons, of the sets known by then."""

        def bounds(window: AnyReceptiveField, rows: Tensor, v: Tensor) -> Tensor:
            """Optimise."""
            seen = [window.rows(one, rows) for one in known[:3]]
            sets = IntermediateBounds(*seen, [one[rows] for one in known.radius[:layer]])
            return optimized_bounds(
                Problem(window.network, window.regions(regions, rows), sets), v, settings
            )

        return bounds

    return _tightened(
        windows, hidden, start, both_ends=not PerturbationStack(regions).is_box(), deadline=deadline
    )


@torch.no_grad()
def _tightened(
    windows: ReceptiveFields,
    hidden: IntermediateBounds,
    start: Callable[[int, IntermediateBounds], _Bounds],
    first: int = 1,
    intersect: bool = True,
    both_ends: bool = True,
    deadline: float = math.inf,
) -> IntermediateBounds:
    """Bound every unstable neuron, layer by layer, from the layers before as they are by then."""
    lower, upper, center, radius = ([*field] for field in hidden)
    for layer in range(first, len(lower)):
        bounds = start(layer, IntermediateBounds(lower, upper, center, radius))
        ends = torch.stack([lower[layer], -upper[layer]])  # lower bounds of z and of -z
        unstable = (ends < 0).all(0)
        for window in windows.of(layer, ends, int(unstable.sum())):
            example, place = unstable[:, window.neurons].nonzero(as_tuple=True)
            _tighten(
                ends, center[layer], window, example, place, bounds, intersect, both_ends, deadline
            )
        lower[layer], upper[layer] = ends[0], -ends[1]
        box = torch.maximum(upper[layer] - center[layer], center[layer] - lower[layer])
        radius[layer] = torch.minimum(radius[layer], torch.linalg.vector_norm(box, dim=1))
    return IntermediateBounds(lower, upper, center, radius)


def _tighten(
    ends: Tensor,
    center: Tensor,
    window: AnyReceptiveField,
    example: Tensor,
    place: Tensor,
    bounds: _Bounds,
    intersect: bool,
    both_ends: bool,
    deadline: float,
) -> None:
    """Bound some neurons of a window, into ``ends``.

    Without ``both_ends`` the end that the clean value is far from is bounded only where the other
    one has not shown that the neuron is stable: no relaxation of such a neuron asks for it.
    Where little is to do, both at once.
    """

    def bound(end: Tensor, example: Tensor, place: Tensor) -> None:
        """Bound lower (0) or upper (1) ends."""
        for part in torch.arange(len(end), device=ends.device).split(
            max(1, _MAX_ELEMENTS // window.size)
        ):
            if (
                not len(part) or time.perf_counter() > deadline
            ):  # an empty tensor splits into one empty part
                return
            at = end[part], example[part], window.neurons[place[part]]
            sign = (1 - 2 * at[0]).to(ends)
            v = torch.nn.functional.one_hot(place[part], len(window.neurons)) * sign.unsqueeze(1)
            found = bounds(window, example[part], v)
            found = torch.maximum(found, ends[at]) if intersect else found
            ends[at] = torch.minimum(found, sign * center[at[1:]])

    near = (center[example, window.neurons[place]] < 0).long()
    if both_ends or 2 * len(near) * window.size <= _MAX_ELEMENTS:
        bound(
            torch.stack([near, 1 - near], dim=1).flatten(),
            example.repeat_interleave(2),
            place.repeat_interleave(2),
        )
        return
    bound(near, example, place)
    left = (ends[:, example, window.neurons[place]] < 0).all(0)
    bound(1 - near[left], example[left], place[left])
