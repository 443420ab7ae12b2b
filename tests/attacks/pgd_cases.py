"""A small network, images and sets for the tests of the batched attack."""

import torch
from torch import nn

from lirpa_multinorm import PerturbationL1Box, PerturbationL2Box, PerturbationLinf
from tests.networks import pixels

SETS = [
    PerturbationLinf(0.1),
    PerturbationL2Box(0.4),
    PerturbationL1Box(1.0),
    PerturbationL2Box(0.4, clip=None),
    PerturbationLinf(torch.tensor([0.0, 0.05, 0.1, 0.15, 0.2, 0.3])),
]


BATCH = 6


def network():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(100, 8),
        nn.ReLU(),
        nn.Linear(8, 3),
    ).eval()


def batch():
    return pixels(BATCH, 1, 5, 5), torch.tensor([0, 1, 2, 0, 1, 2])


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)
