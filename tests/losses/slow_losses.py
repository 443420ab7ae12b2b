"""The losses once more, straight from the formulas.

One region at a time, by interval arithmetic as :mod:`.slow_intervals` has it.

Only the attack is the package's own, because a region can be compared only around the same attacked
point; the released l_2 attack is written out here, one example at a time.
"""

import math
from typing import Any, NamedTuple, Optional

import torch
import torch.nn.functional as F

from lirpa_multinorm import PerturbationL1Box, PerturbationL2Box, PerturbationLinf
from lirpa_multinorm.attacks import attack_regions
from lirpa_multinorm.losses import TRAINING_ATTACK
from lirpa_multinorm.perturbations import Region
from tests.losses.slow_intervals import plain_margins, propagate

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
    result = [
        released_point(
            model, x[i], y[i], term.eps, directions[i], shares[i].item(), low[i], high[i], widest
        )
        for i in range(len(x))
    ]
    adv = torch.stack(result)
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
        for block, place in zip(blocks, sorted(range(parts), key=lambda part: numbers[part])):
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
    result = []
    for i, (term, part) in enumerate(zip(terms, parts)):
        region, point = regions[i]
        lower, relus = propagate(model, region, y[part], statistics, term.shrink)
        loss = margin_loss(lower)
        if term.mix is not None:
            loss = mixed_loss(
                term.mix, term.alpha, lower, plain_margins(model, point, y[part], statistics)
            )
        result.append(Found(loss, lower, region, relus))
    return result
