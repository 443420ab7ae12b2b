"""The cascade's stages: each gives lower bounds of margins that are still open."""

from __future__ import annotations

import math
import time
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..bounds import BoundedModule
from ..bounds.methods import METHODS, Method, canonical_name
from ..errors import InvalidArgumentError, UnsupportedModelError
from ..perturbations import PerturbationLpBox
from ..utils.hints import did_you_mean
from ..utils.memory import is_out_of_memory
from ..verifier.branching.branch_and_bound import BranchSettings
from .open_pairs import OpenPairs


class Outcome(NamedTuple):
    """What a stage has found.

    Args:
        bounds: A sound lower bound of each open pair's margin, (P,).
        broken: Adversarial examples by (set, image), of the image's shape.
    """

    bounds: Tensor
    broken: dict[tuple[int, int], Tensor]


class Stage:
    """A method of the cascade.

    A stage that cannot bound the model raises UnsupportedModelError, and is then left out for that
    model.

    Args:
        name: The stage's name in settings and results.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    #: The class of the sets that the stage bounds; pairs of others are not given to it.
    takes: type = PerturbationLpBox

    def within(self, time_limit: float | None) -> Stage:
        """Return the stage as it is to run with a time limit per image, or without one."""
        return self

    def precedes_attacks(self, model: nn.Module) -> bool:
        """Return whether a model's bounds by the stage cost less than an attack."""
        return False

    def bound(self, bounded: BoundedModule, pairs: OpenPairs, deadline: float) -> Tensor:
        """Return a sound lower bound of each open pair's margin, shape (P,).

        Args:
            bounded: The network, in eval mode.
            pairs: What is open; at least one pair.
            deadline: Value of ``time.perf_counter()`` by which to return the bounds that are then
                proved (-inf: none); infinite without a limit. A stage that cannot stop half-way may
                ignore it.
        """
        raise NotImplementedError

    def work(self, bounded: BoundedModule, pairs: OpenPairs, deadline: float) -> Outcome:
        """Return what :meth:`bound` returns, and adversarial examples if the stage finds some.

        Args: as of :meth:`bound`.
        """
        return Outcome(self.bound(bounded, pairs, deadline), {})


class BoundStage(Stage):
    """A method of ``compute_region_bounds``: one call over all sets, for open classes only."""

    def bound(self, bounded: BoundedModule, pairs: OpenPairs, deadline: float) -> Tensor:
        """Return the method's bounds; see :meth:`Stage.bound`."""
        method = METHODS[self.name]
        if method.faster is None:
            return self._by(method, bounded, pairs)
        try:
            return self._by(METHODS[method.faster], bounded, pairs)
        except UnsupportedModelError as error:
            if is_out_of_memory(error):
                raise
            return self._by(method, bounded, pairs)

    @staticmethod
    def _by(method: Method, bounded: BoundedModule, pairs: OpenPairs) -> Tensor:
        """Return the lower bounds of the open pairs by a method, shape (P,)."""
        groups = pairs.gathered()
        regions = [pairs.region(set_index, images) for set_index, images, _ in groups]
        options = {"enough": pairs.threshold()} if "enough" in method.options else {}
        bounds = bounded.compute_region_bounds(
            regions, [C for _, _, C in groups], method.name, bound_upper=False, **options
        )
        return pairs.from_gathered([lower.detach() for lower, _ in bounds])


#: Domains that branch and bound splits for an image and set where no time limit ends it.
MAX_SPLITS = 200
#: A search begins only where no bound of a margin lacks more than this share of the clean one:
#: more it hardly ever makes up for.
MAX_LACK = 0.5


class BranchStage(Stage):
    """Branch and bound, image by image, each with its share of the remaining time.

    Args:
        name: See :class:`Stage`.
        max_splits: Domains to split for each image and set; None for no limit.
        max_lack: Share of a clean margin that its bound may lack for a search to begin; see
            :meth:`OpenPairs.lack`.
    """

    def __init__(
        self, name: str, max_splits: int | None = MAX_SPLITS, max_lack: float = MAX_LACK
    ) -> None:
        super().__init__(name)
        self.max_splits, self.max_lack = max_splits, max_lack

    def within(self, time_limit: float | None) -> Stage:
        """Return a stage that is ended by the time limit alone, or, without one, is as it is.

        Numbers, unlike a time, find the same on every machine.
        """
        return self if time_limit is None else BranchStage(self.name, None, math.inf)

    def bound(self, bounded: BoundedModule, pairs: OpenPairs, deadline: float) -> Tensor:
        """Return bounds, positive where proved; see :meth:`Stage.bound`."""
        C = pairs.specification().squeeze(1)
        bounds = pairs.x.new_full((len(pairs),), -math.inf)
        groups = torch.stack([pairs.set_index, pairs.image], dim=1)
        searched = self._searched(groups, pairs, bounded.model)
        start = time.perf_counter()
        for set_index, image in searched:
            rows = (groups == groups.new_tensor([set_index, image])).all(1)
            region = pairs.region(set_index, torch.tensor([image], device=pairs.x.device))
            share = (deadline - start) / len(searched)
            bounds[rows] = bounded.branch_and_bound(
                region,
                C[rows],
                time.perf_counter() + share,
                BranchSettings(max_splits=self.max_splits, enough=pairs.threshold(rows)),
            )
        return bounds

    def _searched(self, groups: Tensor, pairs: OpenPairs, model: nn.Module) -> list[list[int]]:
        """Return the (set, image) groups none of whose bounds lacks more than ``max_lack``."""
        hopeless: list[list[int]] = []
        if self.max_lack != math.inf:
            hopeless = groups[pairs.lack(model) > self.max_lack].unique(dim=0).tolist()
        return [group for group in groups.unique(dim=0).tolist() if group not in hopeless]


#: The stages by name. To add a method: ``STAGES[stage.name] = stage``.
STAGES: dict[str, Stage] = {
    method.name: BoundStage(method.name) if method.bounds else BranchStage(method.name)
    for method in METHODS.values()
}


def stage_of(method: str) -> Stage:
    """Return the stage of a name, in any case and under any of the host's other names.

    Raises:
        InvalidArgumentError: There is none.
    """
    by_lower_name = {name.lower(): stage for name, stage in STAGES.items()}
    spellings = (str(method).lower(), canonical_name(method).lower())
    stage = next((by_lower_name[name] for name in spellings if name in by_lower_name), None)
    if stage is None or not isinstance(method, str):
        hint = did_you_mean(method, STAGES, sentence=False)
        raise InvalidArgumentError(f"methods: {method!r} is unknown;{hint} use {', '.join(STAGES)}")
    return stage
