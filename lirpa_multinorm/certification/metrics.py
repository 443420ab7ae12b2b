"""What a certification found, and the accuracies that follow."""

from __future__ import annotations

import math
from typing import List, Sequence

import torch
from torch import Tensor

from ..perturbations import PerturbationLpBox

#: Status of an (image, set) pair. Open pairs at the end are "unknown": neither proved nor broken.
CERTIFIED, FALSIFIED, UNKNOWN, MISCLASSIFIED = "certified", "falsified", "unknown", "misclassified"


class Certification:
    """Status, deciding method and best margin bound of every (image, set) pair.

    Args:
        perturbations: The sets.
        status: One list of statuses per set.
        method: What decided each pair: a method's name, or "" while it is open.
        margin: Best lower margin bound of each pair, (sets, n); -inf where none was computed.
    """

    def __init__(self, perturbations: Sequence[PerturbationLpBox], status: List[List[str]], method: List[List[str]],
                 margin: Tensor) -> None:
        self.perturbations, self.status, self.method, self.margin = list(perturbations), status, method, margin

    @classmethod
    def started(cls, perturbations: Sequence[PerturbationLpBox], correct: Tensor) -> "Certification":
        """Return the state after clean prediction, ``correct`` of shape (n,)."""
        first = [UNKNOWN if right else MISCLASSIFIED for right in correct.tolist()]
        decided = ["" if right else "clean" for right in correct.tolist()]
        count = len(perturbations)
        return cls(perturbations, [list(first) for _ in range(count)], [list(decided) for _ in range(count)],
                   torch.full((count, len(first)), -math.inf))

    @classmethod
    def concatenate(cls, parts: Sequence["Certification"],
                    sets: Sequence[PerturbationLpBox]) -> "Certification":
        """Return one certification of all images of the parts, against the sets they were parts of."""
        return cls(sets, [[one for part in parts for one in part.status[i]] for i in range(len(sets))],
                   [[one for part in parts for one in part.method[i]] for i in range(len(sets))],
                   torch.cat([part.margin for part in parts], dim=1))

    def open(self, place: int) -> Tensor:
        """Return the indices of the images still open for a set."""
        return torch.tensor([i for i, one in enumerate(self.status[place]) if one == UNKNOWN], dtype=torch.long)

    def decide(self, place: int, images: Tensor, status: str, method: str) -> None:
        """Give some images a final status for a set."""
        for image in images.tolist():
            self.status[place][image], self.method[place][image] = status, method

    def tighten(self, place: int, images: Tensor, margin: Tensor) -> None:
        """Keep the better margin bound of some images for a set."""
        images = images.cpu()
        self.margin[place, images] = torch.maximum(self.margin[place, images], margin.detach().cpu().to(self.margin))

    def is_status(self, status: str) -> Tensor:
        """Return which pairs have a status, bool of shape (sets, n)."""
        return torch.tensor([[one == status for one in row] for row in self.status])

    def summary(self) -> dict:
        """Return the accuracies as shares of all n images.

        Returns:
            ``n``, ``clean``, ``certified`` and ``attacked`` (one value per set), ``certified_union`` (certified for
            every set at once), ``attacked_union`` (correct and broken in no set: an upper bound of the union).
        """
        certified, broken = self.is_status(CERTIFIED), self.is_status(FALSIFIED) | self.is_status(MISCLASSIFIED)
        share = lambda mask: float(mask.double().mean())  # noqa: E731
        return {"n": certified.shape[1], "clean": share(~self.is_status(MISCLASSIFIED)[0]),
                "certified": [share(row) for row in certified], "attacked": [share(~row) for row in broken],
                "certified_union": share(certified.all(0)), "attacked_union": share(~broken.any(0))}
