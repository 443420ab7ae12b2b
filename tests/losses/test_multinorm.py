"""Values and gradients of every loss against the formulas worked out by hand in float64."""

import pytest
import torch
from losses.slow_losses import ball, branch_losses, clean_statistics, cure, l2_set, linf_set, sabr
from torch import nn

import lirpa_multinorm.losses.multinorm as multinorm
from lirpa_multinorm import (BoundedModule, Branch, MultiNormLoss, PerturbationL1Box, PerturbationL2Box,
                             PerturbationLinf, build_loss, certify)
from lirpa_multinorm.errors import InvalidArgumentError
from lirpa_multinorm.models import Normalize

EPS_INF, EPS_2, SEED = 0.08, 0.3, 7
SETS = [PerturbationLinf(EPS_INF), PerturbationL2Box(EPS_2)]
BRANCH_SABR, BRANCH_CURE = (sabr, EPS_INF, 0.4), (cure, EPS_2, 1e-5)

# name -> (name of the loss, its options, branches by hand, combination by hand)
CASES = {
    "ibp": ("ibp", {}, [(linf_set, EPS_INF, 1), (l2_set, EPS_2, 1)], "mean"),
    "sabr": ("sabr", {}, [BRANCH_SABR], "mean"),
    "sabr_0.7": ("sabr", {"ratio_inf": 0.7}, [(sabr, EPS_INF, 0.7)], "mean"),
    "cure_l2": ("cure_l2", {}, [BRANCH_CURE], "mean"),
    "cure_l2_0.3": ("cure_l2", {"ratio_2": 0.3}, [(cure, EPS_2, 0.3)], "mean"),
    "cure_l2_ball": ("cure_l2", {"ratio_2": 0.3, "region_2": "ball"}, [(ball, EPS_2, 0.3)], "mean"),
    "cure_l2_whole_ball": ("cure_l2", {"ratio_2": 1, "region_2": "ball"}, [(ball, EPS_2, 1)], "mean"),
    "joint": ("joint", {}, [BRANCH_SABR, BRANCH_CURE], "mean"),
    "joint_weighted": ("joint", {"weights": (0.8, 0.2)}, [BRANCH_SABR, BRANCH_CURE], (0.8, 0.2)),
    "joint_linf_only": ("joint", {"weights": (1, 0)}, [BRANCH_SABR, BRANCH_CURE], (1, 0)),
    "max": ("max", {}, [BRANCH_SABR, BRANCH_CURE], "max"),
    "max_ball": ("max", {"ratio_2": 0.5, "region_2": "ball"}, [BRANCH_SABR, (ball, EPS_2, 0.5)], "max"),
    "random": ("random", {}, [BRANCH_SABR, BRANCH_CURE], "random"),
    "random_ball": ("random", {"ratio_2": 0.5, "region_2": "ball"}, [BRANCH_SABR, (ball, EPS_2, 0.5)], "random"),
}
cases = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def linear():
    return nn.Sequential(nn.Flatten(), nn.Linear(32, 3))


def mlp():
    return nn.Sequential(nn.Flatten(), nn.Linear(32, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))


def conv():
    return nn.Sequential(nn.Conv2d(2, 4, 3, stride=1, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 3, stride=2, padding=1),
                         nn.ReLU(), nn.Flatten(), nn.Linear(12, 3))


def normalized_conv():
    return nn.Sequential(Normalize([0.4, 0.5], [0.2, 0.3]), *conv())


def batch_norm_conv():
    return nn.Sequential(nn.Conv2d(2, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(),
                         nn.Linear(16, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))


def images(count=7):
    """Some pixels at the ends of [0, 1], so that clip acts."""
    generator = torch.Generator().manual_seed(1)
    x = (torch.rand(count, 2, 4, 4, generator=generator, dtype=torch.float64) * 1.2 - 0.1).clamp(0, 1)
    return x, torch.arange(count) % 3


def network(make):
    model = make().double()
    for layer in model:
        if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)):
            nn.init.normal_(layer.weight)  # scales of both signs
            nn.init.normal_(layer.bias)
    return model


