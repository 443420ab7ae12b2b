"""Small networks of convolutions, one of them with skip connections, and sets around two images."""

import torch
from torch import nn

from lirpa_multinorm import PerturbationL2Box, PerturbationLinf
from lirpa_multinorm.perturbations import Region
from tests.verifier.problems import problem_on

CHANNEL_CLIP = (torch.tensor([0.0, 0.0, -0.5]), torch.tensor([1.0, 1.5, 1.0]))
SETS = [
    PerturbationLinf(0.05),
    PerturbationL2Box(0.4),
    PerturbationL2Box(0.4, clip=None),
    PerturbationL2Box(torch.tensor([0.2, 0.5]), CHANNEL_CLIP),
]


class TwoSkips(nn.Module):
    """A layer that looks at two ReLUs and at the input."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.third, self.last = nn.Conv2d(4, 3, 3, padding=1), nn.Linear(3 * 10 * 10, 2)

    def forward(self, x):
        inner = self.first(x).relu()
        inner = self.second(inner).relu() + inner
        return self.last((self.third(inner) + x).relu().flatten(1))


def plain(stride=2):
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, stride, 1),
        nn.ReLU(),
        nn.Conv2d(4, 5, 3, stride, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(5 * (10 // stride // stride + (stride == 2)) ** 2, 6),
        nn.ReLU(),
        nn.Linear(6, 2),
    )


MODELS = {"strided": plain, "dense": lambda: plain(1), "skip": TwoSkips}


def prepared(name):
    """The problem of bounding a network on the sets around two images."""
    torch.manual_seed(0)
    x, model = torch.rand(2, 3, 10, 10), MODELS[name]().eval()
    return problem_on(model, [Region(x, ball) for ball in SETS], crown=False, lipschitz=False)
