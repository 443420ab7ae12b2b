"""How a loss combines its terms: the maximum, random blocks, training; settings it refuses."""

import contextlib

import pytest
import torch
from torch import nn

import lirpa_multinorm.losses.multinorm as multinorm
from lirpa_multinorm import (
    BoundedModule,
    LossTerm,
    MultiNormLoss,
    PerturbationL2Box,
    PerturbationLinf,
    certify,
)
from lirpa_multinorm.errors import InvalidArgumentError
from lirpa_multinorm.losses import Alignment
from lirpa_multinorm.utils import distributed
from lirpa_multinorm.utils.distributed import SharedGenerator
from tests.losses.cases import SETS, Case, images, of_package
from tests.networks import in_float64, mlp

# --- the maximum and random blocks ----------------------------------------------------------------


def test_max_is_taken_per_example():
    model, (x, y) = in_float64(mlp), images(30)
    result = of_package(model, x, y, Case("max", {"ratio_2": 0.6, "region_2": "ball"}, []))
    first, second = result.per_example
    assert (first > second).any() and (second > first).any()  # else the test would say nothing
    assert result.value.item() == pytest.approx(
        torch.maximum(first, second).mean().item(), rel=1e-12
    )
    assert result.value > max(first.mean(), second.mean())


@pytest.mark.parametrize("count, terms", [(2, 2), (7, 2), (8, 2), (8, 3), (11, 4)])
def test_random_is_a_partition_fresh_in_each_call(monkeypatch, count, terms):
    seen = []
    original = multinorm.find_regions

    def spy(model, batches, *args):
        seen.append([block for block, _ in batches])
        for block, labels in batches:  # the labels go with their images
            assert torch.equal(labels, (block[:, 0] * count).round().long() % 2)
        return original(model, batches, *args)

    monkeypatch.setattr(multinorm, "find_regions", spy)
    x = torch.arange(count).unsqueeze(1) / count * torch.ones(1, 3)
    loss = MultiNormLoss([LossTerm(PerturbationLinf(0.1), "set")] * terms, "random")
    bounded, generator = (
        BoundedModule(nn.Sequential(nn.Linear(3, 2))),
        torch.Generator().manual_seed(1),
    )
    for _ in range(12):
        loss(bounded, x, torch.arange(count) % 2, generator=generator)
    for blocks in seen:
        sizes = [len(block) for block in blocks]
        assert len(sizes) == terms and max(sizes) - min(sizes) <= 1
        assert sorted((torch.cat(blocks)[:, 0] * count).round().tolist()) == list(range(count))
    assert len({tuple(torch.cat(blocks)[:, 0].tolist()) for blocks in seen}) > 1


def test_random_needs_an_example_per_block():
    loss = MultiNormLoss([LossTerm(item, "set") for item in SETS], "random")
    with pytest.raises(InvalidArgumentError, match="1 examples for 2 blocks"):
        loss(BoundedModule(nn.Sequential(nn.Linear(3, 2))), torch.rand(1, 3), torch.tensor([0]))


class Stop(Exception):
    pass


class Outputs(BoundedModule):
    """A network that is not run."""

    def output_shape(self, x):
        return torch.Size([3])

    def clean_outputs(self, x):
        return x


@pytest.fixture
def blocks_of(monkeypatch):
    """Numbers of the examples that every block gets: what regions are looked for."""
    seen, bounded = [], Outputs(nn.Linear(1, 3))

    def spy(model, batches, *_):
        seen.append([block.squeeze(1).long().tolist() for block, _ in batches])
        raise Stop

    monkeypatch.setattr(multinorm, "find_regions", spy)

    def blocks(loss, count, generator):
        x = torch.arange(count, dtype=torch.float64).unsqueeze(1)
        with contextlib.suppress(Stop):
            loss(bounded, x, torch.zeros(count, dtype=torch.long), generator=generator)
        return seen.pop()

    return blocks


