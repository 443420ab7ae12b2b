"""The losses once more, straight from the formulas.

One region at a time, interval arithmetic by hand.

Only the attack is the package's own, because a region can be compared only around the same attacked
point; the released l_2 attack is written out here, one example at a time.
"""

import math
from typing import Any, NamedTuple, Optional

import torch
import torch.nn.functional as F
from torch import nn

from lirpa_multinorm import PerturbationL1Box, PerturbationL2Box, PerturbationLinf
from lirpa_multinorm.attacks import attack_regions
from lirpa_multinorm.losses import TRAINING_ATTACK
from lirpa_multinorm.models import Normalize
from lirpa_multinorm.perturbations import Region

AFFINE = (nn.Linear, nn.Conv2d)
SETS = {1: PerturbationL1Box, 2: PerturbationL2Box, math.inf: PerturbationLinf}


class Slow(NamedTuple):
    """A term by hand.

    ``make(model, x, y, term, generator) -> (region, attacked point or None)``.
    """

    make: Any
    norm: float
    eps: float
    ratio: float = 1.0
    ratio_start: Optional[float] = None
    shrink: float = 0.0
    mix: Optional[str] = None
    alpha: float = 0.5
    attack_scale: float = 1.0

    def at(self, scale):
        ratio = self.ratio
        if self.ratio_start is not None:
            ratio = (1 - scale) * self.ratio_start + scale * self.ratio
        return self._replace(eps=self.eps * scale, ratio=ratio)


# --- networks -------------------------------------------------------------------------------------


def clean_statistics(model, x):
    """(mean, variance) of every BatchNorm layer's input on a clean batch, differentiable.

    The model is not touched.
    """
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


def lower_margins(model, region, y, statistics=None, shrink=0.0):
    """Lower bounds of f_y - f_k by interval arithmetic, f_k in rising order of k."""
    return propagate(model, region, y, statistics, shrink)[0]


def propagate(model, region, y, statistics=None, shrink=0.0):
    """(lower bounds of f_y - f_k, intervals of every ReLU's input).

    Region is ``(kind, *numbers)``.
    """
    layers = list(model)
    classes = layers[-1].out_features
    C = torch.stack(
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
    ).to(layers[-1].weight)
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

    Their rows come from unit inputs, the deviation from :func:`farthest`.

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
        farthest(sign * rows, center.flatten(1), eps, norm, clip).view_as(value) for sign in (1, -1)
    )
    return stop, (value - below, value + above)


ENTER = {"box": enter_box, "ball": enter_ball}


def dual_norm(rows, norm):
    return rows.norm(dim=-1) if norm == 2 else rows.abs().amax(-1)


def farthest(rows, x, eps, norm, clip):
    """max a.d over |d|_p <= eps (and x + d in [0, 1] if clip) of rows (B, S, d)."""
    if not clip:
        return eps * dual_norm(rows, norm)
    low, high = (0 - x).unsqueeze(1).expand_as(rows), (1 - x).unsqueeze(1).expand_as(rows)
    with torch.no_grad():
        if norm == 1:
            offset = greedy(rows, low, high, eps)
        else:  # d = clip(t a); t by bisection
            least, most = torch.zeros_like(rows[..., :1]), torch.full_like(rows[..., :1], 1e9)
            for _ in range(100):
                t = (least + most) / 2
                long = (rows * t).clamp(low, high).norm(dim=2, keepdim=True) > eps
                least, most = torch.where(long, least, t), torch.where(long, t, most)
            offset = (rows * least).clamp(low, high)
    return (rows * offset).sum(2)  # the maximiser may be held fixed: the envelope theorem


def greedy(rows, low, high, eps):
    """The l_1 maximiser.

    The coordinate of the largest coefficient moves as far as it can, then the next one.
    """
    left, offset = torch.full_like(rows[..., 0], eps), torch.zeros_like(rows)
    order = rows.abs().argsort(dim=2, descending=True)
    for place in range(rows.shape[2]):
        chosen = order[..., place : place + 1]
        towards = rows.gather(2, chosen).sign()
        room = torch.where(towards > 0, high.gather(2, chosen), -low.gather(2, chosen))
        moved = torch.minimum(room, left.unsqueeze(2))
        offset.scatter_(2, chosen, towards * moved)
        left = left - moved.squeeze(2)
    return offset


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


