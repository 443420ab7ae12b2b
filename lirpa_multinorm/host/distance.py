"""The operator of l_inf-distance layers for the host: intervals, and linear bounds for CROWN."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..errors import UnsupportedModelError
from ..utils.distances import blocks, distances, exponent, p_norm
from ._load import Bound, eyeC

#: An interval of the host, (lower, upper), or one side of a backward pass, (A, bias).
Pair = tuple[Any, Any]


class BoundLinfDistance(Bound):
    """Bounds of ``u_j = ||x - w_j||_p`` with fixed weights.

    An interval is exact for a box, for every p: coordinates are independent, and the nearest and
    the farthest point have each one at its nearest or farthest. CROWN takes p = inf only.

    Args: as of the host's operators; the inputs are x (B, n), w (m, n) and 1 / p.

    Source: Zhang et al. 2021, "Towards Certifying l_inf Robustness using Neural Networks with
        l_inf-dist Neurons", section 3; Zhang et al. 2022, "Boosting the Certified Robustness of
        L-infinity Distance Nets", appendix (interval arithmetic). Linear bounds are ours.
    """

    def __init__(self, attr=None, inputs=None, output_index=0, options=None) -> None:
        super().__init__(attr, inputs, output_index, options)
        self.requires_input_bounds = [0]

    def forward(self, x: Tensor, weight: Tensor, inverse_p: Tensor) -> Tensor:
        """Return the distances (B, m)."""
        return distances(x, weight, inverse_p)

    def interval_propagate(self, x: Pair, weight: Pair, inverse_p: Pair) -> Pair:
        """Return the exact interval of each distance over a box."""
        self._check_fixed()
        return interval_distances(x[0], x[1], weight[0], exponent(inverse_p[0]))

    def bound_backward(self, last_lA: Any, last_uA: Any, *inputs: Any, **_: Any) -> tuple:
        """Replace linear forms of the distances by linear forms of x that bound them."""
        self._check_fixed()
        x, weight = inputs[0], inputs[1].forward()
        p = exponent(inputs[2].forward())
        if p < math.inf:
            raise UnsupportedModelError(
                f"model: an l_p-distance layer with p={p:g} has no linear bounds; use IBP, or set p"
                " to inf, as training ends (layer.set_p(math.inf))"
            )
        lines = linear_bounds(x.lower, x.upper, weight)
        lA, lbias = _one_side(last_lA, lines, weight.shape[1], -1)
        uA, ubias = _one_side(last_uA, lines, weight.shape[1], 1)
        return [(lA, uA), (None, None), (None, None)], lbias, ubias

    def _check_fixed(self) -> None:
        """Raise UnsupportedModelError where weights are perturbed."""
        if self.is_input_perturbed(1):
            raise UnsupportedModelError(
                f"model: the weights of the distance layer at {self.name} are perturbed; give it"
                " plain parameters"
            )


def interval_distances(lower: Tensor, upper: Tensor, weight: Tensor, p: float) -> Pair:
    """Return the smallest and largest l_p distances from weights within boxes, with gradients.

    Args:
        lower: Lower ends (B, n).
        upper: Upper ends (B, n).
        weight: Weights (m, n).
        p: At least 1.

    Returns:
        (nearest, farthest), (B, m) each.
    """

    def ends(lower: Tensor, upper: Tensor, weight: Tensor) -> Tensor:
        """Return the ends of a block, (2, b, m)."""
        below, above = lower.unsqueeze(1) - weight, upper.unsqueeze(1) - weight
        near = torch.maximum(below, -above).clamp(min=0)
        far = torch.maximum(-below, above)
        return torch.stack([_norm(near, p), _norm(far, p)])

    needs_gradient = torch.is_grad_enabled() and any(
        tensor.requires_grad for tensor in (lower, upper, weight)
    )
    kept_of: dict[int, list[Tensor]] = {}
    for rows, neurons in blocks(lower, weight):
        block = lower[rows], upper[rows], weight[neurons]
        kept = checkpoint(ends, *block, use_reentrant=False) if needs_gradient else ends(*block)
        kept_of.setdefault(neurons.start, []).append(kept)
    nearest, farthest = torch.cat([torch.cat(parts, 1) for parts in kept_of.values()], 2)
    return nearest, farthest


def _norm(size: Tensor, p: float) -> Tensor:
    """Return l_p norms along the last dimension, by operators with gradients."""
    if p < math.inf and size.requires_grad:
        scale = size.detach().amax(-1, keepdim=True).clamp(min=torch.finfo(size.dtype).tiny)
        return torch.linalg.vector_norm(size / scale, p, dim=-1) * scale.squeeze(-1)
    return p_norm(size, p)


def linear_bounds(
    lower: Tensor, upper: Tensor, weight: Tensor
) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]:
    """Bound ``max_i |x_i - w_ji|`` on boxes by lines in one coordinate for each j.

    Below it is ``|x_i - w_ji|`` of the coordinate that stays farthest from its weight, a line there
    (or 0 where every weight can be met); above the chord of ``max(|x_i - w_ji|, v)`` for the
    coordinate that can get farthest, v the farthest of the others. No line is looser than the
    interval.

    Args:
        lower: Lower ends (B, n).
        upper: Upper ends (B, n).
        weight: Weights (m, n).

    Returns:
        Below and above: (coordinates, slopes, constants), (B, m) each.
    """
    shape = len(lower), len(weight)
    below, above = (
        (lower.new_zeros(shape, dtype=torch.long), lower.new_zeros(shape), lower.new_zeros(shape))
        for _ in range(2)
    )
    for rows, neurons in blocks(lower, weight):
        low, high = (bound[rows].unsqueeze(1) - weight[neurons] for bound in (lower, upper))
        for kept, line in zip((below, above), (_line_below(low, high), _line_above(low, high))):
            index, slope, height = line
            moved = slope * weight[neurons].expand_as(low).gather(2, index.unsqueeze(2)).squeeze(2)
            for whole, part in zip(kept, (index, slope, height - moved)):
                whole[rows, neurons] = part
    return below, above


def _line_below(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return coordinate, slope and constant of a line in ``x_i - w_i`` below the distance."""
    nearest, index = torch.maximum(low, -high).max(-1)
    sign = torch.where(low.gather(-1, index.unsqueeze(-1)).squeeze(-1) > 0, 1.0, -1.0).to(low)
    slope = torch.where(nearest > 0, sign, 0.0)
    return index, slope, torch.zeros_like(slope)


