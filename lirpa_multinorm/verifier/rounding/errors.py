"""Bounds of the rounding errors of a network's outputs on a set.

A network runs in floating point: each operator's sums are rounded, in an order that nobody
promises. Let u be the unit roundoff of the weights' type and gamma_k = k u / (1 - k u). A sum of n
products, in any order, with or without fused multiply-adds, is off by at most gamma_n times the sum
of the products' absolute values (Higham 2002, section 3.1; a bias is one more). So the value of an
operator ``W a + b``, whose input is off by e, is off by at most

    |W| |e| + d   with   d = gamma_(n+c) (|W| |a| + |b|),   and in l_2 by   ||W|| ||e|| + ||d||,

where |a| is the largest absolute value on the set. Both are carried along, element by element and
in l_2, each as small as the other makes it (an element of W e is at most the l_2 norm of its row of
W times ||e||): absolute weights alone overestimate the errors of layers of thousands of neurons by
orders of magnitude. In the same way it is known how far a value moves on the set from its value at
the centre, and so how large it gets. ReLUs and maxima add nothing, and enlarge no difference;
nor does a MinMax, which is one step here, and rounds a difference and a sum. An operator that adds
up nothing (a reshape) only moves all this along, halves that are put together again as one value.

This is **proved**, and seldom met: errors of one sum cancel, and so do those of different sums. If
they are independent with mean zero, as in the model of Higham and Mary, a sum of n products is off
by at most lambda sqrt(n) u times the absolute values, and errors of different neurons add up in
squares, with the squares of the weights. That is **probable**, with lambda = 8: no proof, but of
short sums of huge numbers, which networks made to break verifiers by rounding are built of, it says
the same.

All of it is calculated in the weights' type; factors make up for the rounding of the calculation.
Piecewise-linear operators count as the ReLUs and sums that :mod:`lirpa_multinorm.verifier.network`
makes of them, whose errors are no smaller than theirs.

Source: Higham 2002, Accuracy and Stability of Numerical Algorithms, chapter 3; Higham and Mary
2019, A New Approach to Probabilistic Rounding Error Analysis.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ...perturbations import Region
from ...utils.modes import tensor_float_32
from ..lipschitz.offered import offers
from ..lipschitz.operator_norms import step_norm
from ..lipschitz.steps import Lengths, spread_norms, step_length
from ..network import EXACT, ModelGraph, paired
from ..readable import Reading
from .offered import offered_rounding
from .values import NORMS, RoundedValue, rounded_step


class RoundingErrors:
    """The rounding errors of a network's outputs; norms of its weights are calculated once.

    Args:
        bounded: A :class:`~lirpa_multinorm.BoundedModule` in eval mode, whose weights stay as they
            are.
        probable: Whether to return probable errors instead of proved bounds.

    Example:
        >>> from lirpa_multinorm import BoundedModule, PerturbationLinf
        >>> region = Region(torch.rand(1, 100), PerturbationLinf(0.1))
        >>> error = RoundingErrors(BoundedModule(torch.nn.Linear(100, 2))).of([region])
        >>> error.shape, bool((error > 0).all() and (error < 1e-3).all())
        (torch.Size([1, 2]), True)
    """

    def __init__(self, bounded, probable: bool = False) -> None:
        self._bounded, self._probable = bounded, probable
        self._reading = Reading(bounded.model)
        self._read_graph: ModelGraph | None = None
        self._graph: ModelGraph | None = None
        self._lengths: Lengths = {}
        self._norms: dict[tuple[int, int], float] = {}
        self._shares: dict[int, dict[int, float]] = {}

    @torch.no_grad()
    def of(self, regions: Sequence[Region]) -> Tensor:
        """Bound how far computed outputs can be from exact arithmetic's, anywhere on some sets.

        Args:
            regions: (centre, set) pairs, together R examples.

        Returns:
            Bounds (R, K), in the type of the centres; infinite where nothing can be said (sums too
            long for the type, values too large for it).

        Raises:
            UnsupportedModelError: The rounding of an operator is not known; the message names it.
        """
        centers = torch.cat([region.center for region in regions]).detach()
        graph = self._read(centers)
        if graph is None:
            return offered_rounding(self._bounded.model, regions)
        boxes = [region.perturbation.enclosing_box(region.center) for region in regions]
        reaches = [
            torch.maximum(upper - region.center, region.center - lower)
            for region, (lower, upper) in zip(regions, boxes)
        ]
        reach = torch.cat(reaches)
        move = torch.cat([region.perturbation.l2_radius(region.center) for region in regions])
        value = RoundedValue(
            centers, reach, move, torch.zeros_like(centers), torch.zeros_like(move), self._probable
        )
        reach = reach + 4 * value.unit * (centers.abs() + reach)
        value = value._replace(reach=reach, move=move * NORMS).tidied()
        with tensor_float_32(False):
            errors = self._propagated(graph, value).flatten(1)
        return torch.where(errors.isfinite(), errors, math.inf)

    def _read(self, x: Tensor) -> ModelGraph | None:
        """Return the graph; None for a network that is bounded by what its layers offer."""
        if offers(self._bounded.model):
            return self._reading.result(lambda: self._bounded.model_graph(x))
        return self._bounded.model_graph(x)

    def _propagated(self, graph: ModelGraph, value: RoundedValue) -> Tensor:
        """Return the errors of the output from the value of the input."""
        graph = self._prepared(graph)
        # Each example is a batch of one, as the graph has it.
        tensors = {name: getattr(value, name).unsqueeze(1) for name in ("value", "reach", "error")}
        values = {0: value._replace(**tensors)}
        for index in graph.needed([graph.output], values):
            step = graph.steps[index]
            norms = [self._norm(graph, index, source) for source in range(len(step.sources))]
            rounded = rounded_step(step, [values[before] for before in step.sources], norms)
            if index in self._lengths:
                move = value.move * (self._lengths[index] * NORMS)
                rounded = rounded._replace(move=torch.fmin(rounded.move, move))
            if self._shares.get(index):
                drift = torch.zeros_like(rounded.drift)
                for base, share in self._shares[index].items():
                    drift = drift + values[base].drift * share
                rounded = rounded._replace(drift=torch.fmin(rounded.drift, drift))
            values[index] = rounded
        return values[graph.output].error

    def _prepared(self, read: ModelGraph) -> ModelGraph:
        """Return a graph with each MinMax as one step, and calculate what is kept for it."""
        if self._read_graph is read and self._graph is not None:
            return self._graph
        graph = paired(read).graph
        self._read_graph, self._graph, self._norms = read, graph, {}
        self._lengths = {} if graph is read else step_lengths(graph)
        self._shares = {} if graph is read else joint_shares(graph)
        return graph

    def _norm(self, graph: ModelGraph, index: int, source: int) -> float:
        """Return how much a step lengthens l_2 distances of a source; kept for a graph."""
        if (index, source) not in self._norms:
            norm = step_norm(graph, index, source) * NORMS
            self._norms[index, source] = norm if math.isfinite(norm) else math.inf
        return self._norms[index, source]


def step_lengths(graph: ModelGraph) -> Lengths:
    """Return how far the exact value of each step moves in l_2 where the input moves by 1.

    A MinMax enlarges no distance, and a residual block is one layer.
    """
    lengths: Lengths = {0: 1.0}
    for index in graph.needed([graph.output], [0]):
        if graph.steps[index].operator == "minmax":
            lengths[index] = lengths[graph.steps[index].sources[0]]
        else:
            step_length(graph, index, lengths, {})
    return lengths


def joint_shares(graph: ModelGraph) -> dict[int, dict[int, float]]:
    """Return norms of the linear maps to steps that put parts of values together again.

    Of copies of halves of one value, which two sources are, the norm is 1, and not 2.

    Returns:
        By the index of a step without roundings that has several sources, the norm by the index of
        each step with roundings, or MinMax, that its value is made of.
    """
    shares = {}
    for index in graph.needed([graph.output], [0]):
        if len(graph.steps[index].sources) < 2 or not _is_exact(graph, index):
            continue
        bases, stack = set(), list(graph.steps[index].sources)
        while stack:
            source = stack.pop()
            if _is_exact(graph, source):
                stack += graph.steps[source].sources
            else:
                bases.add(source)
        norms = {base: spread_norms(graph, index, base, sorted(bases)) for base in bases}
        shares[index] = {
            base: math.sqrt(rows * columns) * NORMS for base, (rows, columns) in norms.items()
        }
    return shares


def _is_exact(graph: ModelGraph, index: int) -> bool:
    return bool(index) and graph.steps[index].operator in (*EXACT, "pair")
