"""How high CROWN's bounds can get at most, by a search for low points of its relaxation.

CROWN bounds a linear form on a relaxation of the network in which an unstable ReLU takes any
value from its true one up to the chord of its interval. The linear form's value at any point of the
relaxation is a limit of the bound, and a few gradient steps find low values at a fraction of what
it costs to bound the hidden layers.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...perturbations import PerturbationStack
from ..problem import Problem
from ..relu_network import ReluNetwork
from .relu import chord

_ROUNDS = 3
#: Share of the way to the value at the centre by which limits are raised, for rounding.
_SLACK = 1e-3


def crown_limits(problem: Problem, v: Tensor, rounds: int = _ROUNDS) -> Tensor:
    """Return values that no CROWN lower bounds of linear forms of the output exceed.

    This holds however CROWN is done.

    In each round the input goes to the far end of its set, and ReLUs go to their chords, if the
    linear form falls that way. The interval of a layer is the one that the points so far span: it
    lies inside CROWN's, and the chord of an interval lies below the chord of any larger one.

    Args:
        problem: A problem of R examples, of a :class:`ReluNetwork`. Of the intermediate bounds
            only the first layer's interval is used, and that only where CROWN starts from it as
            well.
        v: Linear forms, (R, K).
        rounds: The number of points that are tried.

    Returns:
        Limits, (R,): no bounds of the linear forms, but bounds of what can be proved of them.
    """
    search = _Search(problem, v)
    clean = search.step()
    lowest = clean.clone()
    for _ in range(rounds - 1):
        lowest = torch.minimum(lowest, search.step())
    return lowest + _SLACK * (clean - lowest)


class _Search:
    """The search's point of the relaxation, and the intervals spanned by its points so far."""

    def __init__(self, problem: Problem, v: Tensor) -> None:
        assert isinstance(problem.network, ReluNetwork)  # receptive fields have no values
        self._network, self._v, hidden = problem.network, v, problem.hidden
        self._stack = PerturbationStack(problem.regions)
        self._point = self._stack.centers()
        self._lower, self._upper = list(hidden.center), list(hidden.center)
        if hidden.center and self._network.first_is_exact():
            self._lower[0], self._upper[0] = hidden.lower[0], hidden.upper[0]
        #: Which ReLUs take the value of their chord, and not their true one: 1 or 0.
        self._raised: list[Tensor | None] = [None] * len(hidden.center)

    def step(self) -> Tensor:
        """Return the linear forms' values at the point, and go on to the next one."""
        with torch.enable_grad():
            point = self._point.detach().requires_grad_()
            value, relus = self._value(point)
            gradients = torch.autograd.grad(value.sum(), [point, *relus], allow_unused=True)
        at_input, *at_relus = [
            None if gradient is None else gradient.detach() for gradient in gradients
        ]
        self._raised = [
            None if gradient is None else (gradient < 0).to(gradient).flatten(1)
            for gradient in at_relus
        ]
        if at_input is not None:
            points = [
                region.perturbation.far_point(-at_input[index], region.center)
                for index, region in self._stack.slices()
            ]
            self._point = torch.cat(points)
        return value.detach()

    def _value(self, point: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the linear forms' values, and those of the ReLUs on the way."""
        relus: list[Tensor] = []
        for layer in range(len(self._raised)):
            z = self._network.layer(layer, point, relus)
            relus.append(self._relu(layer, z.flatten(1)).view_as(z))
        output = self._network.layer(len(relus), point, relus).flatten(1)
        return torch.linalg.vecdot(self._v, output), relus

    def _relu(self, layer: int, z: Tensor) -> Tensor:
        lower = self._lower[layer] = torch.minimum(self._lower[layer], z.detach())
        upper = self._upper[layer] = torch.maximum(self._upper[layer], z.detach())
        raised = self._raised[layer]
        if raised is None:
            return z.relu()
        slope, lift = chord(lower, upper)
        return z.relu() + raised * (slope * z + lift - z.relu())
