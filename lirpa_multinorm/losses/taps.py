"""TAPS: margins by an attack on a box in a network's latent space, which IBP computes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Callable

import torch
from torch import Tensor

from ..attacks.geometry import Randomness, uniform
from ..bounds.latent import LatentClassifier
from ..errors import InvalidArgumentError
from .margin import margin_cross_entropy


@dataclass(frozen=True)
class Taps:
    """Settings of TAPS's estimates of margins and of its loss.

    Args:
        layers: Activation layers of the classifier, which is attacked; those in front of it are
            bounded by IBP.
        steps: Gradient steps of the attack in the latent box.
        restarts: Its runs from random points; the best point of all is kept.
        connector: c of the gradient connector, see :func:`connected`.
        weight: Factor on the gradient of the attack's loss beside that of IBP's; published 2 to 8.
        product: Whether the loss is that of the attack times IBP's, as published; False: the former
            alone, which has the size of a cross-entropy.

    Source: Mao et al. 2023, "Connecting Certified and Adversarial Training", section 3; steps,
    decay and the sizes of weight and connector as in their released code (eth-sri/CTBench).
    """

    layers: int = 1
    steps: int = 8
    restarts: int = 1
    connector: float = 0.5
    weight: float = 5.0
    product: bool = True

    def __post_init__(self) -> None:
        for name in ("layers", "steps", "restarts"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
                raise InvalidArgumentError(
                    f"taps: {name}={value!r} must be a whole number, at least 1"
                )
        for name, most in (("connector", 1.0), ("weight", 1e6)):
            value = getattr(self, name)
            number = isinstance(value, Real) and not isinstance(value, bool)
            if not number or not 0 < value <= most:
                raise InvalidArgumentError(
                    f"taps: {name}={value!r} must be a number in (0, {most:g}]"
                )
        if not isinstance(self.product, bool):
            raise InvalidArgumentError(f"taps: product={self.product!r} must be True or False")

    def rate(self, step: int) -> float:
        """Return the length of a step as a share of the box's width.

        The last third of ten steps or more is shorter.
        """
        decayed = self.steps >= 10 and step >= int(0.7 * self.steps)
        return max(0.2, 2 / self.steps) * (0.2 if decayed else 1.0)


def connected(points: Tensor, lower: Tensor, upper: Tensor, c: float) -> Tensor:
    """Return points of a box, whose gradients flow to its bounds by TAPS's connector.

    ``dz / du = clip(1 - (u - z) / (c (u - l)), 0, 1)`` and ``dz / dl = clip(1 - (z - l) / (c (u -
    l)), 0, 1)``; a half each where the box has no width.

    Args:
        points: z, (N, ...).
        lower: l, same shape.
        upper: u, same shape.
        c: In (0, 1]: share of the width over which a bound's derivative falls from 1 to 0.

    Returns:
        The points.

    Source: Mao et al. 2023, section 3 (gradient connector; "rectified linear gradient link" of the
        released code).

    Example:
        >>> lower, upper = torch.zeros(3, requires_grad=True), torch.ones(3, requires_grad=True)
        >>> connected(torch.tensor([0.25, 0.9, 1.0]), lower, upper, 0.5).sum().backward()
        >>> lower.grad, upper.grad
        (tensor([0.5000, 0.0000, 0.0000]), tensor([0.0000, 0.8000, 1.0000]))
    """
    z, z_min, z_max = points.detach(), lower.detach(), upper.detach()
    ramp = c * (z_max - z_min)

    def share(distance: Tensor) -> Tensor:
        return torch.where(ramp > 0, (1 - distance / ramp).clamp(0, 1), 0.5)

    return z + share(z_max - z) * (upper - z_max) + share(z - z_min) * (lower - z_min)


def taps_margins(
    classifier: LatentClassifier,
    box: tuple[Tensor, Tensor],
    C: Tensor,
    taps: Taps,
    generator: Randomness = None,
) -> Tensor:
    """Return the least margins that attacks find in a latent box, with an attack per margin.

    They are **estimates**, between IBP's bound of the same box and the margin at any point of it
    that the attack visits; nothing is certified by them.

    Args:
        classifier: The layers from the latent space to the outputs.
        box: (lower, upper) in the latent space, (B, ...) each.
        C: Specification ``f_y - f_k``, (B, K - 1, K).
        taps: Settings.
        generator: Source of the random starts.

    Returns:
        Margins (B, K - 1), with gradients in the classifier and, through :func:`connected`, in the
        box.

    Source: Mao et al. 2023, section 3 (multi-estimator PGD).
    """
    count = C.shape[1]
    lower, upper = (bound.repeat_interleave(count, 0) for bound in box)
    rows = C.flatten(0, 1)

    def margins(points: Tensor) -> Tensor:
        return (rows * classifier.outputs(points)).sum(1)

    points = _attacked(margins, lower.detach(), upper.detach(), taps, generator)
    return margins(connected(points, lower, upper, taps.connector)).unflatten(0, (-1, count))


def _attacked(
    margins: Callable[[Tensor], Tensor],
    lower: Tensor,
    upper: Tensor,
    taps: Taps,
    generator: Randomness,
) -> Tensor:
    """Return points of boxes (N, ...) where signed gradient steps reach the least margins."""
    width, best, least = upper - lower, lower, torch.full_like(lower.flatten(1)[:, 0], math.inf)
    for _ in range(taps.restarts):
        point = (lower + width * uniform(lower, generator)).clamp(lower, upper)
        for step in range(taps.steps + 1):
            point.requires_grad_()
            with torch.enable_grad():
                margin = margins(point)
            better = margin.detach() < least
            least = torch.where(better, margin.detach(), least)
            best = torch.where(better.view(-1, *[1] * (point.ndim - 1)), point.detach(), best)
            if step == taps.steps:
                break
            (gradient,) = torch.autograd.grad(margin, point, torch.ones_like(margin))
            moved = torch.addcmul(point.detach(), width, gradient.sign_(), value=-taps.rate(step))
            point = moved.clamp_(lower, upper)
    return best


def taps_loss(margins: Tensor, interval: Tensor, taps: Taps) -> Tensor:
    """Return ``L(margins) L(interval)`` per example, whose first factor's gradient is multiplied.

    Args:
        margins: Of :func:`taps_margins`, (B, K - 1).
        interval: IBP's lower bounds of the same margins, (B, K - 1).
        taps: Settings.

    Returns:
        Tensor of shape (B,); at radius zero the squared cross-entropy, or with ``product=False``
        the cross-entropy.

    Source: Mao et al. 2023, section 3. The released code multiplies the two means over a batch;
    here each example's losses are multiplied, so that norms can be compared example by example.

    Example:
        >>> taps_loss(torch.zeros(1, 1), torch.zeros(1, 1), Taps()).sqrt()
        tensor([0.6931])
    """
    loss = margin_cross_entropy(margins)
    loss = loss + (taps.weight - 1) * (loss - loss.detach())
    return loss * margin_cross_entropy(interval) if taps.product else loss


def as_taps(value: object) -> Taps:
    """Return settings of TAPS from themselves or from a dict of some fields."""
    if isinstance(value, Taps):
        return value
    if isinstance(value, dict) and set(value) <= set(Taps.__dataclass_fields__):
        return Taps(**value)
    raise InvalidArgumentError(
        f"taps={value!r} must be Taps(...), or a dict of its fields "
        f"{', '.join(Taps.__dataclass_fields__)}"
    )