@pytest.mark.parametrize("how", ["partition", "overlapping"])
@pytest.mark.parametrize("count, terms", [(6, 2), (7, 2), (7, 3)])
def test_every_example_is_equally_likely_in_each_block(how, count, terms, blocks_of):
    loss, draws = MultiNormLoss([LossTerm(SETS[0], "set")] * terms, "random", blocks=how), 1500
    generator, seen = torch.Generator().manual_seed(0), torch.zeros(terms, count)
    for _ in range(draws):
        for block, members in enumerate(blocks_of(loss, count, generator)):
            seen[block, members] += 1
    share = torch.full((terms, 1), 1 / terms)
    if how == "overlapping":  # the first blocks of an uneven batch are longer by one
        share = torch.tensor([[-(-(count - i) // terms) / count] for i in range(terms)])
    assert ((seen / draws - share).abs() < 5 * (share * (1 - share) / draws).sqrt()).all()


def test_overlapping_blocks_use_some_examples_twice_and_some_never(blocks_of):
    """Halves of independent permutations: a quarter of the batch each."""
    loss = MultiNormLoss([LossTerm(ball, "set") for ball in SETS], "random", blocks="overlapping")
    twice = []
    for seed in range(200):
        generator = torch.Generator().manual_seed(seed)
        first, second = blocks_of(loss, 8, generator)
        assert len(set(first)) == len(set(second)) == 4
        twice.append(len(set(first) & set(second)) / 8)
    assert sum(twice) / len(twice) == pytest.approx(0.25, abs=0.03)


@pytest.mark.parametrize("count, processes, terms", [(8, 2, 2), (12, 2, 3), (12, 3, 2)])
def test_the_blocks_of_several_processes_are_together_those_of_one(
    monkeypatch, count, processes, terms, blocks_of
):
    loss = MultiNormLoss([LossTerm(SETS[0], "set")] * terms, "random")
    alone = [set(block) for block in blocks_of(loss, count, SharedGenerator(3))]
    share, together = count // processes, [set() for _ in range(terms)]
    monkeypatch.setattr(distributed, "world_size", lambda: processes)
    for rank in range(processes):
        monkeypatch.setattr(distributed, "rank", lambda: rank)
        for block, members in zip(together, blocks_of(loss, share, SharedGenerator(3))):
            block.update(rank * share + member for member in members)
    assert together == alone


# --- settings that are refused --------------------------------------------------------------------

BAD = {
    "no_branches": ([], "joint", None, "terms is empty"),
    "combination": ([LossTerm(SETS[0])], "mean", None, "combine='mean'.*joint, max, random"),
    "too_few_weights": ([LossTerm(one) for one in SETS], "joint", [1.0], "weights"),
    "sum": ([LossTerm(one) for one in SETS], "joint", [0.5, 0.6], "add up to 1"),
    "negative": ([LossTerm(one) for one in SETS], "joint", [-0.5, 1.5], "weights"),
    "nan": ([LossTerm(one) for one in SETS], "joint", [float("nan"), 1.0], "weights"),
    "weights_of_max": ([LossTerm(one) for one in SETS], "max", [0.5, 0.5], "weights.*joint"),
}


@pytest.mark.parametrize("terms, combine, weights, match", BAD.values(), ids=BAD)
def test_unusable_settings_are_refused(terms, combine, weights, match):
    with pytest.raises(InvalidArgumentError, match=match):
        MultiNormLoss(terms, combine, weights)


TWO = [LossTerm(one) for one in SETS]
BAD_ADDITIONS = {
    "blocks": (
        TWO,
        {"combine": "random", "blocks": "halves"},
        "blocks='halves'.*partition or overlapping",
    ),
    "random": (TWO, {"combine": "random", "alignment": Alignment()}, "combine='random'"),
    "one_set": (
        TWO[:1],
        {"alignment": Alignment(target="inf")},
        "1 set; bound alignment.*needs two",
    ),
    "no_l1": (TWO, {"alignment": Alignment(target=1)}, "target=1.0 is not the norm of any set"),
    "nan_target": (
        TWO,
        {"alignment": Alignment(target=float("nan"))},
        "target=nan is not the norm",
    ),
    "above": (TWO, {"regularized": 2}, "regularized=2.*2 terms, 0 to 1"),
    "below": (TWO, {"regularized": -3}, "regularized=-3"),
    "no_number": (TWO, {"regularized": "last"}, "regularized='last'"),
    "half": (TWO, {"regularized": 0.5}, "regularized=0.5"),
}


@pytest.mark.parametrize("terms, arguments, match", BAD_ADDITIONS.values(), ids=BAD_ADDITIONS)
def test_unusable_additions_are_refused(terms, arguments, match):
    with pytest.raises(InvalidArgumentError, match=match):
        MultiNormLoss(terms, **{"combine": "max", **arguments})


# --- a loop of the user's own ---------------------------------------------------------------------


def blobs(count=60):
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(count) % 2
    x = torch.where(y.unsqueeze(1) == 0, 0.3, 0.7) + 0.08 * torch.randn(
        count, 2, generator=generator
    )
    return x.clamp(0, 1), y


@pytest.mark.parametrize("combine", ["joint", "max", "random"])
def test_a_loop_of_ones_own_trains(combine):
    x, y = blobs()
    model = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 2))
    sets = [PerturbationLinf(0.06), PerturbationL2Box(0.08)]
    loss = MultiNormLoss([LossTerm(sets[0], "box", 0.5), LossTerm(sets[1], "ball", 0.8)], combine)
    bounded = BoundedModule(model, perturbations=sets)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    before, values = certify(model, x, y, sets).summary(), []
    for _ in range(60):
        optimizer.zero_grad()
        value = loss(bounded, x, y).value
        value.backward()
        optimizer.step()
        values.append(value.item())
    after = certify(model, x, y, sets).summary()
    assert values[-1] < 0.5 * values[0]
    assert (
        after["certified_union"] >= before["certified_union"] + 0.3
        and after["certified_union"] > 0.8
    )
