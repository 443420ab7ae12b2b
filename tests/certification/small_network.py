"""Small networks whose predictions change within small sets, for the tests of certification."""

import torch
from torch import nn

from lirpa_multinorm import CertifySettings, PerturbationL1Box, PerturbationL2Box, PerturbationLinf

SETS = [PerturbationLinf(0.05), PerturbationL2Box(0.15), PerturbationL1Box(0.4)]
BOUNDS = (
    "IBP",
    "CROWN-IBP",
    "CROWN",
)  # without a search, whose last digits depend on what else is in the batch
NO_ATTACK = CertifySettings(BOUNDS, attack=None)


@torch.no_grad()
def lively(model, x):
    """Every class is predicted for some of x, and logits vary within the small sets of tests."""
    model.train()(x)  # BatchNorm statistics of its own
    model.eval()
    for layer in model:
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            layer.weight.mul_(2)
    model[-1].bias.sub_(model(x).mean(0))
    return model


def network():
    model = nn.Sequential(
        nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 10), nn.ReLU(), nn.Linear(10, 3)
    )
    return lively(model, torch.rand(200, 6))


def linear(dtype=torch.float64):
    return nn.Sequential(nn.Linear(6, 3)).to(dtype)


def inputs(count=40, features=6):
    return torch.rand(count, features)


def own_labels(model, x):
    """The network's predictions, but wrong for every fifth input."""
    y = model(x).argmax(1)
    y[::5] = (y[::5] + 1) % 3
    return y
