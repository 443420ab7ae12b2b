"""Everything that is known of the hidden layers, put together."""

from __future__ import annotations

import math
import time
from typing import Optional, Sequence

import torch

from ..perturbations import Region, take_rows
from .lipschitz import LipschitzBounds
from .relu_network import ReluNetwork
from .sdp_crown import HiddenSets, OptimizerSettings, optimized_bounds
from .traced import TracedModule

_MAX_ELEMENTS = 1 << 22  # functionals times neurons that are optimised at once


@torch.no_grad()
def hidden_sets(bounded: TracedModule, network: ReluNetwork, regions: Sequence[Region],
                lipschitz: Optional[LipschitzBounds] = None, methods: Sequence[str] = ("IBP", "CROWN")) -> HiddenSets:
    """Return the intersection of all bounds of the layers in front of the ReLUs.

    Intervals: the host's bounds by each method, and the clean value plus and minus the Lipschitz constant of the
    neuron times the set's l_2 radius. Balls: around the clean value, with the layer's Lipschitz constant, or around
    the interval if that is smaller.

    Args:
        bounded: The module to bound.
        network: The same network as affine maps.
        regions: (centre, set) pairs, stacked.
        lipschitz: Constants of :func:`lipschitz_bounds`, if the network has them.
        methods: Methods of the host, in any order.

    Returns:
        Intervals and balls of each layer, one row per example of the stack.
    """
    x = torch.cat([region.center for region in regions])
    center = [value.flatten(1) for value in network.layers(x)[:-1]]
    reach = torch.cat([region.perturbation.l2_radius(region.center) for region in regions])
    lower = [torch.full_like(one, -torch.inf) for one in center]
    upper = [torch.full_like(one, torch.inf) for one in center]
    ends = []
    if lipschitz is not None:
        moves = [reach.unsqueeze(1) * gain for gain in lipschitz.neurons]
        ends.append([(value - move, value + move) for value, move in zip(center, moves)])
    for method in methods:
        one_output = torch.eye(network.shapes[-1].numel(), dtype=x.dtype, device=x.device)[:1]
        C = [one_output.expand(len(region.center), 1, -1) for region in regions]
        bounded.compute_region_bounds(regions, C, method, bound_upper=False)
        ends.append(network.node_bounds())
    for known in ends:
        lower = [torch.maximum(one, new[0]) for one, new in zip(lower, known)]
        upper = [torch.minimum(one, new[1]) for one, new in zip(upper, known)]
    # Rounding may leave the centre just outside, which a large multiplier of the ball would make much of.
    lower = [torch.minimum(low, value) for low, value in zip(lower, center)]
    upper = [torch.maximum(high, value) for high, value in zip(upper, center)]
    radius = [torch.linalg.vector_norm(torch.maximum(high - value, value - low), dim=1)
              for low, high, value in zip(lower, upper, center)]
    if lipschitz is not None:
        radius = [torch.minimum(one, reach * length) for one, length in zip(radius, lipschitz.layers)]
    return HiddenSets(lower, upper, center, radius)


def tightened_sets(network: ReluNetwork, regions: Sequence[Region], hidden: HiddenSets,
                   settings: OptimizerSettings = OptimizerSettings(rounds=(20,)), batch_size: Optional[int] = None,
                   deadline: float = math.inf) -> HiddenSets:
    """Return the sets with optimised bounds of every neuron that can switch, layer by layer.

    Args:
        network: The network.
        regions: (centre, set) pairs, stacked.
        hidden: What is known already.
        settings: Of the optimiser; at the default a neuron that is seen not to switch is left there.
        batch_size: Functionals bounded at once; None: as many as fit into a budget of memory.
        deadline: Value of ``time.perf_counter()`` from which on the bounds stay as they are.

    Returns:
        Sets inside the given ones.
    """
    lower, upper, center, radius = ([*field] for field in hidden)
    batch_size = batch_size or max(1, _MAX_ELEMENTS // network.neurons)
    for layer in range(1, len(lower)):
        known = HiddenSets(lower, upper, center, radius).before(layer)
        example, neuron = ((lower[layer] < 0) & (upper[layer] > 0)).nonzero(as_tuple=True)
        for start in range(0, len(example), batch_size):
            if time.perf_counter() > deadline:
                break
            rows, places = example[start:start + batch_size], neuron[start:start + batch_size]
            v = torch.nn.functional.one_hot(places, lower[layer].shape[1]).to(lower[layer])
            own, sets = take_rows(regions, rows), known.rows(rows)
            low, high = (sign * optimized_bounds(network, own, sign * v, sets, settings) for sign in (1, -1))
            low, high = torch.maximum(low, lower[layer][rows, places]), torch.minimum(high, upper[layer][rows, places])
            lower[layer] = lower[layer].index_put((rows, places), torch.minimum(low, center[layer][rows, places]))
            upper[layer] = upper[layer].index_put((rows, places), torch.maximum(high, center[layer][rows, places]))
        box = torch.linalg.vector_norm(torch.maximum(upper[layer] - center[layer], center[layer] - lower[layer]), dim=1)
        radius[layer] = torch.minimum(radius[layer], box)
    return HiddenSets(lower, upper, center, radius)
