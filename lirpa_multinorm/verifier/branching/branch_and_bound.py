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
from ..relaxations.ascent import OptimizerSettings, Parameters
from ..relaxations.sdp_crown import Relaxation
from .domains import Domains, Store
from .output_constraints import OutputConstraints

_MAX_ELEMENTS = 1 << 29  # numbers of all open domains
_ROUNDS = 10  # of tightening intervals, at most
#: Steps for a domain in which every ReLU is decided: its bound is exact where they converge.
_LAST = 200


@dataclass(frozen=True)
class BranchSettings:
    """How branch and bound searches.

    Args:
        batch_size: Domains split at once.
        steps: Optimiser steps on each domain, from the parameters of its parent.
        slope_rate: Adam's step size in domains for the slopes; a larger one loses the parameters of
            the parent.
        multiplier_rate: Adam's step size in domains for the logarithms of the balls' multipliers.
        shift_rate: Adam's step size in domains for the multipliers of the splits.
        candidates: Neurons tried for each split.
        gain: A domain's intervals are tightened again at once where that has raised its bound by
            this share of what it lacked.
        max_subproblems: The search gives up when more are open, or sooner where they need too much
            memory.
        max_splits: The search gives up when this many have been split; None for no limit.
        enough: The value that a linear form is to be proved larger than.
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
    """Prove linear forms of a network's output positive by splitting ReLUs until every domain is.

    A domain in which a neuron is positive (or negative) has a smaller interval, an exact ReLU, and
    a multiplier for the neuron's sign, as in beta-CROWN. Of each linear form the domain whose bound
    is lowest is split first, at the neuron whose two halves have the best bounds among those with
    the costliest relaxations. In every domain the intervals of hidden neurons are tightened by
    output constraints. The search ends when all linear forms are proved, or nothing more can be
    split, or too many domains are open, or time is up.

    Args:
        problem: The problem of one example.
        v: Linear forms of the output, (R, K).
        deadline: Value of ``time.perf_counter()`` at which to stop; sound at any time.
        settings: Settings of the search.
        optimizer: Settings of the optimiser on the undivided sets; its ``enough`` is that of the
            domains, too.

    Returns:
        Lower bounds, (R,): above ``settings.enough`` where proved (the next number where it is not
        known by how much), else the lowest of the open domains.

    Source: Wang et al. 2021 (beta-CROWN); De Palma et al. 2021 (filtered smart branching); for the
    intervals as :mod:`.output_constraints`.
    """
    search, proved = _Search(problem, v, settings, optimizer), _Proved(v)
    # That there is no counterexample does not say how far off it is: only bounds of the undivided
    # set count in full.
    root = proved.unproved(search.root(), math.inf)
    store = Store(proved.unproved(search.tightened(root)))
    limit = min(settings.max_subproblems, _MAX_ELEMENTS // store.elements)
    splits = math.inf if settings.max_splits is None else settings.max_splits
    while 0 < len(store.row) <= limit and splits > 0 and time.perf_counter() < deadline:
        worst_first = ranks(store.row, store.bound).argsort(stable=True)
        chosen = store.taken(worst_first[: min(settings.batch_size, splits)])
        splits -= len(chosen.row)
        decided, halves = search.branched(chosen)
        store.add(proved.unproved(Domains.joined([decided, halves])))
        if bool((decided.bound <= 0).any()):  # nothing to split there, and still not proved
            break
    return search.restored(proved.bounds.scatter_reduce(0, store.row, store.bound, "amin"))


class _Proved:
    """The lowest bound of the proved domains of each linear form.

    Args:
        v: The linear forms, (R, K).
    """

    def __init__(self, v: Tensor) -> None:
        self._limit = torch.finfo(v.dtype).tiny
        #: The bounds, (R,); infinite where no domain has been proved.
        self.bounds = v.new_full((len(v),), math.inf)

    def unproved(self, domains: Domains, limit: float | None = None) -> Domains:
        """Return the domains that are still open, and take note of the bounds of the others.

        Args:
            domains: Some domains.
            limit: The value up to which a bound counts; None: the smallest positive number.
        """
        done = domains.bound > 0
        counted = domains.bound[done].clamp(max=self._limit if limit is None else limit)
        self.bounds.scatter_reduce_(0, domains.row[done], counted, "amin")
        return domains.rows((~done).nonzero().squeeze(1))


def _located(index: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """Return (layer, neuron) of indices of neurons that are numbered through all layers."""
    layer = torch.searchsorted(offsets, index.contiguous(), right=True) - 1
    return layer, index - offsets[layer]


class _Search:
    """The steps of the search; all bounds are of the linear forms less ``settings.enough``."""

    def __init__(
        self, problem: Problem, v: Tensor, settings: BranchSettings, optimizer: OptimizerSettings
    ) -> None:
        self.problem, self.v, self.settings, self.optimizer = problem, v, settings, optimizer
        self._domain_settings = replace(
            optimizer,
            slope_rate=settings.slope_rate,
            multiplier_rate=settings.multiplier_rate,
            shift_rate=settings.shift_rate,
            last_rate=1.0,
        )
        self._output_constraints = OutputConstraints(problem, v)
        self._proved, self._threshold = torch.finfo(v.dtype).tiny, settings.enough

    def restored(self, bounds: Tensor) -> Tensor:
        """Return the bounds of the linear forms, with ``settings.enough`` added again."""
        if not self._threshold:
            return bounds
        # The sum may be rounded to the threshold itself.
        shifted, step = bounds + self._threshold, 4 * torch.finfo(bounds.dtype).eps
        return torch.where(
            bounds > 0,
            shifted.clamp(min=self._threshold * (1 + step)),
            shifted.clamp(max=self._threshold * (1 - step)),
        )

    def root(self) -> Domains:
        """Return the undivided sets as domains, with optimised bounds."""
        rows = torch.arange(len(self.v), device=self.v.device)
        splits = [
            torch.zeros(len(rows), lower.shape[1], dtype=torch.int8, device=lower.device)
            for lower in self.problem.hidden.lower
        ]
        relaxation = Relaxation(self.problem, self.v, splits)
        bound, parameters = self._optimized(
            relaxation, relaxation.first(), sum(self.optimizer.rounds), self.optimizer
        )
        return Domains(rows, splits, parameters, bound, *self._output_constraints.first(len(rows)))

    def tightened(self, domains: Domains) -> Domains:
        """Return the domains with tighter intervals and optimised bounds, as long as it pays."""
        done, constraints = [domains.rows(domains.row[:0])], self._output_constraints
        for _ in range(_ROUNDS):
            if not len(domains.row):
                break
            constant, slopes = self._relaxation(domains).linear(domains.parameters)
            hidden = constraints.hidden(domains.lower, domains.upper).split(domains.splits)
            lower, upper, empty = constraints.tightened(
                *constraints.intervals_in(hidden), constant - self._threshold, slopes
            )
            better = domains._replace(lower=lower, upper=upper)
            better = self.improved(better, self.settings.steps, self._domain_settings)
            bound = torch.where(empty, better.bound.clamp(min=self._proved), better.bound)
            better = better._replace(bound=bound)
            again = (better.bound <= 0) & (better.bound > (1 - self.settings.gain) * domains.bound)
            done.append(better.rows((~again).nonzero().squeeze(1)))
            domains = better.rows(again.nonzero().squeeze(1))
        return Domains.joined([*done, domains])

    def branched(self, domains: Domains) -> tuple[Domains, Domains]:
        """Split domains; return those in which every ReLU is decided, and the halves of the others.

        The bounds of both are optimised.
        """
        layer, neuron = self.neurons(domains)
        decided = domains.rows((neuron < 0).nonzero().squeeze(1))
        decided = self.improved(decided, _LAST, self.optimizer)
        rows = (neuron >= 0).nonzero().squeeze(1)
        return decided, self.tightened(self.split(domains.rows(rows), layer[rows], neuron[rows]))

    def neurons(self, domains: Domains) -> tuple[Tensor, Tensor]:
        """Return (layer, neuron) to split in each domain; neuron -1 where every ReLU is decided."""
        sizes = [signs.shape[1] for signs in domains.splits]
        if not sizes:
            return torch.full_like(domains.row, -1), torch.full_like(domains.row, -1)
        losses = torch.cat(self._relaxation(domains).losses(domains.parameters), dim=1)
        cost, candidates = losses.topk(min(self.settings.candidates, losses.shape[1]), dim=1)
        offsets = torch.tensor([0, *sizes], device=candidates.device).cumsum(0)
        best, chosen = torch.full_like(domains.bound, -math.inf), torch.full_like(domains.row, -1)
        for column in range(candidates.shape[1]):
            layer, neuron = _located(candidates[:, column], offsets)
            halves = self.split(domains, layer, neuron)
            bound = self._relaxation(halves).value(halves.parameters) - self._threshold
            worst = bound.view(2, -1).clamp(max=0).sum(0)
            better = (cost[:, column] > 0) & ((chosen < 0) | (worst > best))
            best = torch.where(better, worst, best)
            chosen = torch.where(better, candidates[:, column], chosen)
        layer, neuron = _located(chosen.clamp(min=0), offsets)
        return layer, torch.where(chosen < 0, chosen, neuron)

    def improved(self, domains: Domains, steps: int, optimizer: OptimizerSettings) -> Domains:
        """Return the domains with their parameters optimised further."""
        if not len(domains.row):
            return domains
        relaxation = self._relaxation(domains)
        bound, parameters = self._optimized(relaxation, domains.parameters, steps, optimizer)
        return domains._replace(bound=torch.maximum(bound, domains.bound), parameters=parameters)

    def _optimized(
        self,
        relaxation: Relaxation,
        parameters: Parameters,
        steps: int,
        optimizer: OptimizerSettings,
    ) -> tuple[Tensor, Parameters]:
        aimed = replace(optimizer, enough=optimizer.enough + self._threshold)
        bound, parameters = relaxation.improved(parameters, steps, aimed)
        return bound - self._threshold, parameters

    def split(self, domains: Domains, layer: Tensor, neuron: Tensor) -> Domains:
        """Return both halves of each domain, with the bounds and parameters of their parent."""
        count = len(domains.row)
        both = domains.rows(torch.arange(count, device=layer.device).repeat(2))
        splits = [signs.clone() for signs in both.splits]
        for depth, signs in enumerate(splits):
            chosen = (layer == depth).nonzero().squeeze(1)
            signs[chosen, neuron[chosen]], signs[chosen + count, neuron[chosen]] = 1, -1
        return both._replace(splits=splits)

    def _relaxation(self, domains: Domains) -> Relaxation:
        hidden = self._output_constraints.hidden(domains.lower, domains.upper)
        return Relaxation(self.problem._replace(hidden=hidden), self.v[domains.row], domains.splits)
