"""The losses once more, straight from the formulas: one region at a time, interval arithmetic by hand.

Only the attack is the package's own, because a region can be compared only around the same attacked point.
"""

import torch
import torch.nn.functional as F
from torch import nn

from lirpa_multinorm import PerturbationL2Box, PerturbationLinf
from lirpa_multinorm.attacks import attack_regions
from lirpa_multinorm.losses import TRAINING_ATTACK
from lirpa_multinorm.models import Normalize
from lirpa_multinorm.perturbations import Region

AFFINE = (nn.Linear, nn.Conv2d)


def clean_statistics(model, x):
    """(mean, variance) of every BatchNorm layer's input on a clean batch, differentiable; the model is not touched."""
    found = {}
    for place, layer in enumerate(model):
        if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)):
            axes = [axis for axis in range(x.ndim) if axis != 1]
            found[place] = x.mean(axes), x.var(axes, unbiased=False)
            scale, shift = batch_norm(layer, found[place], x)
            x = x * scale + shift
        else:
            x = layer(x)
    return found


def batch_norm(layer, statistics, x):
    """(scale, shift) beside x."""
    mean, variance = statistics
    scale = layer.weight / torch.sqrt(variance + layer.eps)
    shift = layer.bias - mean * scale
    shape = (1, -1) + (1,) * (x.ndim - 2)
    return scale.view(shape), shift.view(shape)


def lower_margins(model, region, y, statistics=None):
    """Lower bounds of f_y - f_k by interval arithmetic, f_k in rising order of k; region is ``(kind, *numbers)``."""
    layers = list(model)
    classes = layers[-1].out_features
    C = torch.stack([torch.stack([F.one_hot(label, classes) - F.one_hot(torch.tensor(k), classes)
                                  for k in range(classes) if k != label]) for label in y]).to(layers[-1].weight)
    start, (lower, upper) = ENTER[region[0]](layers, C, *region[1:])
    for place in range(start, len(layers)):
        last = place == len(layers) - 1
        lower, upper = step(layers[place], lower, upper, C if last else None, (statistics or {}).get(place))
    return lower


def step(layer, lower, upper, C, statistics):
    """Interval of one layer's output; C is merged into the last one."""
    if isinstance(layer, (nn.ReLU, nn.Flatten, Normalize)):  # rising functions
        return layer(lower), layer(upper)
    center, radius = (lower + upper) / 2, (upper - lower) / 2
    if isinstance(layer, nn.Conv2d):
        options = dict(stride=layer.stride, padding=layer.padding)
        center = F.conv2d(center, layer.weight, layer.bias, **options)
        radius = F.conv2d(radius, layer.weight.abs(), None, **options)
    elif isinstance(layer, nn.Linear) and C is None:
        center, radius = F.linear(center, layer.weight, layer.bias), F.linear(radius, layer.weight.abs())
    elif isinstance(layer, nn.Linear):
        rows = C @ layer.weight
        center = torch.einsum("bsi,bi->bs", rows, center) + C @ layer.bias
        radius = torch.einsum("bsi,bi->bs", rows.abs(), radius)
    else:
        statistics = statistics or (layer.running_mean, layer.running_var)
        scale, shift = batch_norm(layer, statistics, lower)
        center, radius = center * scale + shift, radius * scale.abs()
    return center - radius, center + radius


# --- where a region enters the network: (index of the next layer, interval) ---------------------------------------

def enter_box(layers, C, lower, upper):
    return 0, (lower, upper)


