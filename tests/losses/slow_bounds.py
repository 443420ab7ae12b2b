"""CROWN-IBP and TAPS once more, straight from the formulas.

The networks are flat, of Linear, Conv, BatchNorm and ReLU.
"""

import torch
from torch import nn

from tests.losses.slow_intervals import batch_norm, farthest_in_range, propagate, specification
from tests.losses.slow_losses import margin_loss


def run(model, x, statistics=None, start=0, stop=None):
    """A part of a network, that normalises by given statistics."""
    for place, layer in list(enumerate(model))[start:stop]:
        if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)):
            scale, shift = batch_norm(
                layer, (statistics or {}).get(place, (layer.running_mean, layer.running_var)), x
            )
            x = x * scale + shift
        else:
            x = layer(x)
    return x


# --- CROWN-IBP ------------------------------------------------------------------------------------


def crown_ibp_margins(model, region, y, statistics=None):
    """Lower bounds of f_y - f_k.

    ReLUs relaxed over IBP's intervals, from the output back to the region.
    """
    _, relus = propagate(model, region, y, statistics)
    center = region[1]
    values, parts, start = center, [], 0
    for stop in [
        *[place for place, layer in enumerate(model) if isinstance(layer, nn.ReLU)],
        len(model),
    ]:
        parts.append(as_matrix(model, values, statistics, start, stop))
        values = run(model, values, statistics, start, stop + 1)
        start = stop + 1
    A = specification(y, values.shape[1]).to(values)
    constant = torch.zeros_like(A[..., 0])
    for (W, b), interval in zip(parts[:0:-1], relus[::-1]):
        constant, A = constant + A @ b, A @ W
        low_slope, high_slope, high_shift = relaxed(*interval)
        constant = constant + (A.clamp(max=0) * high_shift).sum(2)
        A = A.clamp(min=0) * low_slope + A.clamp(max=0) * high_slope
    W, b = parts[0]
    return constant + A @ b + least(A @ W, region)


def as_matrix(model, values, statistics, start, stop):
    """(W, b) of an affine part of a network, from unit inputs."""
    shape = values.shape[1:]
    units = torch.eye(shape.numel(), dtype=values.dtype).view(-1, *shape)
    b = run(model, torch.zeros_like(units[:1]), statistics, start, stop).flatten(1)
    return (run(model, units, statistics, start, stop).flatten(1) - b).t(), b[0]


def relaxed(lower, upper):
    """(slope of the line below, slope and constant of the line above) each ReLU, (B, 1, n).

    The area is least.
    """
    rows = []
    for low, high in zip(lower.flatten(), upper.flatten()):
        if low >= 0:
            rows.append((torch.ones_like(low), torch.ones_like(low), torch.zeros_like(low)))
        elif high <= 0:
            rows.append((torch.zeros_like(low),) * 3)
        else:
            slope = high / (high - low)
            rows.append(((high > -low).to(low), slope, -slope * low))
    return [torch.stack(column).view(len(lower), 1, -1) for column in zip(*rows)]


def least(A, region):
    """min a.x over the region, of rows (B, S, d)."""
    if region[0] == "box":
        lower, upper = (end.flatten(1).unsqueeze(1) for end in region[1:])
        return (A.clamp(min=0) * lower + A.clamp(max=0) * upper).sum(2)
    _, center, eps, norm, clip = region
    x = center.flatten(1)
    return torch.einsum("bsd,bd->bs", A, x) - farthest_in_range(-A, x, eps, norm, clip)


# --- TAPS -----------------------------------------------------------------------------------------


class Link(torch.autograd.Function):
    """The gradient connector as the released code has it, but for its tolerance."""

    @staticmethod
    def forward(ctx, lower, upper, z, c):
        ctx.save_for_backward(lower, upper, z)
        ctx.c = c
        return z.clone()

    @staticmethod
    def backward(ctx, gradient):
        lower, upper, z = ctx.saved_tensors
        slack = ctx.c * (upper - lower)
        into = []
        for inside in (lower + slack - z, z - (upper - slack)):
            share = torch.full_like(z, 0.5)
            share[slack > 0] = inside[slack > 0].clamp(min=0) / slack[slack > 0]
            into.append(gradient * share)
        return into[0], into[1], None, None


def latent_box(model, region, y, layers, statistics=None, shrink=0.0):
    """(place behind a ReLU, its interval) with some ReLUs behind it."""
    _, relus = propagate(model, region, y, statistics, shrink)
    places = [place for place, layer in enumerate(model) if isinstance(layer, nn.ReLU)]
    lower, upper = relus[len(relus) - 1 - layers]
    crossing = (lower < 0) & (upper > 0)
    upper = torch.where(crossing, upper * (1 - shrink / 2), upper)
    return places[len(places) - 1 - layers] + 1, (lower.clamp(min=0), upper.clamp(min=0))


def taps_points(model, start, box, y, generator, statistics=None, steps=8, restarts=1):
    """The worst point found for each margin, one example and class after the other.

    (B, K - 1, ...).
    """
    lower, upper = (end.detach() for end in box)
    C = specification(y, model[-1].out_features).to(lower)
    count = C.shape[1]
    first = max(0.2, 2 / steps)
    starts = [
        torch.rand((len(y) * count, *lower.shape[1:]), generator=generator, dtype=lower.dtype)
        for _ in range(restarts)
    ]
    points = []
    for row in range(len(y) * count):
        i, k = divmod(row, count)
        low, high, best, least_margin = lower[i], upper[i], None, float("inf")
        for shares in starts:
            z = low + (high - low) * shares[row]
            for step in range(steps + 1):
                z = z.detach().requires_grad_()
                margin = run(model, z.unsqueeze(0), statistics, start)[0] @ C[i, k]
                if margin.item() < least_margin:
                    best, least_margin = z.detach(), margin.item()
                (gradient,) = torch.autograd.grad(margin, z)
                rate = first * (0.2 if steps >= 10 and step >= int(0.7 * steps) else 1.0)
                z = torch.min(
                    torch.max(z.detach() - rate * (high - low) * gradient.sign(), low), high
                )
        points.append(best)
    return torch.stack(points).unflatten(0, (len(y), count))


def taps_margins(
    model, region, y, generator, layers=1, statistics=None, shrink=0.0, c=0.5, **attack
):
    start, (lower, upper) = latent_box(model, region, y, layers, statistics, shrink)
    points = taps_points(model, start, (lower, upper), y, generator, statistics, **attack)
    C = specification(y, model[-1].out_features).to(lower)
    columns = []
    for k in range(C.shape[1]):
        outputs = run(model, Link.apply(lower, upper, points[:, k], c), statistics, start)
        columns.append((outputs * C[:, k]).sum(1))
    return torch.stack(columns, 1)


def taps_value_and_gradients(estimates, interval, weight, parameters, product=True):
    """Value per example, and the gradients of the mean: ``w L_IBP dL_TAPS + L_TAPS dL_IBP``."""
    first, second = margin_loss(estimates), margin_loss(interval)
    if not product:
        second = torch.ones_like(second)
    total = [torch.zeros_like(p) for p in parameters]
    for loss, other, factor in ((first, second, weight), (second, first, 1.0)):
        if loss.requires_grad:
            result = torch.autograd.grad(
                (factor * other.detach() * loss).mean(),
                parameters,
                retain_graph=True,
                allow_unused=True,
            )
            total = [item if more is None else item + more for item, more in zip(total, result)]
    return (first * second).detach(), total
