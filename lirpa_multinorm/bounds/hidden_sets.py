"""Everything that is known of the hidden layers, put together."""

from __future__ import annotations

import math
import time
from typing import Callable, Optional, Sequence, Tuple

import torch
from torch import Tensor

from ..perturbations import Region
from .crown import CrownSlopes, crown_bounds
from .lipschitz import LipschitzBounds
from .problem import HiddenSets, Problem
from .relu_network import ReluNetwork
from .sdp_crown import OptimizerSettings, optimized_bounds
from .traced import TracedModule
from .windows import AnyWindow, Windows

_MAX_ELEMENTS = 1 << 20  # functionals times neurons that are bounded at once

#: Bounds functionals (R, m) of a window's neurons for some examples: (lower, upper), (R,) each.
_Bounds = Callable[[AnyWindow, Tensor, Tensor], Tuple[Tensor, Tensor]]


@torch.no_grad()
def hidden_sets(bounded: TracedModule, network: ReluNetwork, regions: Sequence[Region],
                lipschitz: Optional[LipschitzBounds] = None) -> HiddenSets:
    """Return what is known of the layers in front of the ReLUs at no cost.

    Intervals: the host's by IBP (of a first Linear or Conv layer they are exact), and the clean value plus and minus
    the Lipschitz constant of the neuron times the set's l_2 radius. Balls: around the clean value, with the layer's
    Lipschitz constant, or around the interval if that is smaller.

    Args:
        bounded: The module to bound.
        network: The same network as affine maps.
        regions: (centre, set) pairs, stacked.
        lipschitz: Constants of :func:`lipschitz_bounds`, if the network has them.

    Returns:
        Intervals and balls of each layer, one row per example of the stack.
    """
    x = torch.cat([region.center for region in regions])
    center = [value.flatten(1) for value in network.layers(x)[:-1]]
    one_output = torch.eye(network.shapes[-1].numel(), dtype=x.dtype, device=x.device)[:1]
    C = [one_output.expand(len(region.center), 1, -1) for region in regions]
    bounded.compute_region_bounds(regions, C, "IBP", bound_upper=False)
    ends = network.node_bounds()
    lower, upper = [low for low, _ in ends], [high for _, high in ends]
    reach = torch.cat([region.perturbation.l2_radius(region.center) for region in regions])
    if lipschitz is not None:
        moves = [reach.unsqueeze(1) * gain for gain in lipschitz.neurons]
        lower = [torch.maximum(low, value - move) for low, value, move in zip(lower, center, moves)]
        upper = [torch.minimum(high, value + move) for high, value, move in zip(upper, center, moves)]
    # Rounding may leave the centre just outside, which a large multiplier of the ball would make much of.
    lower = [torch.minimum(low, value) for low, value in zip(lower, center)]
    upper = [torch.maximum(high, value) for high, value in zip(upper, center)]
    radius = [torch.linalg.vector_norm(torch.maximum(high - value, value - low), dim=1)
              for low, high, value in zip(lower, upper, center)]
    if lipschitz is not None:
        radius = [torch.minimum(one, reach * length) for one, length in zip(radius, lipschitz.layers)]
    return HiddenSets(lower, upper, center, radius)


def crown_sets(windows: Windows, regions: Sequence[Region], hidden: HiddenSets) -> HiddenSets:
    """Return the sets with CROWN's bounds of every neuron that can switch, layer by layer.

    Args:
        windows: Of the network.
        regions: (centre, set) pairs, stacked.
        hidden: What is known already.

    Returns:
        Sets inside the given ones.

    Source: Zhang et al. 2018 (CROWN).
    """
    def start(layer: int, known: HiddenSets) -> _Bounds:
        """Return CROWN's bounds of a layer's neurons, of the sets known by then."""
        slopes = CrownSlopes.of(known, layer)
        return lambda window, rows, v: crown_bounds(
            window.network, window.regions(regions, rows), CrownSlopes(*[window.rows(one, rows) for one in slopes]), v)

    return _tightened(windows, hidden, start)


def tightened_sets(windows: Windows, regions: Sequence[Region], hidden: HiddenSets,
                   settings: OptimizerSettings = OptimizerSettings(rounds=(20,)),
                   deadline: float = math.inf) -> HiddenSets:
    """Return the sets with optimised bounds of every neuron that can switch, layer by layer.

    Args:
        windows: Of the network.
        regions: (centre, set) pairs, stacked.
        hidden: What is known already.
        settings: Of the optimiser; at the default a neuron that is seen not to switch is left there.
        deadline: Value of ``time.perf_counter()`` from which on the bounds stay as they are.

    Returns:
        Sets inside the given ones.
    """
    def start(layer: int, known: HiddenSets) -> _Bounds:
        """Return optimised bounds of a layer's neurons, of the sets known by then."""
        def bounds(window: AnyWindow, rows: Tensor, v: Tensor) -> Tuple[Tensor, Tensor]:
            """Optimise from below and from above."""
            seen = [window.rows(one, rows) for one in known[:3]]
            sets = HiddenSets(*seen, [one[rows] for one in known.radius[:layer]])
            problem = Problem(window.network, window.regions(regions, rows), sets)
            return optimized_bounds(problem, v, settings), -optimized_bounds(problem, -v, settings)

        return bounds

    return _tightened(windows, hidden, start, deadline)


@torch.no_grad()
def _tightened(windows: Windows, hidden: HiddenSets, start: Callable[[int, HiddenSets], _Bounds],
               deadline: float = math.inf) -> HiddenSets:
    """Bound every neuron that can switch from below and above, with the layers before it as they are by then."""
    lower, upper, center, radius = ([*field] for field in hidden)
    for layer in range(1, len(lower)):
        bounds = start(layer, HiddenSets(lower, upper, center, radius))
        low, high = lower[layer].clone(), upper[layer].clone()
        can_switch = (low < 0) & (high > 0)
        for window in windows.of(layer, low, int(can_switch.sum())):
            example, place = can_switch[:, window.neurons].nonzero(as_tuple=True)
            for part in torch.arange(len(example), device=low.device).split(max(1, _MAX_ELEMENTS // window.size)):
                if not len(part) or time.perf_counter() > deadline:  # an empty tensor splits into one empty part
                    break
                v = torch.nn.functional.one_hot(place[part], len(window.neurons)).to(low)
                ends, at = bounds(window, example[part], v), (example[part], window.neurons[place[part]])
                low[at] = torch.minimum(torch.maximum(low[at], ends[0]), center[layer][at])
                high[at] = torch.maximum(torch.minimum(high[at], ends[1]), center[layer][at])
        lower[layer], upper[layer] = low, high
        box = torch.linalg.vector_norm(torch.maximum(high - center[layer], center[layer] - low), dim=1)
        radius[layer] = torch.minimum(radius[layer], box)
    return HiddenSets(lower, upper, center, radius)