def combined(losses, how):
    if how == "max":
        return torch.stack([torch.stack(list(pair)).max() for pair in zip(*losses)]).mean()
    if isinstance(how, tuple):
        return sum(weight * loss.mean() for weight, loss in zip(how, losses))
    return sum(loss.mean() for loss in losses) / len(losses)


def gradients(value, model):
    return torch.autograd.grad(value, list(model.parameters()), retain_graph=True, allow_unused=True)


def assert_same_gradients(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected):
        # A bias that BatchNorm cancels has a gradient of rounding errors only.
        assert torch.allclose(one, other, rtol=1e-8, atol=1e-12)


def by_hand(model, x, y, branches, how, statistics=None, scale=1.0):
    branches = [(make, eps * scale, ratio) for make, eps, ratio in branches]
    losses = branch_losses(model, x, y, branches, SEED, statistics, blocks=how == "random")
    return combined(losses, how), losses


def of_package(model, x, y, name, options, scale=1.0):
    loss = build_loss(name, SETS, **options)
    bounded = BoundedModule(model, perturbations=SETS)
    return loss(bounded, x, y, eps_scale=scale, generator=torch.Generator().manual_seed(SEED))


# --- values and gradients -----------------------------------------------------------------------------------------

@cases
@pytest.mark.parametrize("make", [linear, mlp, conv, normalized_conv], ids=lambda make: make.__name__)
def test_value_and_gradients_are_the_formulas(make, case):
    name, options, branches, how = case
    model, (x, y) = network(make), images()
    expected, losses = by_hand(model, x, y, branches, how)
    found = of_package(model, x, y, name, options)
    assert found.value.item() == pytest.approx(expected.item(), rel=1e-9)
    for one, other in zip(found.per_example, losses):
        assert torch.allclose(one, other, rtol=1e-9)
    assert_same_gradients(gradients(found.value, model), gradients(expected, model))


@pytest.mark.parametrize("name", ["joint", "max_ball", "random"])
@pytest.mark.parametrize("scale", [0.0, 0.3], ids=["zero", "part"])
def test_eps_scale_multiplies_every_radius(name, scale):
    loss, options, branches, how = CASES[name]
    model, (x, y) = network(mlp), images()
    expected, _ = by_hand(model, x, y, branches, how, scale=scale)
    found = of_package(model, x, y, loss, options, scale)
    assert found.value.item() == pytest.approx(expected.item(), rel=1e-9)


def test_radius_zero_is_the_cross_entropy():
    model, (x, y) = network(mlp), images()
    found = of_package(model, x, y, "joint", {}, scale=0.0)
    assert found.value.item() == pytest.approx(nn.functional.cross_entropy(model(x), y).item(), rel=1e-12)


def test_the_sets_keep_their_radii():
    branches = [Branch(SETS[0]), Branch(SETS[1])]
    model, (x, y) = network(linear), images()
    MultiNormLoss(branches)(BoundedModule(model), x, y, eps_scale=0.1)
    assert [branch.perturbation.eps for branch in branches] == [EPS_INF, EPS_2]


def test_margins_are_those_of_the_per_example_losses():
    model, (x, y) = network(mlp), images()
    found = of_package(model, x, y, "joint", {})
    for lower, loss in zip(found.margins, found.per_example):
        assert lower.shape == (7, 2)
        assert torch.allclose(loss, torch.log1p(torch.exp(-lower).sum(1)), rtol=1e-12)


# --- how branches are combined ------------------------------------------------------------------------------------

def test_max_is_taken_per_example():
    model, (x, y) = network(mlp), images(30)
    found = of_package(model, x, y, "max", {"ratio_2": 0.6, "region_2": "ball"})
    first, second = found.per_example
    assert (first > second).any() and (second > first).any()  # else the test would say nothing
    assert found.value.item() == pytest.approx(torch.maximum(first, second).mean().item(), rel=1e-12)
    assert found.value > max(first.mean(), second.mean())


