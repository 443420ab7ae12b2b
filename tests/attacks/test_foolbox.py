"""The attack is as strong as foolbox's."""

import pytest
import torch
from torch import nn

from lirpa_multinorm import PerturbationL2Box, PerturbationLinf
from lirpa_multinorm.attacks import AttackSettings, pgd
from tests.attacks.pgd_cases import seeded

STEPS = 20


RADII = {
    "linf_small": (PerturbationLinf, "LinfPGD", 0.03),
    "linf": (PerturbationLinf, "LinfPGD", 0.06),
    "l2_small": (PerturbationL2Box, "L2PGD", 0.2),
    "l2": (PerturbationL2Box, "L2PGD", 0.4),
}


@pytest.fixture(scope="module")
def digits():
    """A small trained classifier and 300 images it has not seen."""
    datasets = pytest.importorskip("sklearn.datasets")
    x, y = datasets.load_digits(return_X_y=True)
    x, y = torch.tensor(x / 16, dtype=torch.float32).view(-1, 1, 8, 8), torch.tensor(y)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(1, 8, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(128, 32),
            nn.ReLU(),
            nn.Linear(32, 10),
        )
        optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
        for _ in range(150):
            index = torch.randint(0, 1400, (128,))
            loss = nn.functional.cross_entropy(model(x[index]), y[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval(), x[1400:1700], y[1400:1700]


@pytest.mark.parametrize("kind,attack,eps", RADII.values(), ids=RADII)
def test_as_strong_as_foolbox(digits, kind, attack, eps):
    foolbox = pytest.importorskip("foolbox")
    model, x, y = digits
    theirs = foolbox.PyTorchModel(model, bounds=(0, 1))
    _, _, success = getattr(foolbox.attacks, attack)(steps=STEPS)(theirs, x, y, epsilons=eps)
    (point,) = pgd(model, x, y, [kind(eps)], AttackSettings(steps=STEPS), seeded())
    with torch.no_grad():
        ours = (model(point).argmax(1) != y).float().mean().item()
        clean = (model(x).argmax(1) != y).float().mean().item()
    expected = success.float().mean().item()
    assert clean < expected < 1, "the radius means to tell attacks apart"
    assert ours >= expected - 0.02
