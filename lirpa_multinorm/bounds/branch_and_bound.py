"""Branch and bound over the signs of ReLUs, on the bounds of SDP-CROWN."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from typing import List, NamedTuple, Sequence, Tuple

import torch
from torch import Tensor

from ..errors import InvalidArgumentError
from .groups import ranks
from .problem import Problem
from .sdp_crown import OptimizerSettings, Parameters, Relaxation


_MAX_ELEMENTS = 1 << 29  # numbers of all open subproblems
_LAST = 200  # steps for a part in which every ReLU is decided: its bound is exact where they converge


@dataclass(frozen=True)
class BranchSettings:
    """How branch and bound searches.

    Args:
        batch_size: Subproblems split at once.
        steps: Optimiser steps on each subproblem, from where its parent stands.
        slope_rate: Adam's step size there for the slopes; a larger one throws away what the parent has found.
        multiplier_rate: For the logarithms of the balls' multipliers.
        shift_rate: For the multipliers of the splits.
        candidates: Neurons tried for each split.
        max_subproblems: The search gives up when more are open, or sooner where they need too much memory.
    """

    batch_size: int = 64
    steps: int = 5
    slope_rate: float = 0.01
    multiplier_rate: float = 0.05
    shift_rate: float = 0.01
    candidates: int = 3
    max_subproblems: int = 100000

    def __post_init__(self) -> None:
        for name in ("batch_size", "steps", "candidates", "max_subproblems"):
            if getattr(self, name) < 1:
                raise InvalidArgumentError(f"{name}={getattr(self, name)} must be at least 1")
        for name in ("slope_rate", "multiplier_rate", "shift_rate"):
            if not getattr(self, name) > 0:
                raise InvalidArgumentError(f"{name}={getattr(self, name)} must be positive")


class _Problems(NamedTuple):
    """Open subproblems: whose functional, which signs are fixed, where the optimiser stands, and the bound so far."""

    row: Tensor
    splits: List[Tensor]
    parameters: Parameters
    bound: Tensor

    def rows(self, index: Tensor) -> "_Problems":
        return _Problems(self.row[index], [one.index_select(0, index) for one in self.splits],
                         self.parameters.rows(index), self.bound[index])

    def tensors(self) -> List[Tensor]:
        """Return all tensors, one row per subproblem each."""
        return [self.row, *self.splits, *[one for field in self.parameters for one in field], self.bound]

    @classmethod
    def joined(cls, parts: Sequence["_Problems"]) -> "_Problems":
        lists = lambda field: [torch.cat(one) for one in zip(*field)]  # noqa: E731
        return cls(torch.cat([part.row for part in parts]), lists([part.splits for part in parts]),
                   Parameters(*[lists(field) for field in zip(*[part.parameters for part in parts])]),
                   torch.cat([part.bound for part in parts]))


def branch_and_bound(problem: Problem, v: Tensor, deadline: float = math.inf,
                     settings: BranchSettings = BranchSettings(),
                     optimizer: OptimizerSettings = OptimizerSettings()) -> Tensor:
    """Prove functionals of a network's output positive by splitting ReLUs until every part is.

    A part in which a neuron is positive (or negative) has a smaller interval, an exact ReLU, and a multiplier for the
    neuron's sign, as in beta-CROWN. Of each functional the part whose bound is lowest is split first, at the neuron
    whose two halves have the best bounds among those with the costliest relaxations. The search ends when all
    functionals are proved, or nothing more can be split, or too many parts are open, or time is up.

    Args:
        problem: Of R examples of one region, or of one example that all functionals are bounded on.
        v: Functionals of the output, (R, K).
        deadline: Value of ``time.perf_counter()`` at which to stop; sound at any time.
        settings: Of the search.
        optimizer: Of the bounds of the whole sets; its ``enough`` is that of the parts, too.

    Returns:
        Lower bounds, (R,): positive where proved, else the lowest of the open parts.

    Source: Wang et al. 2021 (beta-CROWN); De Palma et al. 2021 (filtered smart branching).
    """
    search, proved = _Search(problem, v, settings, optimizer), v.new_full((len(v),), math.inf)

    def unproved(problems: _Problems) -> _Problems:
        """Return the problems that are still open; of the others, write down the bounds."""
        done = problems.bound > 0
        proved.scatter_reduce_(0, problems.row[done], problems.bound[done], "amin")
        return problems.rows((~done).nonzero().squeeze(1))

    parts = _Store(unproved(search.root()))
    most = min(settings.max_subproblems, _MAX_ELEMENTS // parts.elements)
    while 0 < len(parts.row) <= most and time.perf_counter() < deadline:
        chosen = parts.taken(ranks(parts.row, parts.bound).argsort(stable=True)[:settings.batch_size])
        layer, neuron = search.neurons(chosen)
        whole, splittable = ((neuron < 0).nonzero().squeeze(1), (neuron >= 0).nonzero().squeeze(1))
        linear = search.improved(chosen.rows(whole), _LAST, optimizer)
        halves = search.halves(chosen.rows(splittable), layer[splittable], neuron[splittable])
        parts.add(unproved(_Problems.joined([linear, halves])))
        if bool((linear.bound <= 0).any()):  # nothing left to split there, and still not proved
            break
    return proved.scatter_reduce(0, parts.row, parts.bound, "amin")


def _located(place: Tensor, ends: Tensor) -> Tuple[Tensor, Tensor]:
    """Return (layer, neuron) of places in all layers, one behind the other."""
    layer = torch.searchsorted(ends, place.contiguous(), right=True) - 1
    return layer, place - ends[layer]


class _Store:
    """Open subproblems, in memory that is used again: what a step does not work on stays where it is.

    Args:
        problems: The first ones.
    """

    def __init__(self, problems: _Problems) -> None:
        self._problems, self._used = problems, torch.ones_like(problems.row, dtype=torch.bool)
        #: How many numbers a subproblem has.
        self.elements = sum(one[:1].numel() for one in problems.tensors()) or 1

    @property
    def row(self) -> Tensor:
        """Whose functionals the subproblems are of, (P,)."""
        return self._problems.row[self._used]

    @property
    def bound(self) -> Tensor:
        """Their bounds, (P,)."""
        return self._problems.bound[self._used]

    def taken(self, index: Tensor) -> _Problems:
        """Take some of the P subproblems out."""
        places = self._used.nonzero().squeeze(1)[index]
        self._used[places] = False
        return self._problems.rows(places)

    def add(self, problems: _Problems) -> None:
        """Put subproblems in."""
        while int((~self._used).sum()) < len(problems.row):
            self._problems = _Problems.joined([self._problems] * 2)
            self._used = torch.cat([self._used, torch.zeros_like(self._used)])
        places = (~self._used).nonzero().squeeze(1)[:len(problems.row)]
        for kept, new in zip(self._problems.tensors(), problems.tensors()):
            kept[places] = new
        self._used[places] = True


class _Search:
    """What the loop needs to know of the problem."""

    def __init__(self, problem: Problem, v: Tensor, settings: BranchSettings, optimizer: OptimizerSettings) -> None:
        self.problem, self.v, self.settings, self.optimizer = problem, v, settings, optimizer
        self._parts = replace(optimizer, slope_rate=settings.slope_rate, multiplier_rate=settings.multiplier_rate,
                              shift_rate=settings.shift_rate, last_rate=1.0)

    def root(self) -> _Problems:
        """Return the whole sets as problems, optimised."""
        rows = torch.arange(len(self.v), device=self.v.device)
        splits = [torch.zeros(len(rows), one.shape[1], dtype=torch.int8, device=one.device)
                  for one in self.problem.hidden.lower]
        relaxation = self._relaxation(rows, splits)
        bound, parameters = relaxation.improved(relaxation.first(), sum(self.optimizer.rounds), self.optimizer)
        return _Problems(rows, splits, parameters, bound)

    def neurons(self, problems: _Problems) -> Tuple[Tensor, Tensor]:
        """Return (layer, neuron) to split in each problem; neuron -1 where none can switch any more."""
        sizes = [one.shape[1] for one in problems.splits]
        if not sizes:
            return torch.full_like(problems.row, -1), torch.full_like(problems.row, -1)
        relaxation = self._relaxation(problems.row, problems.splits)
        losses = torch.cat(relaxation.losses(problems.parameters), dim=1)
        cost, place = losses.topk(min(self.settings.candidates, losses.shape[1]), dim=1)
        ends = torch.tensor([0, *sizes], device=place.device).cumsum(0)
        best, chosen = torch.full_like(problems.bound, -math.inf), torch.full_like(problems.row, -1)
        for column in range(place.shape[1]):
            layer, neuron = _located(place[:, column], ends)
            halves = self._split(problems, layer, neuron)
            bound = self._relaxation(halves.row, halves.splits).value(halves.parameters)
            worst = bound.view(2, -1).clamp(max=0).sum(0)
            better = (cost[:, column] > 0) & ((chosen < 0) | (worst > best))
            best, chosen = torch.where(better, worst, best), torch.where(better, place[:, column], chosen)
        layer, neuron = _located(chosen.clamp(min=0), ends)
        return layer, torch.where(chosen < 0, chosen, neuron)

    def halves(self, problems: _Problems, layer: Tensor, neuron: Tensor) -> _Problems:
        """Return both halves of each problem, optimised from where the whole stands."""
        return self.improved(self._split(problems, layer, neuron), self.settings.steps, self._parts)

    def improved(self, problems: _Problems, steps: int, optimizer: OptimizerSettings) -> _Problems:
        """Return the problems with their parameters optimised further."""
        if not len(problems.row):
            return problems
        relaxation = self._relaxation(problems.row, problems.splits)
        bound, parameters = relaxation.improved(problems.parameters, steps, optimizer)
        return problems._replace(bound=torch.maximum(bound, problems.bound), parameters=parameters)

    def _split(self, problems: _Problems, layer: Tensor, neuron: Tensor) -> _Problems:
        count = len(problems.row)
        both = problems.rows(torch.arange(count, device=layer.device).repeat(2))
        splits = [one.clone() for one in both.splits]
        for place, one in enumerate(splits):
            own = (layer == place).nonzero().squeeze(1)
            one[own, neuron[own]], one[own + count, neuron[own]] = 1, -1
        return both._replace(splits=splits)

    def _relaxation(self, rows: Tensor, splits: List[Tensor]) -> Relaxation:
        one = len(self.problem.regions[0].center) == 1
        return Relaxation(self.problem if one else self.problem.rows(rows), self.v[rows], splits)
