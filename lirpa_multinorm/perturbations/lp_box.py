"""Perturbation sets: an l_p ball around the input, cut with the box that valid inputs live in."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .. import host
from ..errors import InvalidArgumentError
from .arguments import check_values, checked_clip, checked_eps
from .broadcast import as_tensor, beside, column, extent, is_per_example
from .norms import NORMS, Norm, number_of


class PerturbationLpBox(host.Perturbation):
    """The set {x' : ``||x' - x||_p <= eps``, ``clip[0] <= x' <= clip[1]``}.

    Args:
        norm: p, one of 1, 2 and ``math.inf`` (also "inf"), or a norm of yours
            (``docs/adding-a-norm.md``).
        eps: Radius, in the units of the model's input: a float >= 0, or one value per example,
            shape (B,).
        clip: Range of valid inputs: a pair of floats or of tensors (one value per channel, shape
            (C,), for inputs that are already normalised; any shape that broadcasts to one input
            works too). None: the plain ball.

    Raises:
        InvalidArgumentError: norm, eps or clip cannot be used; the message says which and why.

    Example:
        >>> ball = PerturbationLpBox(norm=2, eps=0.5)
        >>> ball
        PerturbationLpBox(norm=2, eps=0.5, clip=(0.0, 1.0))
        >>> x = torch.tensor([[0.9, 0.5]])
        >>> lower, upper = ball.enclosing_box(x)
        >>> upper
        tensor([[1., 1.]])
    """

    def __init__(self, norm: float | str, eps, clip: Sequence | None = (0.0, 1.0)) -> None:
        super().__init__()
        self.norm = number_of(norm)
        self.eps = checked_eps(eps)
        self.clip = checked_clip(clip)

    def __repr__(self) -> str:
        eps = self.eps if isinstance(self.eps, float) else f"<{self.eps.numel()} values>"
        return f"{type(self).__name__}(norm={self.norm}, eps={eps}, clip={self.clip})"

    @property
    def ball(self) -> Norm:
        """What is known of the ball: support function, steepest direction, projection."""
        return NORMS[self.norm]

    @property
    def name(self) -> str:
        """A short name for tables: "l_inf", "l_2" or "l_1"."""
        return f"l_{self.norm}"

    @property
    def label(self) -> str:
        """The name with the radius, or with how many radii there are."""
        eps = self.eps
        return f"{self.name} {eps:g}" if isinstance(eps, float) else f"{self.name} of {eps.numel()}"

    def title(self) -> str:
        """Return a description of the set: the ball, and the range that cuts it.

        Example:
            >>> PerturbationLpBox(2, 0.5).title(), PerturbationLpBox("inf", 0.1, clip=None).title()
            ('l_2 ball of radius 0.5 within [0, 1]', 'plain l_inf ball of radius 0.1')
        """
        ball = f"l_{self.norm} ball of radius {extent(self.eps, ' to ')}"
        if self.clip is None:
            return f"plain {ball}"
        lower, upper = (as_tensor(bound) for bound in self.clip)
        return f"{ball} within [{float(lower.min()):.6g}, {float(upper.max()):.6g}]"

    def of_images(self, images: Tensor, x: Tensor) -> PerturbationLpBox:
        """Return the set for some images of a batch, with the radii and ranges of these images.

        Args:
            images: Indices or a mask, shape (B,).
            x: The batch, (B, ...).
        """
        other = copy.copy(self)
        if not isinstance(self.eps, float) and self.eps.numel() > 1:
            other.eps = self.eps[images.to(self.eps.device)]
        if self.clip is not None:
            lower, upper = (
                bound[images.to(bound.device)]
                if isinstance(bound, Tensor) and is_per_example(bound, x)
                else bound
                for bound in self.clip
            )
            other.clip = lower, upper
        return other

    def of_pixels(self, pixels: Tensor, x: Tensor) -> PerturbationLpBox:
        """Return the set for linear forms of some pixels only, with x flattened.

        Args:
            pixels: Indices into a flattened input, (m,).
            x: The batch, (B, ...).
        """
        box = None
        if self.clip is not None and any(
            isinstance(bound, Tensor) and bound.ndim for bound in self.clip
        ):
            box = self.clip_box(x)
        if box is None:
            return self
        other = copy.copy(self)
        lower, upper = (bound.expand_as(x).flatten(1)[:, pixels] for bound in box)
        other.clip = lower, upper
        return other

    def unclipped(self) -> PerturbationLpBox:
        """Return the ball without ``clip``."""
        other = copy.copy(self)
        other.clip = None
        return other

    def with_eps(self, eps) -> PerturbationLpBox:
        """Return the set with another radius."""
        other = copy.copy(self)
        other.set_eps(eps)
        return other

    def set_eps(self, eps) -> None:
        """Change the radius in place (the host's schedulers call this)."""
        self.eps = checked_eps(eps)

    def is_box(self) -> bool:
        """Return whether the set is a box (norm inf), which interval arithmetic bounds exactly."""
        return self.norm == math.inf

    # --- geometry ---------------------------------------------------------------------------------

    def radius(self, x: Tensor) -> Tensor:
        """Return eps as a tensor of shape (B,) beside x of shape (B, ...)."""
        eps = torch.as_tensor(self.eps, dtype=x.dtype, device=x.device)
        if eps.ndim and eps.shape[0] not in (1, x.shape[0]):
            raise InvalidArgumentError(
                f"eps has {eps.shape[0]} values for a batch of {x.shape[0]}; give one float or "
                "one value per example"
            )
        return eps.expand(x.shape[0])

    def clip_box(self, x: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return (lower, upper) of ``clip``, broadcastable to x, or None."""
        if self.clip is None:
            return None
        lower, upper = self.clip
        return beside(lower, x), beside(upper, x)

    def offsets(self, x: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return (lower, upper) of each coordinate's move inside ``clip``; None without clip."""
        box = self.clip_box(x)
        # The set always contains x itself, also where rounding has put it just outside.
        return None if box is None else ((box[0] - x).clamp(max=0), (box[1] - x).clamp(min=0))

    def enclosing_box(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return (lower, upper) of the smallest box around the set, both of x's shape."""
        lower, upper = self._box_offsets(x)
        return x + lower, x + upper

    def _box_offsets(self, x: Tensor) -> tuple[Tensor, Tensor]:
        eps = column(self.radius(x), x)
        offsets = self.offsets(x)
        if offsets is None:
            return (-eps).expand_as(x), eps.expand_as(x)
        lower, upper = offsets
        return torch.maximum(lower, -eps), torch.minimum(upper, eps)

    def extreme(self, rows, x: Tensor, sign: int) -> Tensor:
        """Return the exact maximum (sign +1) or minimum (sign -1) of linear forms on the set.

        Args:
            rows: Linear forms, one of the classes of :mod:`lirpa_multinorm.perturbations.rows`.
            x: Centres, shape (B, ...).
            sign: +1 or -1.

        Returns:
            (B, S); the formulas stand in :mod:`lirpa_multinorm.perturbations.support`.
        """
        if self.norm == math.inf:
            lower, upper = self.enclosing_box(x)
            return rows.apply((lower + upper) / 2) + sign * rows.apply_abs((upper - lower) / 2)
        return rows.apply(x) + sign * self.deviation(rows, self.offsets(x), self.radius(x), sign)

    def far_point(self, direction: Tensor, x: Tensor) -> Tensor:
        """Return a point of the set that lies far along a direction, shape of x.

        The farthest one in l_inf and in a plain l_2 ball; elsewhere one that a steepest step of
        length eps reaches, as far as ``clip`` lets it.

        Args:
            direction: Shape of x.
            x: Centres, shape (B, ...).
        """
        lower, upper = self._box_offsets(x)
        steepest = self.ball.steepest(direction.flatten(1), None).view_as(x)
        step = steepest * column(self.radius(x), x)
        return x + torch.minimum(torch.maximum(step, lower), upper)

    def deviation(
        self, rows, offsets: tuple[Tensor, Tensor] | None, eps: Tensor, sign: int
    ) -> Tensor:
        """Return max of ``sign * a.d`` over the offsets d of a set that is no box, (B, S).

        Args:
            rows: Linear forms of the offsets.
            offsets: What :meth:`offsets` returns, possibly carried to other coordinates.
            eps: What :meth:`radius` returns.
            sign: +1 or -1.
        """
        if offsets is None:
            return rows.norm(self.ball.dual).to(eps) * eps.unsqueeze(1)
        lower, upper = offsets if sign > 0 else (-offsets[1], -offsets[0])
        return rows.couple(self.ball.support, lower, upper, eps)

    def l2_radius(self, x: Tensor) -> Tensor:
        """Return how far the set reaches from x in l_2, shape (B,), or a bound of it."""
        lower, upper = self._box_offsets(x)
        corner = torch.linalg.vector_norm(torch.maximum(lower.abs(), upper.abs()).flatten(1), dim=1)
        return corner if self.norm > 2 else torch.minimum(corner, self.radius(x))

    def contains(self, point: Tensor, x: Tensor, tolerance: float = 1e-5) -> Tensor:
        """Return which points lie in the set around x, shape (B,) of bool; NaN lies nowhere."""
        distance = torch.linalg.vector_norm((point - x).flatten(1), self.norm, dim=1)
        in_ball = distance <= self.radius(x) + tolerance
        box = self.clip_box(x)
        if box is None:
            return in_ball
        in_clip = (point >= box[0] - tolerance) & (point <= box[1] + tolerance)
        return in_ball & in_clip.flatten(1).all(1)

    def check_input(self, x: Tensor, name: str = "x") -> None:
        """Raise InvalidArgumentError where x is NaN, outside clip, or no batch for this eps."""
        self.radius(x)
        if not x.numel():
            raise InvalidArgumentError(f"{name} is an empty batch; give at least one input")
        check_values(x.detach(), self.clip_box(x), name)

    # --- the host's protocol ----------------------------------------------------------------------

    def init(self, x, aux=None, forward=False):
        """Refuse the host's own module, whose operators read the norm as a tag and are unsound."""
        raise InvalidArgumentError(
            f"{type(self).__name__} needs lirpa_multinorm.BoundedModule; the host's own module "
            "cannot bound it soundly"
        )

    concretize = init


class PerturbationLinf(PerturbationLpBox):
    """The l_inf ball of radius eps cut with clip; see :class:`PerturbationLpBox`."""

    def __init__(self, eps, clip: Sequence | None = (0.0, 1.0)) -> None:
        super().__init__(math.inf, eps, clip)


class PerturbationL2Box(PerturbationLpBox):
    """The l_2 ball of radius eps cut with clip; see :class:`PerturbationLpBox`."""

    def __init__(self, eps, clip: Sequence | None = (0.0, 1.0)) -> None:
        super().__init__(2, eps, clip)


class PerturbationL1Box(PerturbationLpBox):
    """The l_1 ball of radius eps cut with clip; see :class:`PerturbationLpBox`."""

    def __init__(self, eps, clip: Sequence | None = (0.0, 1.0)) -> None:
        super().__init__(1, eps, clip)
