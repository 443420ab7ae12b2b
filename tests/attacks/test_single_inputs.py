"""Attacks on networks that take one input only.

The points are those found on the network that takes batches.
"""

import pytest
import torch
from torch import nn

from lirpa_multinorm import PerturbationL2Box, PerturbationLinf, pgd
from lirpa_multinorm.attacks import AttackSettings, Batched, attack_regions
from lirpa_multinorm.audit.attack import largest_violation
from lirpa_multinorm.perturbations import Region
from tests.checks import assert_same
from tests.networks import Merging, Single

SETS = [PerturbationLinf(0.1), PerturbationL2Box(0.3)]


@pytest.fixture
def body():
    return nn.Sequential(nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3))


@pytest.mark.parametrize("kind", [Single, Merging], ids=["raises", "merges"])
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize(
    "settings",
    [
        AttackSettings(steps=5),
        AttackSettings(steps=5, loss="ce", stop_early=True),
        AttackSettings(steps=5, try_center=False, restarts=2),
    ],
    ids=["margin", "early", "no_center"],
)
def test_the_same_points_as_on_batches(body, kind, count, settings):
    x, y = torch.rand(count, 1, 4, 4), torch.arange(count) % 3
    result = pgd(kind(body), x, y, SETS, settings, torch.Generator().manual_seed(0))
    expected = pgd(
        nn.Sequential(nn.Flatten(), body), x, y, SETS, settings, torch.Generator().manual_seed(0)
    )
    assert_same(result, expected)
    assert all(bool(ball.contains(point, x).all()) for point, ball in zip(result, SETS))


def test_regions_of_different_sizes(body):
    x = torch.rand(4, 1, 4, 4)
    regions = [Region(x[:1], SETS[0]), Region(x[1:], SETS[1])]
    labels = [torch.tensor([0]), torch.tensor([0, 1, 2])]
    result = attack_regions(
        Single(body), regions, labels, AttackSettings(steps=3, random_start=False)
    )
    expected = attack_regions(
        nn.Sequential(nn.Flatten(), body),
        regions,
        labels,
        AttackSettings(steps=3, random_start=False),
    )
    assert [point.shape for point in result] == [(1, 1, 4, 4), (3, 1, 4, 4)]
    assert_same(result, expected)


def test_the_audit_attacks_them_too(body):
    x = torch.rand(2, 1, 4, 4)
    outputs = body(x.flatten(1)).detach()
    excess = [
        largest_violation(
            model,
            x,
            SETS[0],
            (outputs, outputs),
            settings=AttackSettings(steps=3),
            generator=torch.Generator().manual_seed(0),
        )
        for model in (Single(body), nn.Sequential(nn.Flatten(), body))
    ]
    assert excess[0] > 0 and excess[0] == pytest.approx(excess[1], abs=1e-5)


def test_a_network_that_takes_batches_is_called_once_per_batch(body):
    sizes = []

    def run(inputs):
        sizes.append(len(inputs))
        return body(inputs.flatten(1))

    view = Batched(run)
    view(torch.rand(3, 16)), view(torch.rand(2, 16))
    assert sizes == [3, 2]


def test_a_lack_of_memory_is_no_sign_of_a_network_for_one_input():
    def run(inputs):
        raise MemoryError("full")

    with pytest.raises(MemoryError, match="full"):
        Batched(run)(torch.rand(3, 16))
