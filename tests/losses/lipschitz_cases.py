"""Networks, images and sets for the tests of Lipschitz constants in training."""

import pytest
import torch
from torch import nn

from lirpa_multinorm import PerturbationL1Box, PerturbationL2Box, PerturbationLinf
from lirpa_multinorm.models import LinearResidualConv, MinMax, Normalize
from tests.networks import Skip, dense

L2, LINF, L1 = PerturbationL2Box(0.3, None), PerturbationLinf(0.05), PerturbationL1Box(0.5)


NETWORKS = {
    "linear": lambda: dense(72, 3),
    "mlp": lambda: dense(72, 9, 8, 3),
    "strided": lambda: nn.Sequential(
        nn.Conv2d(2, 4, 3, 2, 1),
        nn.ReLU(),
        nn.Conv2d(4, 5, (2, 3), (1, 2)),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(10, 3),
    ),
    "normalised": lambda: nn.Sequential(
        Normalize([0.4, 0.5], [0.2, 0.4]),
        nn.Conv2d(2, 3, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(48, 3),
    ),
    "BatchNorm": lambda: nn.Sequential(
        nn.Conv2d(2, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16, 6),
        nn.BatchNorm1d(6),
        nn.ReLU(),
        nn.Linear(6, 3),
    ),
    "skips": lambda: nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.ReLU(),
        Skip(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 1), share=0.5),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(144, 3),
    ),
    "MinMax": lambda: nn.Sequential(
        nn.Conv2d(2, 4, 3),
        MinMax(4),
        LinearResidualConv(4, 2),
        MinMax(4),
        nn.Flatten(),
        nn.Linear(64, 3),
    ),
    "MaxPool": lambda: nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 3)
    ),
}
networks = pytest.mark.parametrize("name", NETWORKS)


def network(name, dtype=torch.float64):
    model = NETWORKS[name]().to(dtype)
    for layer in model.modules():
        if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)):
            nn.init.uniform_(layer.running_var, 0.5, 2)
            nn.init.normal_(layer.weight)
    return model.eval()


def images(count=6, dtype=torch.float64):
    return torch.rand(count, 2, 6, 6, dtype=dtype), torch.arange(count) % 3
