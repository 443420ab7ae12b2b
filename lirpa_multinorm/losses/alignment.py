"""Bound alignment: where the bottleneck norm is proved, the other norms' bounds follow it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InvalidArgumentError
from ..utils import distributed
from .margin import robust_logits


@dataclass(frozen=True)
class Alignment:
    """Settings of bound alignment.

    Args:
        eta: Weight of the alignment beside the robust loss.
        target: The bottleneck norm q, whose distribution the others shall come close to: 1, 2,
            "inf", or "both" for every norm in turn.
        detach: Whether no gradient flows into the target's bounds (the paper lets it flow).
    """

    eta: float = 2.0
    target: str | float = 2
    detach: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.eta < float("inf"):  # also NaN
            raise InvalidArgumentError(
                f"eta={self.eta!r} must be finite and not negative; the paper uses 0.5 and 2.0"
            )
        if self.target != "both":
            try:
                object.__setattr__(self, "target", float(self.target))
            except (TypeError, ValueError) as error:
                raise InvalidArgumentError(
                    f"target={self.target!r} must be 1, 2, 'inf' or 'both'"
                ) from error

    def pairs(self, norms: Sequence[float]) -> list[tuple[int, int]]:
        """Return the (target, other) terms to align.

        Raises:
            InvalidArgumentError: Fewer than two norms, or none is the target.
        """
        if len(norms) < 2:
            raise InvalidArgumentError(
                f"perturbations has {len(norms)} set; bound alignment (eta={self.eta}) needs two"
            )
        targets = [i for i, norm in enumerate(norms) if self.target in ("both", norm)]
        if not targets:
            raise InvalidArgumentError(
                f"target={self.target!r} is not the norm of any set; name one of"
                f" {', '.join(str(norm) for norm in norms if norm is not None)}, or add a set of it"
            )
        return [(q, r) for q in targets for r in range(len(norms)) if r != q]


def bound_alignment(target: Tensor, other: Tensor, detach: bool = False) -> Tensor:
    """Return the mean divergence of two norms' bounds over examples that the target norm proves.

    ``mean over i in gamma of KL(d_q,i || d_r,i)``, where d = softmax of the worst-case logits (0,
    -lb_1, ...) and gamma = examples whose margins are all positive for q. Zero where gamma is
    empty.

    Args:
        target: Lower margin bounds of the bottleneck norm q, shape (B, K - 1).
        other: Lower margin bounds of another norm r for the same examples, same shape.
        detach: Whether no gradient flows into ``target``.

    Returns:
        A scalar.

    Source: Jiang and Singh 2024 (CURE), section 4.2, equation 2; computed, as in the released code,
    on the small training regions.

    Example:
        >>> proved, other = torch.tensor([[1., 2.], [-1., 2.]]), torch.tensor([[1., 2.], [0., 0.]])
        >>> float(bound_alignment(proved, other))  # only the first counts, where the two agree
        0.0
    """
    if target.shape != other.shape:
        raise InvalidArgumentError(
            f"other: shape {tuple(other.shape)} beside target's {tuple(target.shape)}; both "
            "must hold margins of the same examples"
        )
    proved = (target.detach() > 0).all(dim=1)
    if detach:
        target = target.detach()
    log_q, log_r = (F.log_softmax(robust_logits(margins), dim=1) for margins in (target, other))
    divergence = (log_q.exp() * (log_q - log_r)).sum(dim=1)
    total = distributed.all_sum(torch.where(proved, divergence, torch.zeros_like(divergence)).sum())
    return total / distributed.all_sum(proved.sum().to(total)).clamp(min=1)
