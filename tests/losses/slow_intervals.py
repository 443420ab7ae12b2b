"""Interval arithmetic by hand, of flat networks of Linear, Conv, BatchNorm and ReLU."""

import torch
import torch.nn.functional as F
from torch import nn

from lirpa_multinorm.models import Normalize
from tests.slow_support import dual_norm, farthest

AFFINE = (nn.Linear, nn.Conv2d)


def clean_statistics(model, x):
    """(mean, variance) of every BatchNorm layer's input on a clean batch, differentiable.

    The model is not touched.
    """
    result = {}
    for place, layer in enumerate(model):
        if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)):
            axes = [axis for axis in range(x.ndim) if axis != 1]
            result[place] = x.mean(axes), x.var(axes, unbiased=False)
            scale, shift = batch_norm(layer, result[place], x)
            x = x * scale + shift
        else:
            x = layer(x)
    return result


def batch_norm(layer, statistics, x):
    """(scale, shift) beside x."""
    mean, variance = statistics
    scale = layer.weight / torch.sqrt(variance + layer.eps)
    shift = layer.bias - mean * scale
    shape = (1, -1) + (1,) * (x.ndim - 2)
    return scale.view(shape), shift.view(shape)


def plain_margins(model, x, y, statistics=None):
    """f_y - f_k at points, by a plain forward pass that normalises with given statistics."""
    for place, layer in enumerate(model):
        if statistics and place in statistics:
            scale, shift = batch_norm(layer, statistics[place], x)
            x = x * scale + shift
        else:
            x = layer(x)
    return torch.stack(
        [
            torch.stack([row[label] - row[k] for k in range(len(row)) if k != label])
            for row, label in zip(x, y)
        ]
    )


def specification(y, classes, dtype=torch.float64):
    """Rows of f_y - f_k, f_k in rising order of k, (B, K - 1, K)."""
    return torch.stack(
        [
            torch.stack(
                [
                    F.one_hot(label, classes) - F.one_hot(torch.tensor(k), classes)
                    for k in range(classes)
                    if k != label
                ]
            )
            for label in y
        ]
    ).to(dtype)


def lower_margins(model, region, y, statistics=None, shrink=0.0):
    """Lower bounds of f_y - f_k by interval arithmetic, f_k in rising order of k."""
    return propagate(model, region, y, statistics, shrink)[0]


def propagate(model, region, y, statistics=None, shrink=0.0):
    """(lower bounds of f_y - f_k, intervals of every ReLU's input).

    Region is ``(kind, *numbers)``.
    """
    layers = list(model)
    classes = layers[-1].out_features
    C = specification(y, classes).to(layers[-1].weight)
    start, (lower, upper) = ENTER[region[0]](layers, C, *region[1:])
    relus = []
    for place in range(start, len(layers)):
        if isinstance(layers[place], nn.ReLU):
            relus.append((lower, upper))
            upper = shrunk(lower, upper, shrink)
        last = place == len(layers) - 1
        lower, upper = step(
            layers[place], lower, upper, C if last else None, (statistics or {}).get(place)
        )
    return lower, relus


def shrunk(lower, upper, shrink):
    """Upper bounds with those of crossing neurons times 1 - shrink / 2, one neuron at a time."""
    ends = []
    for low, high in zip(lower.flatten().unbind(), upper.flatten().unbind()):
        ends.append(high * (1 - shrink / 2) if low < 0 < high else high)
    return torch.stack(ends).view_as(upper)


def step(layer, lower, upper, C, statistics):
    """Interval of one layer's output; C is merged into the last one."""
    if isinstance(layer, (nn.ReLU, nn.Flatten)):  # rising functions
        return layer(lower), layer(upper)
    if isinstance(layer, Normalize):
        return torch.minimum(layer(lower), layer(upper)), torch.maximum(layer(lower), layer(upper))
    center, radius = (lower + upper) / 2, (upper - lower) / 2
    if isinstance(layer, nn.Conv2d):
        options = {"stride": layer.stride, "padding": layer.padding}
        center = F.conv2d(center, layer.weight, layer.bias, **options)
        radius = F.conv2d(radius, layer.weight.abs(), None, **options)
    elif isinstance(layer, nn.Linear) and C is None:
        center, radius = (
            F.linear(center, layer.weight, layer.bias),
            F.linear(radius, layer.weight.abs()),
        )
    elif isinstance(layer, nn.Linear):
        rows = C @ layer.weight
        center = torch.einsum("bsi,bi->bs", rows, center) + C @ layer.bias
        radius = torch.einsum("bsi,bi->bs", rows.abs(), radius)
    else:
        statistics = statistics or (layer.running_mean, layer.running_var)
        scale, shift = batch_norm(layer, statistics, lower)
        center, radius = center * scale + shift, radius * scale.abs()
    return center - radius, center + radius


# --- where a region enters the network: (index of the next layer, interval) -----------------------


def enter_box(layers, C, lower, upper):
    return 0, (lower, upper)


def enter_ball(layers, C, center, eps, norm, clip):
    """The first affine layers exactly.

    Their rows come from unit inputs, the deviation from :func:`farthest_in_range`.

    A convolution's row over a plain ball is its whole kernel, also at the border where part of it
    sees padding.
    """
    stop = 1 + next(i for i, layer in enumerate(layers) if isinstance(layer, AFFINE))
    head = nn.Sequential(*layers[:stop])
    if isinstance(layers[stop - 1], nn.Conv2d) and not clip:
        std = layers[0].std if isinstance(layers[0], Normalize) else 1.0
        kernels = (layers[stop - 1].weight / std).flatten(1)
        value, above = head(center), eps * dual_norm(kernels, norm).view(-1, 1, 1)
        return stop, (value - above, value + above)
    size = center[0].numel()
    units = torch.eye(size, dtype=center.dtype).view(size, *center.shape[1:])
    rows = (head(units) - head(torch.zeros_like(units))).flatten(1).t()  # (outputs, inputs)
    value = head(center)
    rows = rows.expand(len(center), *rows.shape)
    if stop == len(layers):
        rows, value = C @ rows, torch.einsum("bsk,bk->bs", C, value)
    above, below = (
        farthest_in_range(sign * rows, center.flatten(1), eps, norm, clip).view_as(value)
        for sign in (1, -1)
    )
    return stop, (value - below, value + above)


ENTER = {"box": enter_box, "ball": enter_ball}


def farthest_in_range(rows, x, eps, norm, clip):
    """max a.d over |d|_p <= eps (and x + d in [0, 1] if clip) of rows (B, S, d)."""
    if not clip:
        return eps * dual_norm(rows, norm)
    return farthest(rows, -x.unsqueeze(1), 1 - x.unsqueeze(1), eps, norm)


def input_ends(model, region):
    """The box around a region as the first affine layer sees it: behind a normalisation."""
    if region[0] == "box":
        lower, upper = region[1:]
    else:
        _, center, eps, _, clip = region
        lower, upper = center - eps, center + eps
        lower, upper = (lower.clamp(min=0), upper.clamp(max=1)) if clip else (lower, upper)
    for layer in model:
        if not isinstance(layer, (Normalize, nn.Flatten)):
            break
        lower, upper = step(layer, lower, upper, None, None)
    return lower, upper