# --- regions --------------------------------------------------------------------------------------


def attacked(model, x, y, norm, eps, generator):
    return attack_regions(model, [Region(x, SETS[norm](eps))], [y], TRAINING_ATTACK, generator)[0]


def whole_set(model, x, y, term, generator):
    point = None
    if term.mix is not None:
        point = attacked(model, x, y, term.norm, term.eps * term.attack_scale, generator)
    if term.norm == math.inf:
        return ("box", (x - term.eps).clamp(min=0), (x + term.eps).clamp(max=1)), point
    return ("ball", x, term.eps, term.norm, True), point


def sabr(model, x, y, term, generator):
    adv = attacked(model, x, y, math.inf, term.eps, generator)
    return pushed_inside(x, adv, term), adv


def pushed_inside(x, adv, term):
    tau, low, high = (
        term.ratio * term.eps,
        (x - term.eps).clamp(min=0),
        (x + term.eps).clamp(max=1),
    )
    center = torch.min(torch.max(adv, low + tau), high - tau)
    return "box", (center - tau).clamp(min=0), (center + tau).clamp(max=1)


def cure(model, x, y, term, generator):
    adv, tau = (
        attacked(model, x, y, term.norm, (1 - term.ratio) * term.eps, generator),
        term.ratio * term.eps,
    )
    return ("box", (adv - tau).clamp(min=0), (adv + tau).clamp(max=1)), adv


def ball(model, x, y, term, generator):
    adv = x
    if term.ratio < 1:
        adv = attacked(model, x, y, term.norm, (1 - term.ratio) * term.eps, generator)
    return ("ball", adv, term.ratio * term.eps, term.norm, False), adv


def clipped_ball(model, x, y, term, generator):
    (kind, *numbers, _), adv = ball(model, x, y, term, generator)
    return (kind, *numbers, True), adv


def released(model, x, y, term, generator):
    """CURE's released l_2 attack as its description says, one example after the other."""
    directions = torch.randn(x.shape, generator=generator, dtype=x.dtype)
    shares = torch.rand(len(x), 1, 1, 1, generator=generator, dtype=x.dtype).flatten()
    low, high = (x - term.eps).clamp(min=0), (x + term.eps).clamp(max=1)
    widest = max(((end - start) / 2).max().item() for start, end in zip(low, high))
    found = [
        released_point(
            model, x[i], y[i], term.eps, directions[i], shares[i].item(), low[i], high[i], widest
        )
        for i in range(len(x))
    ]
    adv = torch.stack(found)
    return pushed_inside(x, adv, term), adv


def released_point(model, x, label, eps, direction, share, low, high, widest):
    start = direction / direction.norm() * share * eps
    point = x + start + start  # added twice
    best, highest = None, -math.inf
    for number in range(7):  # six steps, seven forward passes
        point = point.detach().requires_grad_()
        loss = F.cross_entropy(model(point.unsqueeze(0)), label.view(1))
        (gradient,) = torch.autograd.grad(loss, point)
        if loss.item() > highest:
            best, highest = point.detach(), loss.item()
        factor = 1.0 if number < 4 else 0.3
        offset = point.detach() + 0.2 * factor * widest * gradient / gradient.norm() - x
        if offset.norm() > eps:
            offset = offset / offset.norm() * eps
        point = torch.min(
            torch.max(point.detach() + offset, low), high
        )  # added to the point instead of to x
    return torch.min(torch.max(best, low), high)


# --- losses ---------------------------------------------------------------------------------------


def margin_loss(lower):
    """log(1 + sum_k exp(-lb_k)), as it is written."""
    return torch.log1p(torch.exp(-lower).sum(1))


def mixed_loss(mix, alpha, bound, point):
    """MTL-, CC- and Exp-IBP, one example after the other."""
    losses = []
    for lower, exact in zip(bound, point):
        worst, best = (
            torch.log(1 + sum(torch.exp(-value) for value in values)) for values in (lower, exact)
        )
        between = [alpha * low + (1 - alpha) * value for low, value in zip(lower, exact)]
        losses.append(
            {
                "mtl": alpha * worst + (1 - alpha) * best,
                "cc": torch.log(1 + sum(torch.exp(-value) for value in between)),
                "exp": worst**alpha * best ** (1 - alpha),
            }[mix]
        )
    return torch.stack(losses)


