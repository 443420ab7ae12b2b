"""The open domains of a branch and bound search."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..relaxations.ascent import Parameters


class Domains(NamedTuple):
    """Subsets of the sets that linear forms are to be proved on, given by the signs of neurons.

    Args:
        row: The row of the linear form that each domain belongs to, (P,).
        splits: Per layer the neurons that are positive (1) or negative (-1), (P, n) each.
        parameters: The optimiser's parameters.
        bound: The bounds so far, (P,).
        lower: Lower bounds of the neurons of :class:`.output_constraints.OutputConstraints`,
            (P, k).
        upper: Upper bounds of these neurons, (P, k).
    """

    row: Tensor
    splits: list[Tensor]
    parameters: Parameters
    bound: Tensor
    lower: Tensor
    upper: Tensor

    def rows(self, index: Tensor) -> Domains:
        """Return some of the domains."""
        return Domains(
            self.row[index],
            [tensor.index_select(0, index) for tensor in self.splits],
            self.parameters.rows(index),
            *[tensor.index_select(0, index) for tensor in self[3:]],
        )

    def tensors(self) -> list[Tensor]:
        """Return all tensors, one row per domain each."""
        return [
            self.row,
            *self.splits,
            *[tensor for field in self.parameters for tensor in field],
            *self[3:],
        ]

    @classmethod
    def joined(cls, domains: Sequence[Domains]) -> Domains:
        """Return several batches of domains as one batch."""
        parameters = zip(*[batch.parameters for batch in domains])
        return cls(
            torch.cat([batch.row for batch in domains]),
            _joined([batch.splits for batch in domains]),
            Parameters(*map(_joined, parameters)),
            *_joined([batch[3:] for batch in domains]),
        )


def _joined(batches: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """Return the tensors of several batches, each one below the other."""
    return [torch.cat(tensors) for tensors in zip(*batches)]


class Store:
    """The open domains, in memory that is used again.

    A domain keeps its slot until it is taken out.

    Args:
        domains: The first domains.
    """

    def __init__(self, domains: Domains) -> None:
        self._domains, self._used = domains, torch.ones_like(domains.row, dtype=torch.bool)
        #: How many numbers a domain has.
        self.elements = sum(tensor[:1].numel() for tensor in domains.tensors()) or 1

    @property
    def row(self) -> Tensor:
        """The row of the linear form that each domain belongs to, (P,)."""
        return self._domains.row[self._used]

    @property
    def bound(self) -> Tensor:
        """The bounds of the domains, (P,)."""
        return self._domains.bound[self._used]

    def taken(self, index: Tensor) -> Domains:
        """Take some of the P domains out, and return them."""
        slots = self._used.nonzero().squeeze(1)[index]
        self._used[slots] = False
        return self._domains.rows(slots)

    def add(self, domains: Domains) -> None:
        """Put domains in."""
        while int((~self._used).sum()) < len(domains.row):
            self._domains = Domains.joined([self._domains] * 2)
            self._used = torch.cat([self._used, torch.zeros_like(self._used)])
        slots = (~self._used).nonzero().squeeze(1)[: len(domains.row)]
        for kept, new in zip(self._domains.tensors(), domains.tensors()):
            kept[slots] = new
        self._used[slots] = True
