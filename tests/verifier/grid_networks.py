"""Random networks of two and three inputs, sets around a point, and points of a dense grid.

The grid is one of such a set.
"""

import math

import torch
from torch import nn

from lirpa_multinorm import PerturbationLpBox

NORMS = [1, 2, math.inf]


class Skip(nn.Module):
    """A layer with a sum or a concatenation around it."""

    def __init__(self, width, concatenate):
        super().__init__()
        self.inner, self.concatenate = nn.Linear(width, width), concatenate

    def forward(self, x):
        y = self.inner(x).relu()
        return torch.cat([x, y], dim=1) if self.concatenate else x + y


class Image(nn.Module):
    """Two inputs as an image of one row."""

    def forward(self, x):
        return x.view(-1, 1, 1, 2)


class Normalisation(nn.Module):
    """Mean and standard deviation of the inputs."""

    def __init__(self, width):
        super().__init__()
        self.register_buffer("mean", torch.rand(width))
        self.register_buffer("scale", 0.3 + torch.rand(width))

    def forward(self, x):
        return (x - self.mean) / self.scale


def random_case(seed):
    """A network, a point (1, ...), a set around it, which norms, ranges and types take turns."""
    generator = torch.Generator().manual_seed(seed)

    def pick(*choices):
        return choices[int(torch.randint(len(choices), (), generator=generator))]

    torch.manual_seed(seed)
    norm, clip, dtype = (
        NORMS[seed % 3],
        [None, (0.0, 1.0)][seed // 3 % 2],
        [torch.float32, torch.float64][seed // 6 % 2],
    )
    inputs = pick(2, 2, 3)
    image = pick(False, False, False, True)
    width, layers = inputs, []
    if image:
        inputs = width = 2
        layers += [
            nn.Conv2d(1, 3, pick((1, 1), (1, 2)), padding=pick(0, 1)),
            nn.ReLU(),
            nn.Flatten(),
        ]
        layers.insert(0, Image())
        width = nn.Sequential(*layers)(torch.zeros(1, 2)).shape[1]
    else:
        layers += pick([], [Normalisation(inputs)], [nn.ReLU()])
    for _ in range(pick(1, 2, 3)):
        after = pick(3, 5, 8, 12)
        layers += [nn.Linear(width, after), *pick([], [_batch_norm(after)]), nn.ReLU()]
        concatenate = pick(None, None, True, False)
        layers += [] if concatenate is None else [Skip(after, concatenate)]
        width = 2 * after if concatenate else after
    layers.append(nn.Linear(width, 2))
    for layer in layers:
        if isinstance(layer, nn.Linear):
            layer.weight.data.mul_(1.5)
    point = torch.rand(1, inputs).to(dtype)
    if clip is None and pick(True, False):
        point = point * 2 - 1
    ptb = PerturbationLpBox(norm, pick(0.1, 0.3, 0.6), clip)
    return nn.Sequential(*layers).eval().to(dtype), point, ptb


def grid(point, ptb, inputs):
    """Points of a set, (N, inputs), float64: a grid, moved into the set where it lies outside.

    Corners; the centre.
    """
    steps = {2: 301, 3: 61}[inputs]
    side = torch.linspace(-1, 1, steps, dtype=torch.float64)
    d = torch.cartesian_prod(*[side] * inputs) * ptb.eps
    axes = ptb.eps * torch.eye(inputs, dtype=torch.float64)
    d = torch.cat([d, axes, -axes])
    lengths = torch.linalg.vector_norm(d, float(ptb.norm), dim=1, keepdim=True)
    d = d * (ptb.eps / lengths.clamp(min=1e-300)).clamp(max=1)
    points = point.double() + d
    return points if ptb.clip is None else points.clamp(*ptb.clip)


def _batch_norm(width):
    layer = nn.BatchNorm1d(width)
    layer.running_mean.uniform_(-0.5, 0.5)
    layer.running_var.uniform_(0.5, 1.5)
    layer.weight.data.uniform_(0.5, 1.5)
    return layer
