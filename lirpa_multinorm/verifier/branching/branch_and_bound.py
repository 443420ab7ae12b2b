"""Branch and bound over the signs of ReLUs, on the bounds of SDP-CROWN."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...errors import InvalidArgumentError
from ...utils.groups import ranks
from ..problem import Problem
from ..relaxations.sdp_crown import OptimizerSettings, Parameters, Relaxation
from .domains import Domains, Store
from .output_constraints import OutputConstraints

_MAX_ELEMENTS = 1 << 29  # numbers of all open domains
_ROUNDS = 10  # of tightening intervals, at most
_LAST = (
    200  # steps for a part in which every ReLU is decided: its bound is exact where they converge
)


@dataclass(frozen=True)
class BranchSettings:
    """How branch and bound searches.

    Args:
        batch_size: Domains split at once.
        steps: Optimiser steps on each domain, from where its parent stands.
        slope_rate: Adam's step size there for the slopes; a larger one throws away what the parent
            has found.
        multiplier_rate: For the logarithms of the balls' multipliers.
        shift_rate: For the multipliers of the splits.
        candidates: Neurons tried for each split.
        gain: A part's intervals are tightened again at once where that has made up for this share
            of what it lacked.
        max_subproblems: The search gives up when more are open, or sooner where they need too much
            memory.
        max_splits: The search gives up when this many have been split; None for no limit.
        enough: What is to be proved of a linear form: that it is larger than this.
    """

    batch_size: int = 64
    steps: int = 5
    slope_rate: float = 0.01
    multiplier_rate: float = 0.05
    shift_rate: float = 0.01
    candidates: int = 3
    gain: float = 0.4
    max_subproblems: int = 100000
    max_splits: int | None = None
    enough: float = 0.0

    def __post_init__(self) -> None:
        for name in ("batch_size", "steps", "candidates", "max_subproblems"):
            if getattr(self, name) < 1:
                raise InvalidArgumentError(f"{name}={getattr(self, name)} must be at least 1")
        if self.max_splits is not None and self.max_splits < 0:
            raise InvalidArgumentError(
                f"max_splits={self.max_splits} must be 0 or more, or None for no limit"
            )
        for name in ("slope_rate", "multiplier_rate", "shift_rate", "gain"):
            if not getattr(self, name) > 0:
                raise InvalidArgumentError(f"{name}={getattr(self, name)} must be positive")
        if not 0 <= self.enough < math.inf:
            raise InvalidArgumentError(f"enough={self.enough} must be a finite number, 0 or more")


def branch_and_bound(
    problem: Problem,
    v: Tensor,
    deadline: float = math.inf,
    settings: BranchSettings = BranchSettings(),
    optimizer: OptimizerSettings = OptimizerSettings(),
) -> Tensor:
    """Prove linear forms of a network's output positive by splitting ReLUs until every part is.

    A part in which a neuron is positive (or negative) has a smaller interval, an exact ReLU, and a
    multiplier for the neuron's sign, as in beta-CROWN. Of each linear form the part whose bound is
    lowest is split first, at the neuron whose two halves have the best bounds among those with the
    costliest relaxations. In every part the intervals of hidden neurons are tightened to where
    counterexamples can be. The search ends when all linear forms are proved, or nothing more can be
    split, or too many parts are open, or time is up.

    Args:
        problem: Of one example.
        v: Linear forms of the output, (R, K).
        deadline: Value of ``time.perf_counter()`` at which to stop; sound at any time.
        settings: Of the search.
        optimizer: Of the bounds of the whole sets; its ``enough`` is that of the parts, too.

    Returns:
        Lower bounds, (R,): above ``settings.enough`` where proved (the next number where it is not
        known how much), else the lowest of the open parts.

    Source: Wang et al. 2021 (beta-CROWN); De Palma et al. 2021 (filtered smart branching); for the
    intervals as :mod:`.counterexamples`.
    """
    search, proved = _Search(problem, v, settings, optimizer), v.new_full((len(v),), math.inf)

    def unproved(problems: Domains, limit: float = torch.finfo(v.dtype).tiny) -> Domains:
        """Return the problems that are still open.

        Of the others, write down the bounds, up to a limit.
        """
        done = problems.bound > 0
        proved.scatter_reduce_(0, problems.row[done], problems.bound[done].clamp(max=limit), "amin")
        return problems.rows((~done).nonzero().squeeze(1))

    # That there is no counterexample does not say how far off it is: only bounds of the whole set
    # count in full.
    parts = Store(unproved(search.tightened(unproved(search.root(), math.inf))))
    most = min(settings.max_subproblems, _MAX_ELEMENTS // parts.elements)
    left = math.inf if settings.max_splits is None else settings.max_splits
    while 0 < len(parts.row) <= most and left > 0 and time.perf_counter() < deadline:
        chosen = parts.taken(
            ranks(parts.row, parts.bound).argsort(stable=True)[: min(settings.batch_size, left)]
        )
        left -= len(chosen.row)
        layer, neuron = search.neurons(chosen)
        whole, splittable = ((neuron < 0).nonzero().squeeze(1), (neuron >= 0).nonzero().squeeze(1))
        linear = search.improved(chosen.rows(whole), _LAST, optimizer)
        halves = search.tightened(
            search.split(chosen.rows(splittable), layer[splittable], neuron[splittable])
        )
        parts.add(unproved(Domains.joined([linear, halves])))
        if bool((linear.bound <= 0).any()):  # nothing left to split there, and still not proved
            break
    return search.whole(proved.scatter_reduce(0, parts.row, parts.bound, "amin"))


def _located(place: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
    """Return (layer, neuron) of places in all layers, one behind the other."""
    layer = torch.searchsorted(ends, place.contiguous(), right=True) - 1
    return layer, place - ends[layer]


class _Search:
    """What the loop needs to know of the problem.

    All bounds are of the linear forms less what is enough.
    """

    def __init__(
        self, problem: Problem, v: Tensor, settings: BranchSettings, optimizer: OptimizerSettings
    ) -> None:
        self.problem, self.v, self.settings, self.optimizer = problem, v, settings, optimizer
        self._parts = replace(
            optimizer,
            slope_rate=settings.slope_rate,
            multiplier_rate=settings.multiplier_rate,
            shift_rate=settings.shift_rate,
            last_rate=1.0,
        )
        self._output_constraints = OutputConstraints(problem, v)
        self._proved, self._enough = torch.finfo(v.dtype).tiny, settings.enough

    def whole(self, bounds: Tensor) -> Tensor:
        """Return bounds of the linear forms themselves."""
        if not self._enough:
            return bounds
        found, step = (
            bounds + self._enough,
            4 * torch.finfo(bounds.dtype).eps,
        )  # the sum may be rounded to "enough"
        return torch.where(
            bounds > 0,
            found.clamp(min=self._enough * (1 + step)),
            found.clamp(max=self._enough * (1 - step)),
        )

    def root(self) -> Domains:
        """Return the whole sets as problems, optimised."""
        rows = torch.arange(len(self.v), device=self.v.device)
        splits = [
            torch.zeros(len(rows), one.shape[1], dtype=torch.int8, device=one.device)
            for one in self.problem.hidden.lower
        ]
        relaxation = Relaxation(self.problem, self.v, splits)
        bound, parameters = self._optimized(
            relaxation, relaxation.first(), sum(self.optimizer.rounds), self.optimizer
        )
        return Domains(rows, splits, parameters, bound, *self._output_constraints.first(len(rows)))

    def tightened(self, problems: Domains) -> Domains:
        """Return the problems with tighter intervals and optimised bounds.

        Where that pays, several times so.
        """
        done = [problems.rows(problems.row[:0])]
        for _ in range(_ROUNDS):
            if not len(problems.row):
                break
            constant, slopes = self._relaxation(problems).linear(problems.parameters)
            linear = constant - self._enough, slopes
            hidden = self._output_constraints.hidden(problems.lower, problems.upper).split(
                problems.splits
            )
            lower, upper, empty = self._output_constraints.ends(
                *self._output_constraints.ends_in(hidden), *linear
            )
            better = self.improved(
                problems._replace(lower=lower, upper=upper), self.settings.steps, self._parts
            )
            better = better._replace(
                bound=torch.where(empty, better.bound.clamp(min=self._proved), better.bound)
            )
            again = (better.bound <= 0) & (better.bound > (1 - self.settings.gain) * problems.bound)
            done.append(better.rows((~again).nonzero().squeeze(1)))
            problems = better.rows(again.nonzero().squeeze(1))
        return Domains.joined([*done, problems])

    def neurons(self, problems: Domains) -> tuple[Tensor, Tensor]:
        """Return (layer, neuron) to split in each problem.

        Neuron -1 where none is unstable any more.
        """
        sizes = [one.shape[1] for one in problems.splits]
        if not sizes:
            return torch.full_like(problems.row, -1), torch.full_like(problems.row, -1)
        relaxation = self._relaxation(problems)
        losses = torch.cat(relaxation.losses(problems.parameters), dim=1)
        cost, place = losses.topk(min(self.settings.candidates, losses.shape[1]), dim=1)
        ends = torch.tensor([0, *sizes], device=place.device).cumsum(0)
        best, chosen = torch.full_like(problems.bound, -math.inf), torch.full_like(problems.row, -1)
        for column in range(place.shape[1]):
            layer, neuron = _located(place[:, column], ends)
            halves = self.split(problems, layer, neuron)
            bound = self._relaxation(halves).value(halves.parameters) - self._enough
            worst = bound.view(2, -1).clamp(max=0).sum(0)
            better = (cost[:, column] > 0) & ((chosen < 0) | (worst > best))
            best, chosen = (
                torch.where(better, worst, best),
                torch.where(better, place[:, column], chosen),
            )
        layer, neuron = _located(chosen.clamp(min=0), ends)
        return layer, torch.where(chosen < 0, chosen, neuron)

    def improved(self, problems: Domains, steps: int, optimizer: OptimizerSettings) -> Domains:
        """Return the problems with their parameters optimised further."""
        if not len(problems.row):
            return problems
        relaxation = self._relaxation(problems)
        bound, parameters = self._optimized(relaxation, problems.parameters, steps, optimizer)
        return problems._replace(bound=torch.maximum(bound, problems.bound), parameters=parameters)

    def _optimized(
        self,
        relaxation: Relaxation,
        parameters: Parameters,
        steps: int,
        optimizer: OptimizerSettings,
    ) -> tuple[Tensor, Parameters]:
        aimed = replace(optimizer, enough=optimizer.enough + self._enough)
        bound, parameters = relaxation.improved(parameters, steps, aimed)
        return bound - self._enough, parameters

    def split(self, problems: Domains, layer: Tensor, neuron: Tensor) -> Domains:
        """Return both halves of each problem, with the bounds and parameters of the whole."""
        count = len(problems.row)
        both = problems.rows(torch.arange(count, device=layer.device).repeat(2))
        splits = [one.clone() for one in both.splits]
        for place, one in enumerate(splits):
            own = (layer == place).nonzero().squeeze(1)
            one[own, neuron[own]], one[own + count, neuron[own]] = 1, -1
        return both._replace(splits=splits)

    def _relaxation(self, problems: Domains) -> Relaxation:
        hidden = self._output_constraints.hidden(problems.lower, problems.upper)
        return Relaxation(
            self.problem._replace(hidden=hidden), self.v[problems.row], problems.splits
        )
