"""Support functions of an l_p ball cut with a box: the exact maximum of ``a . d``.

All functions work on offsets ``d`` from the ball's centre. The box is ``lower <= d <= upper`` with
``lower <= 0 <= upper``; the last dimension is the one the sum runs over, the others broadcast. The
results are values of the *dual* problem, which is an upper bound for every multiplier, so a search
that stops early is loose and never unsound.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

_CHUNK = 1 << 18  # elements worked on at once: small enough to stay in the cache
_DEVICE_CHUNK = 1 << 24  # on another device: enough to keep it busy, of little memory
_STEPS = 16
_TOLERANCE = 1e-4  # of the scale; the dual value's error is of second order in it


def support_box(a: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """Return max a.d over the box, shape: the broadcast shape without its last dimension."""
    return (a.clamp(min=0) * upper + a.clamp(max=0) * lower).sum(-1)


def support_l2_box(a: Tensor, lower: Tensor, upper: Tensor, eps: Tensor) -> Tensor:
    """Return max a.d over ``||d||_2 <= eps, lower <= d <= upper``.

    For every scale s > 0 (the inverse of the multiplier of the ball) weak duality gives, with
    d = clip(s a, lower, upper), ``a.d + (eps^2 - ||d||^2) / (2 s)``; it is the maximum where
    ``||d|| = eps``.

    Args:
        a: Linear forms, shape (..., k).
        lower: Lower bounds of the offsets, <= 0, broadcastable to (..., k).
        upper: Upper bounds, >= 0, likewise.
        eps: Radius, broadcastable to (...).

    Returns:
        Values of shape (...), never more than ``eps ||a||_2`` nor more than the box's own value.

    Example:
        >>> a, eps = torch.tensor([3., 4.]), torch.tensor(1.)
        >>> support_l2_box(a, -torch.ones(2), torch.ones(2), eps)
        tensor(5.)
        >>> round(support_l2_box(a, -torch.ones(2), torch.tensor([1., 0.]), eps).item(), 4)
        3.0
    """
    return _chunked(_l2_box_scale, _l2_box_dual, a, lower, upper, eps)


def support_l1_box(a: Tensor, lower: Tensor, upper: Tensor, eps: Tensor) -> Tensor:
    """Return max a.d over ``||d||_1 <= eps, lower <= d <= upper``, a fractional knapsack.

    The dual value at a multiplier m is ``sum_i cap_i max(|a_i| - m, 0) + m eps``; the best m is the
    ``|a_i|`` at which the budget eps runs out when the coordinates are filled in falling order.

    Args:
        a: Linear forms, shape (..., k).
        lower: Lower bounds of the offsets, <= 0, broadcastable to (..., k).
        upper: Upper bounds, >= 0, likewise.
        eps: Radius, broadcastable to (...).

    Returns:
        Values of shape (...).

    Example:
        >>> a = torch.tensor([3., -4., 1.])
        >>> support_l1_box(a, torch.tensor([-1., -.25, -1.]), torch.ones(3), torch.tensor(1.))
        tensor(3.2500)
    """
    return _chunked(_l1_box_filling, _l1_box_dual, a, lower, upper, eps)


def _chunked(search, dual, a: Tensor, lower: Tensor, upper: Tensor, eps: Tensor) -> Tensor:
    """Search the multiplier and evaluate the dual, slice by slice of the leading dimension.

    The search is outside the graph; the dual's intermediate tensors, which are large, are
    recomputed in the backward pass.
    """
    shape = torch.broadcast_shapes(a.shape, lower.shape, upper.shape)
    rows = shape[:-1]
    eps = torch.as_tensor(eps, dtype=lower.dtype, device=lower.device).expand(rows)
    size = _CHUNK if lower.device.type == "cpu" else _DEVICE_CHUNK
    step = max(1, size * rows[0] // max(1, shape.numel())) if rows else 1

    def chunk(tensor: Tensor, start: int) -> Tensor:
        shared = not rows or tensor.ndim < len(shape) or tensor.shape[0] == 1
        return tensor if shared else tensor[start : start + step]

    tracked = torch.is_grad_enabled() and any(
        tensor.requires_grad for tensor in (a, lower, upper, eps)
    )
    values = []
    for start in range(0, rows[0] if rows else 1, step):
        arguments = [
            chunk(a, start),
            chunk(lower, start),
            chunk(upper, start),
            eps[start : start + step] if rows else eps,
        ]
        with torch.no_grad():
            arguments.extend(search(*arguments))
        values.append(
            checkpoint(dual, *arguments, use_reentrant=False, preserve_rng_state=False)
            if tracked
            else dual(*arguments)
        )
    return torch.cat(values) if len(values) > 1 else values[0]


def _l2_box_dual(a: Tensor, lower: Tensor, upper: Tensor, eps: Tensor, scale: Tensor) -> Tensor:
    # The maximiser is held fixed in `a` (envelope theorem) and follows the box where it touches it.
    d = torch.minimum(torch.maximum(a.detach() * scale.unsqueeze(-1), lower), upper)
    return (a * d).sum(-1) + (eps * eps - (d * d).sum(-1)) / (2 * scale)


def _l2_box_scale(a: Tensor, lower: Tensor, upper: Tensor, eps: Tensor) -> tuple[Tensor]:
    """Find s with ``||clip(s a, lower, upper)||_2 = eps`` from below.

    With the set of clipped coordinates held fixed the equation is solved in closed form; every step
    can only clip more, so s rises to the solution and arrives after finitely many steps (usually
    three to five). On another device than the CPU, a look at the values would wait for it: there
    all steps are made.
    """
    info = torch.finfo(a.dtype)
    small, large = info.tiny**0.5, info.max**0.5
    t = a.abs()
    cap = torch.where(a >= 0, upper, -lower)
    t2, cap2, eps2 = t * t, cap * cap, eps * eps
    reach = cap / t.clamp(min=small)  # the scale at which a coordinate meets the box
    unclipped = eps / t2.sum(-1).sqrt().clamp(min=small)
    scale = unclipped.clamp(min=small, max=large).expand(reach.shape[:-1])
    for _ in range(_STEPS):
        clipped = reach <= scale.unsqueeze(-1)
        # No difference of sums: small coordinates count at the end.
        free = torch.where(clipped, 0.0, t2).sum(-1)
        budget = (eps2 - (cap2 * clipped).sum(-1)).clamp(min=0)
        # Where nothing is free the box lies inside the ball, and its corner is the answer.
        new = torch.where(free > 0, (budget / free.clamp(min=info.tiny)).sqrt(), large)
        new = torch.maximum(new.clamp(max=large), scale)
        if a.device.type == "cpu" and bool((new <= scale * (1 + _TOLERANCE)).all()):
            return (new,)
        scale = new
    return (scale,)


def _l1_box_filling(a: Tensor, lower: Tensor, upper: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
    """Fill the coordinates in falling order of ``|a_i|`` until eps runs out.

    Returns:
        The ``|a_i|`` that gets the rest of eps (0 beyond the box's corner), and how far each
        coordinate moves.
    """
    t, cap = torch.broadcast_tensors(a.abs(), torch.where(a >= 0, upper, -lower))
    ordered, index = t.sort(dim=-1, descending=True)
    room, budget = cap.gather(-1, index), eps.unsqueeze(-1)
    filled = room.cumsum(-1)
    full = (filled < budget).sum(-1, keepdim=True)
    next_size = ordered.gather(-1, full.clamp(max=t.shape[-1] - 1))
    last = torch.where(full < t.shape[-1], next_size, 0.0).squeeze(-1)
    moved = torch.minimum((budget - filled + room).clamp(min=0), room)
    return last, torch.zeros_like(moved).scatter(-1, index, moved)


def _l1_box_dual(
    a: Tensor, lower: Tensor, upper: Tensor, eps: Tensor, multiplier: Tensor, size: Tensor
) -> Tensor:
    t, cap = a.abs(), torch.where(a >= 0, upper, -lower)
    value = (cap * (t.detach() - multiplier.unsqueeze(-1)).clamp(min=0)).sum(-1) + multiplier * eps
    # The gradient in |a| is the maximiser itself, also where several |a_i| equal the multiplier.
    return value + ((t - t.detach()) * size).sum(-1) if t.requires_grad else value