def alignment(target, other):
    """Mean of KL(softmax of target's worst case || other's) over the examples ``target`` proves."""
    divergences = []
    for proved, second in zip(target, other):
        if all(margin.item() > 0 for margin in proved):
            q, r = ([torch.exp(-margin) for margin in row] for row in (proved, second))
            q, r = (
                [1 / (1 + sum(odds))] + [odd / (1 + sum(odds)) for odd in odds] for odds in (q, r)
            )
            divergences.append(sum(a * torch.log(a / b) for a, b in zip(q, r)))
    return sum(divergences) / len(divergences) if divergences else 0 * target.sum()


def shi(ends, relus, t=0.5):
    """Mean over ReLU layers of tightness and balance, neuron by neuron; 0 without ReLU."""
    total = 0.0
    for lower, upper in relus:
        lows, highs = lower.flatten().unbind(), upper.flatten().unbind()
        total = total + positive(t - mean_radius(*ends) / mean_radius(lower, upper)) / t
        centers = [(low + high) / 2 for low, high in zip(lows, highs)]
        middle = sum(centers) / len(centers)
        active = [c for c, low in zip(centers, lows) if low > 0]
        inactive = [c for c, high in zip(centers, highs) if high < 0]
        if not inactive:  # the ratios would be infinite
            continue
        ratios = (
            sum(active) / -sum(inactive),
            sum((c - middle) ** 2 for c in active) / sum((c - middle) ** 2 for c in inactive),
        )
        for ratio in ratios:
            total = total + positive(t - (1 / ratio if ratio > 1 else ratio)) / t
    return total / len(relus) if relus else torch.tensor(0.0, dtype=ends[0].dtype)


def mean_radius(lower, upper):
    return (
        sum((high - low) / 2 for low, high in zip(lower.flatten(), upper.flatten())) / lower.numel()
    )


def positive(value):
    return value if value > 0 else 0 * value


# --- blocks of Random -----------------------------------------------------------------------------


def partition(count, parts, generator, dtype=torch.float64):
    """Each group of ``parts`` neighbours gives one example to every block.

    The last group may be short.
    """
    groups = (count + parts - 1) // parts
    draws = torch.rand(groups, parts, generator=generator, dtype=dtype).tolist()
    blocks = [[] for _ in range(parts)]
    for group, numbers in enumerate(draws):
        for block, place in zip(blocks, sorted(range(parts), key=lambda one: numbers[one])):
            if group * parts + place < count:
                block.append(group * parts + place)
    return [torch.tensor(block) for block in blocks]


def overlapping(count, parts, generator, dtype=torch.float64):
    """The i-th part of the i-th of independent permutations."""
    orders = [torch.rand(count, generator=generator, dtype=dtype).argsort() for _ in range(parts)]
    return [order.tensor_split(parts)[i] for i, order in enumerate(orders)]


BLOCKS = {"random": partition, "overlapping": overlapping}


class Found(NamedTuple):
    """What a term comes to.

    Loss per example, margins on its region, the region, intervals before ReLUs.
    """

    loss: Any
    margins: Any
    region: Any
    relus: Any


def term_losses(model, x, y, terms, seed, statistics=None, how="mean"):
    """One :class:`Found` per term; "random" and "overlapping" split the batch between them."""
    generator = torch.Generator().manual_seed(seed)
    parts = [torch.arange(len(x))] * len(terms)
    if (
        how in BLOCKS
    ):  # the blocks are drawn first, then the random starts, one term after the other
        parts = BLOCKS[how](len(x), len(terms), generator)
    training = [layer.training for layer in model]
    model.eval()  # the attack sees the running statistics
    regions = {}
    for late in (False, True):  # the released attack draws its starts last
        for i, (term, part) in enumerate(zip(terms, parts)):
            if (term.make is released) == late:
                regions[i] = term.make(model, x[part], y[part], term, generator)
    for layer, mode in zip(model, training):
        layer.training = mode
    found = []
    for i, (term, part) in enumerate(zip(terms, parts)):
        region, point = regions[i]
        lower, relus = propagate(model, region, y[part], statistics, term.shrink)
        loss = margin_loss(lower)
        if term.mix is not None:
            loss = mixed_loss(
                term.mix, term.alpha, lower, plain_margins(model, point, y[part], statistics)
            )
        found.append(Found(loss, lower, region, relus))
    return found
