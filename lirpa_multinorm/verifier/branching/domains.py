"""Open parts of a branch and bound search."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..relaxations.sdp_crown import Parameters


class Domains(NamedTuple):
    """Some parts of the sets that linear forms are to be proved on.

    Args:
        row: Whose linear form, (P,).
        splits: Per layer which neurons are positive (1) or negative (-1), (P, n) each.
        parameters: Where the optimiser stands.
        bound: The bound so far, (P,).
        lower: Lower ends of :class:`.counterexamples.OutputConstraints`' neurons, (P, k).
        upper: Their upper ends.
    """

    row: Tensor
    splits: list[Tensor]
    parameters: Parameters
    bound: Tensor
    lower: Tensor
    upper: Tensor

    def rows(self, index: Tensor) -> Domains:
        """Return some of them."""
        return Domains(
            self.row[index],
            [one.index_select(0, index) for one in self.splits],
            self.parameters.rows(index),
            *[one.index_select(0, index) for one in self[3:]],
        )

    def tensors(self) -> list[Tensor]:
        """Return all tensors, one row per domain each."""
        return [
            self.row,
            *self.splits,
            *[one for field in self.parameters for one in field],
            *self[3:],
        ]

    @classmethod
    def joined(cls, parts: Sequence[Domains]) -> Domains:
        """Return all of some."""
        lists = lambda field: [torch.cat(one) for one in zip(*field)]  # noqa: E731
        return cls(
            torch.cat([part.row for part in parts]),
            lists([part.splits for part in parts]),
            Parameters(*[lists(field) for field in zip(*[part.parameters for part in parts])]),
            *[torch.cat(one) for one in zip(*[part[3:] for part in parts])],
        )


class Store:
    """Open domains, in memory that is used again.

    What a step does not work on stays where it is.

    Args:
        problems: The first ones.
    """

    def __init__(self, problems: Domains) -> None:
        self._problems, self._used = problems, torch.ones_like(problems.row, dtype=torch.bool)
        #: How many numbers a domain has.
        self.elements = sum(one[:1].numel() for one in problems.tensors()) or 1

    @property
    def row(self) -> Tensor:
        """Whose linear forms the domains are of, (P,)."""
        return self._problems.row[self._used]

    @property
    def bound(self) -> Tensor:
        """Their bounds, (P,)."""
        return self._problems.bound[self._used]

    def taken(self, index: Tensor) -> Domains:
        """Take some of the P domains out."""
        places = self._used.nonzero().squeeze(1)[index]
        self._used[places] = False
        return self._problems.rows(places)

    def add(self, problems: Domains) -> None:
        """Put domains in."""
        while int((~self._used).sum()) < len(problems.row):
            self._problems = Domains.joined([self._problems] * 2)
            self._used = torch.cat([self._used, torch.zeros_like(self._used)])
        places = (~self._used).nonzero().squeeze(1)[: len(problems.row)]
        for kept, new in zip(self._problems.tensors(), problems.tensors()):
            kept[places] = new
        self._used[places] = True
