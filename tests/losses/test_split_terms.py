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
from lirpa_multinorm.bounds import margin_matrix
from lirpa_multinorm.errors import InvalidArgumentError
from lirpa_multinorm.losses.worst_parts import patch_margins, worst_parts
from lirpa_multinorm.perturbations import Region
from lirpa_multinorm.training.schedule import Schedule
from lirpa_multinorm.training.step import TrainingStep
from lirpa_multinorm.transforms import IDENTITY, transformed
from lirpa_multinorm.utils import distributed
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


def losses_by_hand(network, perturbation, draws, ratio):
    """The cross-entropy of each image's interval margins on the part that draws name."""
    region = perturbation.random_part(X, draws, ratio, 1.0)
    lower, upper = (end.flatten(1) for end in region.perturbation.enclosing_box(region.center))
    first, last = network[1], network[3]
    middle, radius = first((lower + upper) / 2), (upper - lower) / 2 @ first.weight.abs().T
    low, high = (middle - radius).relu(), (middle + radius).relu()
    losses = []
    for image, label in enumerate(Y.tolist()):
        rows = last.weight[label] - last.weight
        margins = (rows @ (low + high)[image] - rows.abs() @ (high - low)[image]) / 2
        losses.append(functional.cross_entropy(-margins - last.bias[label] + last.bias, Y[image]))
    return torch.stack(losses)


@pytest.mark.parametrize("perturbation", [PerturbationPatch(2), PerturbationGeometric(rotation=9)])
def test_the_loss_is_that_of_intervals_by_hand(perturbation):
    network = model()
    result = MultiNormLoss([SplitTerm(perturbation, ratio=0.2)])(
        BoundedModule(network), X, Y, generator=torch.Generator().manual_seed(5)
    )
    draws = torch.rand(6, perturbation.draws, generator=torch.Generator().manual_seed(5))
    losses = losses_by_hand(network, perturbation, draws, 0.2)
    assert torch.allclose(result.value, losses.mean(), atol=1e-5)
    result.value.backward()
    assert all(weight.grad.abs().sum() > 0 for weight in network.parameters())


@pytest.mark.parametrize("perturbation", [PerturbationPatch(2), PerturbationGeometric(rotation=9)])
@pytest.mark.parametrize("plain", [True, False], ids=["linear layers", "any network"])
def test_of_several_candidates_the_worst_counts(perturbation, plain):
    network, slow = model(), model()
    if not plain:
        network.insert(1, nn.Identity())
    result = MultiNormLoss([SplitTerm(perturbation, ratio=0.2, candidates=5)])(
        BoundedModule(network), X, Y, generator=torch.Generator().manual_seed(5)
    )
    draws = torch.rand(5, perturbation.draws, generator=torch.Generator().manual_seed(5))
    losses = torch.stack(
        [losses_by_hand(slow, perturbation, item.expand(6, -1), 0.2) for item in draws]
    )
    worst = losses.amax(0)
    assert (worst > losses.mean(0)).all()
    assert torch.allclose(result.per_example[0], worst, atol=1e-5)
    result.value.backward()
    worst.mean().backward()
    for ours, theirs in zip(network.parameters(), slow.parameters()):
        assert torch.allclose(ours.grad, theirs.grad, atol=1e-5)


@pytest.mark.parametrize("scale", [0.3, 1.0])
@pytest.mark.parametrize("channels", [1, 2])
def test_margins_of_linear_layers_are_those_of_intervals(channels, scale):
    torch.manual_seed(1)
    sizes = [channels * 25, 9, 7]
    hidden = [part for pair in zip(sizes, sizes[1:]) for part in (nn.Linear(*pair), nn.ReLU())]
    network = nn.Sequential(nn.Flatten(), *hidden, nn.Linear(7, 3, bias=False)).double()
    x, place = torch.rand(4, channels, 5, 5).double(), torch.tensor([[0, 0], [3, 1], [2, 2]])
    perturbation, C = PerturbationPatch(2, 3), torch.randn(4, 2, 3).double()
    result = patch_margins(
        [layer for layer in network if isinstance(layer, nn.Linear)],
        perturbation,
        x,
        place,
        scale,
        C,
    )
    for number, item in enumerate(place):
        lower, upper = perturbation.boxes(x, item.expand(4, -1))
        lower, upper = x + scale * (lower - x), x + scale * (upper - x)
        region = Region((lower + upper) / 2, PerturbationLinf(1.0, clip=(lower, upper)))
        (expected,) = BoundedModule(network).compute_region_bounds([region], [C], "IBP")
        assert torch.allclose(result[:, number], expected.lower, atol=1e-10)