@pytest.mark.parametrize("count, branches", [(2, 2), (7, 2), (8, 2), (8, 3), (11, 4)])
def test_random_is_a_partition_fresh_in_each_call(monkeypatch, count, branches):
    seen = []
    original = multinorm.find_regions

    def spy(model, batches, *args):
        seen.append([block for block, _ in batches])
        for block, labels in batches:  # the labels go with their images
            assert torch.equal(labels, (block[:, 0] * count).round().long() % 2)
        return original(model, batches, *args)

    monkeypatch.setattr(multinorm, "find_regions", spy)
    x = torch.arange(count).unsqueeze(1) / count * torch.ones(1, 3)
    loss = MultiNormLoss([Branch(PerturbationLinf(0.1), "set")] * branches, "random")
    bounded, generator = BoundedModule(nn.Sequential(nn.Linear(3, 2))), torch.Generator().manual_seed(0)
    for _ in range(12):
        loss(bounded, x, torch.arange(count) % 2, generator=generator)
    for blocks in seen:
        sizes = [len(block) for block in blocks]
        assert len(sizes) == branches and max(sizes) - min(sizes) <= 1
        assert sorted((torch.cat(blocks)[:, 0] * count).round().tolist()) == list(range(count))
    assert len({tuple(torch.cat(blocks)[:, 0].tolist()) for blocks in seen}) > 1


def test_random_needs_an_example_per_block():
    loss = MultiNormLoss([Branch(one, "set") for one in SETS], "random")
    with pytest.raises(InvalidArgumentError, match="1 examples for 2 blocks"):
        loss(BoundedModule(nn.Sequential(nn.Linear(3, 2))), torch.rand(1, 3), torch.tensor([0]))


def test_three_norms_at_once():
    model, (x, y) = network(mlp), images()
    sets = [*SETS, PerturbationL1Box(0.5)]
    branches = [Branch(sets[0], "box", 0.5), Branch(sets[1], "ball", 0.5), Branch(sets[2], "ball", 0.5)]
    found = MultiNormLoss(branches, "max")(BoundedModule(model), x, y)
    assert found.value.item() == pytest.approx(torch.stack(found.per_example).amax(0).mean().item(), rel=1e-12)
    assert len(found.margins) == 3


def test_same_seed_same_loss_and_other_seed_other_loss():
    model, (x, y) = network(mlp), images()
    values = [MultiNormLoss([Branch(SETS[1], "box", 1e-5)])(BoundedModule(model), x, y,
                                                           generator=torch.Generator().manual_seed(seed)).value.item()
              for seed in (0, 0, 1)]
    assert values[0] == values[1] != values[2]


BAD = {"no_branches": ([], "joint", None, "branches is empty"),
       "combination": ([Branch(SETS[0])], "mean", None, "combine='mean'.*joint, max, random"),
       "too_few_weights": ([Branch(one) for one in SETS], "joint", [1.], "weights"),
       "sum": ([Branch(one) for one in SETS], "joint", [0.5, 0.6], "add up to 1"),
       "negative": ([Branch(one) for one in SETS], "joint", [-0.5, 1.5], "weights"),
       "nan": ([Branch(one) for one in SETS], "joint", [float("nan"), 1.], "weights"),
       "weights_of_max": ([Branch(one) for one in SETS], "max", [0.5, 0.5], "weights.*joint")}


@pytest.mark.parametrize("branches, combine, weights, match", BAD.values(), ids=BAD)
def test_unusable_settings_are_refused(branches, combine, weights, match):
    with pytest.raises(InvalidArgumentError, match=match):
        MultiNormLoss(branches, combine, weights)


# --- the attack leaves no trace -----------------------------------------------------------------------------------

