"""Terms of transforms and patches: their boxes hold the part, and their loss is IBP's on it."""

import json
import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from lirpa_multinorm import (
    BoundedModule,
    LossTerm,
    MultiNormLoss,
    PerturbationGeometric,
    PerturbationL2Box,
    PerturbationLinf,
    PerturbationPatch,
    SplitTerm,
    TrainConfig,
    build_loss,
    load_checkpoint,
    train,
)
from lirpa_multinorm.errors import InvalidArgumentError
from lirpa_multinorm.training.schedule import Schedule
from lirpa_multinorm.transforms import IDENTITY, transformed
from tests.toy import SPEC, data

X, Y = torch.rand(6, 1, 5, 5), torch.tensor([0, 1, 2, 0, 1, 2])


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(25, 8), nn.ReLU(), nn.Linear(8, 3))


@pytest.mark.parametrize("scale", [0.0, 0.3, 1.0])
def test_the_box_of_a_cell_holds_its_transforms(scale):
    perturbation = PerturbationGeometric(rotation=(-10, 40), scale=0.2, brightness=0.1)
    draws, ratio = torch.rand(6, 7), 0.25
    region = perturbation.random_part(X, draws, ratio, scale)
    lower, upper = region.perturbation.enclosing_box(region.center)
    least, most = (
        torch.tensor(IDENTITY) + scale * (end - torch.tensor(IDENTITY))
        for end in perturbation.box(X)
    )
    for _ in range(50):
        share = draws * (1 - ratio) + ratio * torch.rand(6, 7).round(decimals=1)
        moved = transformed(X, least + share * (most - least))
        assert (moved >= lower - 1e-6).all() and (moved <= upper + 1e-6).all()
    if scale == 0:
        assert (upper - lower).max() < 1e-2


def test_the_box_of_a_place_frees_one_patch():
    perturbation = PerturbationPatch(2, 3)
    region = perturbation.random_part(X, torch.rand(6, 2), 0.05, 1.0)
    lower, upper = region.perturbation.enclosing_box(region.center)
    free = (upper - lower) > 0.999
    assert (free.flatten(1).sum(1) == 6).all()
    assert torch.allclose(lower[~free], X[~free]) and torch.allclose(upper[~free], X[~free])
    assert perturbation.contains(torch.where(free, torch.rand_like(X), X), X).all()


def test_every_place_is_drawn():
    perturbation = PerturbationPatch(4)
    draws = torch.tensor([[0.0, 0.0], [0.0, 0.999], [0.999, 0.0], [0.999, 0.999]])
    region = perturbation.random_part(X[:4], draws, 1.0, 1.0)
    lower, upper = region.perturbation.enclosing_box(region.center)
    corners = ((upper - lower) > 0.999)[:, 0][:, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert torch.equal(corners, torch.eye(4, dtype=torch.bool))


@pytest.mark.parametrize("perturbation", [PerturbationPatch(2), PerturbationGeometric(rotation=9)])
def test_the_loss_is_that_of_intervals_by_hand(perturbation):
    network = model()
    result = MultiNormLoss([SplitTerm(perturbation, ratio=0.2)])(
        BoundedModule(network), X, Y, generator=torch.Generator().manual_seed(5)
    )
    draws = torch.rand(6, perturbation.draws, generator=torch.Generator().manual_seed(5))
    region = perturbation.random_part(X, draws, 0.2, 1.0)
    lower, upper = (end.flatten(1) for end in region.perturbation.enclosing_box(region.center))
    first, last = network[1], network[3]
    middle, radius = first((lower + upper) / 2), (upper - lower) / 2 @ first.weight.abs().T
    low, high = (middle - radius).relu(), (middle + radius).relu()
    losses = []
    for image, label in enumerate(Y.tolist()):
        rows = last.weight[label] - last.weight
        margins = (rows @ (low + high)[image] - rows.abs() @ (high - low)[image]) / 2
        losses.append(functional.cross_entropy(-margins - last.bias[label] + last.bias, Y[image]))
    assert torch.allclose(result.value, torch.stack(losses).mean(), atol=1e-5)
    result.value.backward()
    assert all(weight.grad.abs().sum() > 0 for weight in network.parameters())


@pytest.mark.parametrize("name", ["joint", "max", "random", "ibp", "cure", "mtl_ibp"])
def test_all_losses_take_transforms_and_patches_beside_balls(name):
    sets = [
        PerturbationLinf(0.05),
        PerturbationL2Box(0.2),
        PerturbationGeometric(rotation=5),
        PerturbationPatch(1),
    ]
    loss = build_loss(name, sets, ratio_geometric=0.1, shrink_patch=0.2, attack={"steps": 1})
    assert [type(term) for term in loss.terms] == [LossTerm, LossTerm, SplitTerm, SplitTerm]
    assert loss.terms[2].ratio == 0.1 and loss.terms[3].shrink == 0.2
    result = loss(BoundedModule(model()), X, Y, eps_scale=0.5)
    assert result.value.isfinite() and len(result.margins) == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratio_geometric": 0.0}, "ratio=0.0 must lie in"),
        ({"ratio_geometric": math.nan}, "ratio=nan"),
        ({"shrink_geometric": True}, "must be a number"),
        ({"ratio_patch": 0.1}, "ratio_patch name"),
        ({"region_geometric": "box"}, "is unknown"),
    ],
)
def test_options_that_mean_nothing_are_refused(options, message):
    with pytest.raises(InvalidArgumentError, match=message):
        build_loss("joint", [PerturbationGeometric(rotation=5)], **options)


def test_terms_are_of_their_kind_of_set():
    with pytest.raises(InvalidArgumentError, match="a ball has a LossTerm"):
        SplitTerm(PerturbationLinf(0.1))
    with pytest.raises(InvalidArgumentError, match="in a SplitTerm to a loss"):
        LossTerm(PerturbationPatch(1))


def test_a_single_norm_s_loss_needs_its_norm():
    with pytest.raises(InvalidArgumentError, match="no set of norm inf"):
        build_loss("sabr", [PerturbationPatch(1)])


def test_a_run_for_a_patch_and_a_ball_goes_through_its_checkpoint(tmp_path):
    sets = [PerturbationPatch(1), PerturbationLinf(0.02), PerturbationGeometric(rotation=3)]
    config = TrainConfig(loss="joint", epochs=2, batch_size=8, schedule=Schedule(0, 1))
    images = data()
    train(SPEC, images, sets, config, tmp_path, progress=False)
    loaded = load_checkpoint(tmp_path / "checkpoint.pt").perturbations
    assert [entry.name for entry in loaded] == [entry.name for entry in sets]
    last = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])
    assert {"region_proved_0", "region_proved_1", "region_proved_2"} <= set(last)
