"""Affine first layers, and their exact bounds from the support function written out."""

from __future__ import annotations

import math

import torch
from torch import nn

from lirpa_multinorm.audit.graphs import Lambda
from lirpa_multinorm.models import Normalize
from tests.networks import pixels
from tests.slow_support import farthest

SHAPE = (2, 4, 4)
BATCH = 3
NORMS = {"linf": math.inf, "l2": 2, "l1": 1}
#: A radius per example.
EPS = torch.tensor([0.0, 0.2, 0.9], dtype=torch.float64)


def images():
    return pixels(BATCH, *SHAPE, seed=4, beyond=0.3, dtype=torch.float64)


def standardize():
    return Normalize([0.4, 0.6], [0.5, 0.25])


def batch_norm():
    norm = nn.BatchNorm2d(2)
    norm.running_mean.copy_(torch.tensor([0.3, -0.2]))
    norm.running_var.copy_(torch.tensor([0.5, 2.0]))
    norm.weight.data.copy_(torch.tensor([-1.5, 0.7]))
    return norm


def linear():
    return nn.Sequential(nn.Flatten(), nn.Linear(32, 4))


# One affine layer each, so that interval arithmetic started from exact first-layer bounds is exact.
LAYERS = {
    "linear": linear,
    "conv": lambda: nn.Conv2d(2, 3, 3),
    "strided_conv": lambda: nn.Conv2d(2, 3, (2, 3), stride=(1, 2)),
    "grouped_conv": lambda: nn.Conv2d(2, 4, 2, groups=2, dilation=2),
    "standardize_linear": lambda: nn.Sequential(standardize(), linear()),
    "standardize_conv": lambda: nn.Sequential(standardize(), nn.Conv2d(2, 3, 3)),
    "standardize_grouped_conv": lambda: nn.Sequential(standardize(), nn.Conv2d(2, 4, 3, groups=2)),
    "negate_conv": lambda: nn.Sequential(Lambda(lambda x: 1 - x), nn.Conv2d(2, 3, 3)),
    "batch_norm_conv": lambda: nn.Sequential(batch_norm(), nn.Conv2d(2, 3, 3)),
    "flatten_scale_linear": lambda: nn.Sequential(
        nn.Flatten(), Lambda(lambda x: 0.5 - x / 4), nn.Linear(32, 4)
    ),
    "flatten_unflatten_conv": lambda: nn.Sequential(
        nn.Flatten(), Lambda(lambda x: x.view(-1, *SHAPE)), nn.Conv2d(2, 3, 3)
    ),
    "transpose_conv": lambda: nn.Sequential(
        Lambda(lambda x: x.transpose(2, 3)), standardize(), nn.Conv2d(2, 3, (2, 3))
    ),
}
# Padding: with clip=None the norm of the whole kernel is used at the padding too, which is looser
# than exact.
PADDED = {
    "padded_conv": lambda: nn.Conv2d(2, 3, 3, padding=1),
    "standardize_padded_conv": lambda: nn.Sequential(
        standardize(), nn.Conv2d(2, 3, 3, stride=2, padding=2)
    ),
}


def built(name):
    return {**LAYERS, **PADDED}[name]().double().eval()


def expected_bounds(model, x, ball, C=None):
    """(lower, upper) for every output, (B, S), from the Jacobian of the affine model."""

    def outputs(z):
        values = model(z).flatten(1)
        return values if C is None else (C @ values.unsqueeze(2)).squeeze(2)

    jacobian = torch.autograd.functional.jacobian(lambda z: outputs(z).sum(0), x, vectorize=True)
    rows, value = jacobian.flatten(2).transpose(0, 1), outputs(x).detach()
    low, high = (end.expand_as(x) - x for end in ball.clip_box(x) or (x - 1e3, x + 1e3))
    ends = low.flatten(1).unsqueeze(1), high.flatten(1).unsqueeze(1)
    eps = ball.radius(x).unsqueeze(1)
    below, above = (farthest(sign * rows, *ends, eps, ball.norm) for sign in (-1, 1))
    return value - below, value + above
