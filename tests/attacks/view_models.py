"""Models that the attack has a view of, and images for them."""

import torch
import torch.nn.functional as F
from torch import nn

from lirpa_multinorm import PerturbationL1Box, PerturbationL2Box, PerturbationLinf
from tests.networks import Skip

SETS = [PerturbationLinf(0.1), PerturbationL2Box(0.5), PerturbationL1Box(1.0)]


def residual():
    """A block that is no Sequential."""
    return Skip(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())


class Rows(nn.Module):
    """A flattening layer that only the usual layout allows."""

    def forward(self, x):
        return x.view(len(x), -1)


def head(channels, flatten=None):
    return [
        nn.ReLU(),
        flatten or nn.Flatten(),
        nn.Linear(channels * 36, 5),
        nn.BatchNorm1d(5),
        nn.ReLU(),
        nn.Linear(5, 3),
    ]


def conv(**options):
    return nn.Conv2d(2, 4, 3, padding=1, **options)


MODELS = {
    "flat": lambda: nn.Sequential(conv(), nn.BatchNorm2d(4), *head(4)),
    "nested": lambda: nn.Sequential(
        nn.Sequential(nn.Sequential(conv()), nn.BatchNorm2d(4)), nn.Sequential(*head(4))
    ),
    "empty_inside": lambda: nn.Sequential(conv(), nn.Sequential(), nn.BatchNorm2d(4), *head(4)),
    "no_bias": lambda: nn.Sequential(conv(bias=False), nn.BatchNorm2d(4), *head(4)),
    "not_affine": lambda: nn.Sequential(conv(), nn.BatchNorm2d(4, affine=False), *head(4)),
    "neither": lambda: nn.Sequential(conv(bias=False), nn.BatchNorm2d(4, affine=False), *head(4)),
    "no_statistics": lambda: nn.Sequential(
        conv(), nn.BatchNorm2d(4, track_running_stats=False), *head(4)
    ),
    "norm_first": lambda: nn.Sequential(nn.BatchNorm2d(2), conv(), *head(4)),
    "two_norms": lambda: nn.Sequential(conv(), nn.BatchNorm2d(4), nn.BatchNorm2d(4), *head(4)),
    "reflected": lambda: nn.Sequential(conv(padding_mode="reflect"), nn.BatchNorm2d(4), *head(4)),
    "groups": lambda: nn.Sequential(conv(groups=2), nn.BatchNorm2d(4), *head(4)),
    "linear": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(72, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)
    ),
    "views": lambda: nn.Sequential(conv(), nn.BatchNorm2d(4), *head(4, Rows())),
    "residual_inside": lambda: nn.Sequential(conv(), nn.BatchNorm2d(4), residual(), *head(4)),
    "weight_norm": lambda: nn.Sequential(
        nn.utils.parametrizations.weight_norm(conv()), nn.BatchNorm2d(4), *head(4)
    ),
}


def batch(size=6):
    generator = torch.Generator().manual_seed(1)
    return torch.rand(size, 2, 6, 6, generator=generator), torch.arange(size) % 3


def trained(build):
    """A model in training mode whose BatchNorm statistics and weights are not the initial ones."""
    torch.manual_seed(0)
    model, (x, y) = build().train(), batch(24)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for shift in range(5):
        F.cross_entropy(model(x * (1 + shift) - 0.3), y).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return model