def test_no_gradient_of_the_attack_is_left_anywhere():
    model, (x, y) = network(batch_norm_conv), images()
    bounded = BoundedModule(model, perturbations=SETS).train()
    bounded(x)
    modes = [module.training for module in model.modules()]
    found = build_loss("joint", SETS)(bounded, x, y)
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert modes == [module.training for module in model.modules()]
    found.value.backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


# --- BatchNorm ----------------------------------------------------------------------------------------------------

@cases
def test_batch_norm_uses_the_statistics_of_the_clean_batch(case):
    name, options, branches, how = case
    model, (x, y) = network(batch_norm_conv), images()
    bounded = BoundedModule(model, perturbations=SETS).train()
    bounded(x)
    found = build_loss(name, SETS, **options)(bounded, x, y, generator=torch.Generator().manual_seed(SEED))
    expected, _ = by_hand(model, x, y, branches, how, clean_statistics(model, x))
    assert found.value.item() == pytest.approx(expected.item(), rel=1e-9)
    assert_same_gradients(gradients(found.value, model), gradients(expected, model))


def test_batch_norm_follows_the_last_forward_pass():
    """Not the first one, and not the attacked images."""
    model, (x, y) = network(batch_norm_conv), images()
    bounded, loss = BoundedModule(model).train(), build_loss("ibp", SETS)
    values = []
    for clean in (x, x.flip(2) * 0.5, x):
        bounded(clean)
        values.append(loss(bounded, x, y).value.item())
    assert values[0] == pytest.approx(values[2], rel=1e-12)
    assert abs(values[0] - values[1]) > 1e-3


def test_batch_norm_in_eval_mode_uses_the_running_statistics():
    model, (x, y) = network(batch_norm_conv), images()
    bounded = BoundedModule(model).train()
    bounded(x)
    bounded.eval()
    expected, _ = by_hand(model, x, y, [(linf_set, EPS_INF, 1)], "mean")
    found = MultiNormLoss([Branch(SETS[0], "set")])(bounded, x, y)
    assert found.value.item() == pytest.approx(expected.item(), rel=1e-9)


def test_running_statistics_change_only_in_the_clean_pass():
    model, twin, (x, y) = network(batch_norm_conv), network(batch_norm_conv), images()
    twin.load_state_dict(model.state_dict())
    bounded = BoundedModule(model).train()
    bounded(x)
    twin.train()(x)
    after = {name: value.clone() for name, value in model.named_buffers()}
    build_loss("max", SETS)(bounded, x, y).value.backward()
    for (name, value), (_, other) in zip(model.named_buffers(), twin.named_buffers()):
        assert torch.equal(value, after[name])
        assert torch.allclose(value, other, rtol=1e-12), name


# --- a loop of the user's own -------------------------------------------------------------------------------------

def blobs(count=60):
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(count) % 2
    x = torch.where(y.unsqueeze(1) == 0, 0.3, 0.7) + 0.08 * torch.randn(count, 2, generator=generator)
    return x.clamp(0, 1), y


@pytest.mark.parametrize("combine", ["joint", "max", "random"])
def test_a_loop_of_ones_own_trains(combine):
    x, y = blobs()
    model = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 2))
    sets = [PerturbationLinf(0.06), PerturbationL2Box(0.08)]
    loss = MultiNormLoss([Branch(sets[0], "box", 0.5), Branch(sets[1], "ball", 0.8)], combine)
    bounded = BoundedModule(model, perturbations=sets)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    before, values = certify(model, x, y, sets).summary(), []
    for _ in range(60):
        optimizer.zero_grad()
        value, _, _ = loss(bounded, x, y)
        value.backward()
        optimizer.step()
        values.append(value.item())
    after = certify(model, x, y, sets).summary()
    assert values[-1] < 0.5 * values[0]
    assert after["certified_union"] >= before["certified_union"] + 0.3 and after["certified_union"] > 0.8