def enter_ball(layers, C, center, eps, clip):
    """The first affine layers exactly; their rows come from unit inputs, the deviation from :func:`farthest`.

    A convolution's row over a plain ball is its whole kernel, also at the border where part of it sees padding.
    """
    stop = 1 + next(i for i, layer in enumerate(layers) if isinstance(layer, AFFINE))
    head = nn.Sequential(*layers[:stop])
    if isinstance(layers[stop - 1], nn.Conv2d) and not clip:
        std = layers[0].std if isinstance(layers[0], Normalize) else 1.0
        value, above = head(center), eps * (layers[stop - 1].weight / std).flatten(1).norm(dim=1).view(-1, 1, 1)
        return stop, (value - above, value + above)
    size = center[0].numel()
    units = torch.eye(size, dtype=center.dtype).view(size, *center.shape[1:])
    rows = (head(units) - head(torch.zeros_like(units))).flatten(1).t()  # (outputs, inputs)
    value = head(center)
    rows = rows.expand(len(center), *rows.shape)
    if stop == len(layers):
        rows, value = C @ rows, torch.einsum("bsk,bk->bs", C, value)
    above, below = (farthest(sign * rows, center.flatten(1), eps, clip).view_as(value) for sign in (1, -1))
    return stop, (value - below, value + above)


ENTER = {"box": enter_box, "ball": enter_ball}


def farthest(rows, x, eps, clip):
    """max a.d over |d|_2 <= eps (and x + d in [0, 1] if clip) of rows (B, S, d), by bisection on d = clip(t a)."""
    if not clip:
        return eps * rows.norm(dim=2)
    low, high = (0 - x).unsqueeze(1), (1 - x).unsqueeze(1)
    with torch.no_grad():
        least, most = torch.zeros_like(rows[..., :1]), torch.full_like(rows[..., :1], 1e9)
        for _ in range(200):
            t = (least + most) / 2
            long = (rows * t).clamp(low, high).norm(dim=2, keepdim=True) > eps
            least, most = torch.where(long, least, t), torch.where(long, t, most)
        offset = (rows * least).clamp(low, high)
    return (rows * offset).sum(2)  # the maximiser may be held fixed: the envelope theorem


# --- regions and losses -------------------------------------------------------------------------------------------

def attacked(model, x, y, perturbation, generator):
    return attack_regions(model, [Region(x, perturbation)], [y], TRAINING_ATTACK, generator)[0]


def linf_set(model, x, y, eps, ratio, generator):
    return "box", (x - eps).clamp(min=0), (x + eps).clamp(max=1)


def l2_set(model, x, y, eps, ratio, generator):
    return "ball", x, eps, True


def sabr(model, x, y, eps, ratio, generator):
    adv, tau = attacked(model, x, y, PerturbationLinf(eps), generator), ratio * eps
    low, high = (x - eps).clamp(min=0), (x + eps).clamp(max=1)
    center = torch.min(torch.max(adv, low + tau), high - tau)
    return "box", (center - tau).clamp(min=0), (center + tau).clamp(max=1)


def cure(model, x, y, eps, ratio, generator):
    adv, tau = attacked(model, x, y, PerturbationL2Box((1 - ratio) * eps), generator), ratio * eps
    return "box", (adv - tau).clamp(min=0), (adv + tau).clamp(max=1)


def ball(model, x, y, eps, ratio, generator):
    adv = x if ratio == 1 else attacked(model, x, y, PerturbationL2Box((1 - ratio) * eps), generator)
    return "ball", adv, ratio * eps, False


def margin_loss(lower):
    """log(1 + sum_k exp(-lb_k)), as it is written."""
    return torch.log1p(torch.exp(-lower).sum(1))


def branch_losses(model, x, y, branches, seed, statistics=None, blocks=None):
    """Loss of each example for every branch ``(make, eps, ratio)``; ``blocks`` splits the batch between them."""
    generator = torch.Generator().manual_seed(seed)
    parts = [torch.arange(len(x))] * len(branches)
    if blocks:  # the partition is drawn first, then the random starts, one branch after the other
        parts = torch.randperm(len(x), generator=generator).tensor_split(len(branches))
    training = [layer.training for layer in model]
    model.eval()  # the attack sees the running statistics
    regions = [make(model, x[part], y[part], eps, ratio, generator)
               for (make, eps, ratio), part in zip(branches, parts)]
    for layer, mode in zip(model, training):
        layer.training = mode
    return [margin_loss(lower_margins(model, region, y[part], statistics)) for region, part in zip(regions, parts)]