def test_candidates_grow_with_the_set():
    term = SplitTerm(PerturbationPatch(1), candidates=9)
    assert [term.scaled(scale).candidates for scale in (0.0, 0.25, 1.0, 1.5)] == [1, 3, 9, 9]
    assert SplitTerm(PerturbationPatch(1)).scaled(0.5).candidates == 1


def test_a_candidate_for_each_image_is_the_one_that_changes_its_class():
    """The network sees one pixel, so that of all places only that pixel's has a loss by hand."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(25, 2))
    with torch.no_grad():
        network[1].weight.zero_()[1, 12] = 3.0
        network[1].bias.zero_()
    images, labels = torch.zeros(2, 1, 5, 5), torch.tensor([0, 0])
    term = SplitTerm(PerturbationPatch(1), candidates=400)  # that pixel among them, but for 1e-7
    result = MultiNormLoss([term])(BoundedModule(network), images, labels)
    assert torch.allclose(result.margins[0], torch.tensor([[-3.0], [-3.0]]))
    assert result.value.item() == pytest.approx(math.log(1 + math.exp(3)), abs=1e-5)


@pytest.mark.parametrize("name", ["joint", "max", "random", "ibp", "cure", "mtl_ibp"])
def test_all_losses_take_transforms_and_patches_beside_balls(name):
    sets = [
        PerturbationLinf(0.05),
        PerturbationL2Box(0.2),
        PerturbationGeometric(rotation=5),
        PerturbationPatch(1),
    ]
    options = {"ratio_geometric": 0.1, "shrink_patch": 0.2, "candidates_patch": 3}
    loss = build_loss(name, sets, **options, attack={"steps": 1})
    assert [type(term) for term in loss.terms] == [LossTerm, LossTerm, SplitTerm, SplitTerm]
    assert loss.terms[2].ratio == 0.1 and loss.terms[3].shrink == 0.2
    assert [term.candidates for term in loss.terms[2:]] == [1, 3]
    result = loss(BoundedModule(model()), X, Y, eps_scale=0.5)
    assert result.value.isfinite() and len(result.margins) == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratio_geometric": 0.0}, "ratio=0.0 must lie in"),
        ({"ratio_geometric": math.nan}, "ratio=nan"),
        ({"shrink_geometric": True}, "must be a number"),
        ({"candidates_geometric": 0}, "candidates=0 must be a positive integer"),
        ({"candidates_geometric": 2.0}, "candidates=2.0 must be a positive integer"),
        ({"candidates_geometric": True}, "candidates=True must be a positive integer"),
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


def test_a_resumed_run_draws_the_same_candidates(tmp_path, monkeypatch):
    sets = [PerturbationPatch(2), PerturbationGeometric(rotation=9)]
    options = {"candidates_patch": 3, "candidates_geometric": 2}
    config = TrainConfig("joint", options, epochs=3, batch_size=8, schedule=Schedule(0, 1))

    def run(folder, resume=False):
        return train(SPEC, data(), sets, config, folder, progress=False, resume=resume)

    whole, step = run(tmp_path / "whole"), TrainingStep.__call__
    with monkeypatch.context() as patched:

        def ended(self, x, y, now):
            if now > 1.5:
                raise SystemExit
            return step(self, x, y, now)

        patched.setattr(TrainingStep, "__call__", ended)
        with pytest.raises(SystemExit):
            run(tmp_path / "parts")
    resumed = run(tmp_path / "parts", resume=True)
    for ours, theirs in zip(whole.parameters(), resumed.parameters()):
        assert torch.equal(ours, theirs)


def test_all_processes_draw_the_same_candidates(monkeypatch):
    """Each has its own rows of the batch; a process draws as many numbers as one for all does."""
    term, C = SplitTerm(PerturbationPatch(2), candidates=4), margin_matrix(Y, 3)
    single = distributed.SharedGenerator(7)
    whole = worst_parts(BoundedModule(model()), term, X, C, single)
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    for rows in (slice(0, 3), slice(3, 6)):
        two = distributed.SharedGenerator(7)
        part = worst_parts(BoundedModule(model()), term, X[rows], C[rows], two)
        assert torch.equal(part.center, whole.center[rows])
        assert torch.equal(two.get_state(), single.get_state())
