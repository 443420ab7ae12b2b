"""Recorded certifications of a network and images on which every usual status occurs."""

import json

import torch
from torch import nn

from lirpa_multinorm import (
    AttackSettings,
    CertifySettings,
    PerturbationL2Box,
    PerturbationLinf,
    certify_to,
)

SETS = [PerturbationLinf(0.03), PerturbationL2Box(0.1)]


SETTINGS = CertifySettings(
    ["IBP", "Lipschitz", "CROWN"], AttackSettings(steps=5, restarts=2), batch_size=4
)


def problem(count=30):
    """A network and images on which every usual status occurs."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.weight.mul_(2)
        x = torch.rand(count, 6)
        model[2].bias.sub_(model(x).mean(0))
        y = model(x).argmax(1)
        y[::7] = (y[::7] + 1) % 3
    return model, x, y


def into(folder, settings=SETTINGS, sets=SETS, **options):
    return certify_to(folder, *problem(), sets, settings, **options)


def content(path):
    """The lines of a file, timings and environment aside."""
    header, *lines = [json.loads(line) for line in path.read_text().splitlines()]
    header.pop("environment")
    for line in lines:
        assert line.pop("seconds") >= 0
    return [header, *lines]


def same(first, second):
    return (
        first.status == second.status
        and first.method == second.method
        and torch.equal(first.margin, second.margin)
        and torch.equal(first.prediction, second.prediction)
        and torch.equal(first.correct, second.correct)
        and first.errors == second.errors
        and first.adversarial.keys() == second.adversarial.keys()
        and all(
            torch.equal(point, second.adversarial[key]) for key, point in first.adversarial.items()
        )
    )