def _line_above(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return coordinate, slope and constant of a line in ``x_i - w_i`` above the distance."""
    far = torch.maximum(-low, high)
    index = far.argmax(-1)
    chosen = index.unsqueeze(-1)
    rest = far.scatter(-1, chosen, -math.inf).amax(-1).clamp(min=0)
    start, end = (bound.gather(-1, chosen).squeeze(-1) for bound in (low, high))
    at_start, at_end = torch.maximum(start.abs(), rest), torch.maximum(end.abs(), rest)
    width = end - start
    # A slope beyond 1 would be rounding of a narrow interval.
    slope = ((at_end - at_start) / width.clamp(min=torch.finfo(width.dtype).tiny)).clamp(-1, 1)
    height = torch.maximum(at_start - slope * start, at_end - slope * end)
    return index, slope, height


def _one_side(last: Any, lines: tuple, inputs: int, sign: int) -> Pair:
    """Return A (S, B, n) and bias (S, B) of x behind the operator, lower (-1) or upper (1) ones."""
    if last is None:
        return None, 0
    last = _dense(last, lines[0][1])
    A, bias = last.new_zeros(*last.shape[:2], inputs), last.new_zeros(last.shape[:2])
    # A form of the distances is bounded from below by the lines below where it is positive.
    parts = last.clamp(min=0), last.clamp(max=0)
    for part, (index, slope, height) in zip(parts if sign < 0 else parts[::-1], lines):
        A = A.scatter_add(2, index.expand_as(part), part * slope)
        bias = bias + (part * height).sum(2)
    return A, bias.t().contiguous().t()  # in the order of examples, as the old host views it


def _dense(last: Any, like: Tensor) -> Tensor:
    """Return linear forms (S, B, m), also those of the host's identity, as a tensor."""
    if isinstance(last, Tensor):
        return last
    if not isinstance(last, eyeC):
        raise UnsupportedModelError(
            f"model: a distance layer takes no linear forms of type {type(last).__name__}; use IBP"
        )
    batch, size = like.shape
    eye = torch.eye(size, dtype=like.dtype, device=like.device)
    return eye.unsqueeze(1).expand(size, batch, size)
