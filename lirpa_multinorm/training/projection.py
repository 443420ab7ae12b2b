"""Gradient projection: what natural and certified epochs from the same weights agree on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InvalidArgumentError
from .numbers import checked_number

OPTIMIZERS = ("own", "copy")
STATISTICS = ("certified", "mixed")
State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Projection:
    """Settings of gradient projection, which acts on every epoch after annealing.

    Args:
        beta: Share of the projected natural update; 1 - beta is the certified update's.
        statistics: What becomes of BatchNorm's running statistics: "certified" takes the certified
            epoch's, "mixed" treats them as weights, as the released code does.
        optimizer: Of the natural epoch: "own" (Adam with moments of its own, kept over the epochs)
            or "copy" (starts every epoch with a copy of the certified optimiser's moments, as the
            released code does).
        accumulate: Whether the natural epoch never clears its gradients, as in the released code (a
            defect).
    """

    beta: float = 0.5
    statistics: str = "certified"
    optimizer: str = "own"
    accumulate: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "beta", checked_number("beta", self.beta, 0, 1))
        if not isinstance(self.accumulate, bool):
            raise InvalidArgumentError(f"accumulate={self.accumulate!r} must be True or False")
        if self.statistics not in STATISTICS:
            raise InvalidArgumentError(
                f"statistics={self.statistics!r} is unknown; use {' or '.join(STATISTICS)}"
            )
        if self.optimizer not in OPTIMIZERS:
            raise InvalidArgumentError(
                f"optimizer={self.optimizer!r} is unknown; use {' or '.join(OPTIMIZERS)}"
            )


def project_update(natural: Tensor, certified: Tensor) -> Tensor:
    """Return the natural update of one tensor, scaled by how far it agrees with the certified one.

    ``max(0, cos(g_n, g_c)) g_n``: not the orthogonal projection onto g_c. Zero where an update is
    zero.

    Args:
        natural: g_n, the change of the tensor over a natural epoch.
        certified: g_c, its change over a certified epoch from the same weights, same shape.

    Returns:
        Tensor of the same shape.

    Source: Jiang and Singh 2024 (CURE), section 4.3, equations 5 and 6.

    Example:
        >>> project_update(torch.tensor([3., 4.]), torch.tensor([1., 0.]))
        tensor([1.8000, 2.4000])
        >>> project_update(torch.tensor([-3., 4.]), torch.tensor([1., 0.]))
        tensor([-0., 0.])
    """
    g_n, g_c = natural.flatten().double(), certified.flatten().double()
    length = torch.linalg.vector_norm(g_n) * torch.linalg.vector_norm(g_c)
    cosine = torch.where(length > 0, g_n @ g_c / length, torch.zeros_like(length))
    return natural * cosine.clamp(min=0).to(natural)


def merge_epochs(start: State, natural: State, certified: State, beta: float) -> dict[str, Tensor]:
    """Return ``theta_0 + beta GP(g_n, g_c) + (1 - beta) g_c``, tensor by tensor.

    Args:
        start: theta_0, by name.
        natural: The same tensors after a natural epoch from theta_0.
        certified: The same tensors after a certified epoch from theta_0.
        beta: Share of the projected natural update, in [0, 1].

    Returns:
        The merged tensors under the names of ``start``.

    Source: Jiang and Singh 2024 (CURE), section 4.3, equations 7 and 8.

    Example:
        >>> zero, natural = {"w": torch.zeros(1)}, {"w": torch.ones(1)}
        >>> certified = {"w": torch.ones(1) * 2}
        >>> merge_epochs(zero, natural, certified, beta=0.5)["w"]
        tensor([1.5000])
    """
    merged = {}
    for name, theta in start.items():
        projected = theta + project_update(natural[name] - theta, certified[name] - theta)
        merged[name] = torch.lerp(certified[name], projected, beta)  # exact at both ends
    return merged
