"""Open pairs and the host's stages: what is bounded, and that gathering loses nothing."""

import math
import time

import pytest
import torch
from torch import nn

from lirpa_multinorm import (
    BoundedModule,
    PerturbationL2Box,
    PerturbationLinf,
    PerturbationLpBox,
    Region,
    margin_matrix,
)
from lirpa_multinorm.attacks.geometry import random_point
from lirpa_multinorm.certification import STAGES, OpenPairs
from lirpa_multinorm.certification.stages import stage_of
from lirpa_multinorm.errors import InvalidArgumentError

SETS = [PerturbationLinf(torch.tensor([0.01, 0.02, 0.03, 0.04])), PerturbationL2Box(0.1)]
LABELS = torch.tensor([1, 0, 3, 2])


def mask(*entries):
    """A mask over 2 sets, 4 images and 4 classes from its (place, image, rival) entries."""
    result = torch.zeros(2, 4, 4, dtype=torch.bool)
    for entry in entries:
        result[entry] = True
    return result


def pairs_of(is_open):
    return OpenPairs.where(torch.rand(4, 5), LABELS, SETS, is_open)


SOME = ((0, 0, 0), (0, 0, 3), (0, 2, 1), (1, 1, 1), (1, 1, 2), (1, 1, 3), (1, 3, 3))


def test_pairs_are_in_order_and_make_the_mask_again():
    pairs = pairs_of(mask(*SOME))
    assert (
        list(zip(pairs.set_index.tolist(), pairs.image.tolist(), pairs.rival.tolist()))
        == list(SOME)
        and len(pairs) == 7
    )
    assert torch.equal(pairs.mask(), mask(*SOME))


def test_specification_has_a_row_per_pair():
    C = pairs_of(mask(*SOME)).specification()
    assert C.shape == (7, 1, 4)
    assert C[1, 0].tolist() == [0, 1, 0, -1] and C[2, 0].tolist() == [0, -1, 0, 1]


def test_gathering_takes_open_classes_only_and_repeats_one_of_them():
    """Worked out by hand: S = 3 is the second image's for the second set."""
    first, second = pairs_of(mask(*SOME)).gathered()
    assert (first.set_index, second.set_index) == (0, 1)
    assert first.images.tolist() == [0, 2] and second.images.tolist() == [1, 3]
    rivals = [[(row == -1).nonzero().item() for row in C] for C in [*first.C, *second.C]]
    assert rivals == [[0, 3, 0], [1, 1, 1], [1, 2, 3], [3, 3, 3]]
    ours = [[(row == 1).nonzero().item() for row in C] for C in [*first.C, *second.C]]
    assert ours == [[1] * 3, [3] * 3, [0] * 3, [2] * 3]


def test_values_come_back_to_their_pairs():
    pairs = pairs_of(mask(*SOME))
    functional = torch.tensor([1.0, 10, 100, 1000])
    bounds = [C @ functional for _, _, C in pairs.gathered()]
    assert torch.equal(pairs.from_gathered(bounds), (pairs.specification() @ functional).squeeze(1))


def test_a_set_with_nothing_open_is_left_out():
    groups = pairs_of(mask((1, 2, 0))).gathered()
    assert [(item.set_index, item.images.tolist(), item.C.shape) for item in groups] == [
        (1, [2], (1, 1, 4))
    ]


BOUNDS = ["IBP", "Lipschitz", "CROWN-IBP"]
SEARCHES = [
    name
    for name, stage in STAGES.items()
    if stage.takes is PerturbationLpBox and name not in BOUNDS
]


def open_problem():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(5, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 4)
    ).eval()
    sets, bounded = (
        [PerturbationLinf(SETS[0].eps * 8), PerturbationL2Box(0.5)],
        BoundedModule(model),
    )
    return bounded, OpenPairs.where(torch.rand(4, 5), LABELS, sets, mask(*SOME))


def bounds_of_all(bounded, pairs, method):
    regions = [Region(pairs.x, item) for item in pairs.sets]
    every = bounded.compute_region_bounds(regions, margin_matrix(LABELS, 4), method)
    return torch.stack(
        [every[place][0][image, rival - int(rival > LABELS[image])] for place, image, rival in SOME]
    )


@pytest.mark.parametrize("name", BOUNDS)
def test_gathered_bounds_are_those_of_all_margins(name):
    bounded, pairs = open_problem()
    with torch.no_grad():
        result = STAGES[name].bound(bounded, pairs, math.inf)
        assert torch.allclose(result, bounds_of_all(bounded, pairs, name), atol=1e-6)
    assert result.shape == (7,) and not result.requires_grad


@pytest.mark.parametrize("name", SEARCHES)
def test_stages_that_search_are_sound_and_no_worse_than_crown(name):
    """Their last digits depend on what else is bounded.

    An image that is lost may keep its first bounds.
    """
    bounded, pairs = open_problem()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        result = STAGES[name].bound(bounded, pairs, time.perf_counter() + 2)
        crown = bounds_of_all(bounded, pairs, "CROWN").clamp(max=0) - 1e-4
        assert (result >= crown).all() or name in ("CROWN", "Sparse-CROWN", "BaB")
        for place, image in {pair[:2] for pair in SOME}:
            ours = torch.tensor([pair[:2] == (place, image) for pair in SOME])
            assert (result[ours] > 0).all() or not (
                bounds_of_all(bounded, pairs, "CROWN")[ours] > 1e-5
            ).all()
        for value, (place, image, rival) in zip(result, SOME):
            region = pairs.region(place, torch.tensor([image] * 500))
            logits = bounded.model(random_point(region.perturbation, region.center, generator))
            assert (logits[:, LABELS[image]] - logits[:, rival] >= value - 1e-5).all()
    assert result.shape == (7,) and not result.requires_grad


@pytest.mark.parametrize(
    "name, expected",
    [
        ("ibp", "IBP"),
        ("alpha-CROWN", "CROWN-Optimized"),
        ("backward", "CROWN"),
        ("crown-IBP", "CROWN-IBP"),
    ],
)
def test_names_of_stages(name, expected):
    assert stage_of(name) is STAGES[expected]


@pytest.mark.parametrize("name", ["magic", "", None, 3])
def test_unknown_stages_are_refused(name):
    with pytest.raises(InvalidArgumentError, match="is unknown; use IBP, Lipschitz"):
        stage_of(name)
