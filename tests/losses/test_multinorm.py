"""Values and gradients of every loss against the formulas worked out by hand in float64."""

import math
from typing import Any, NamedTuple

import pytest
import torch
from losses.slow_losses import (Slow, alignment, ball, branch_losses, clean_statistics, clipped_ball, cure, input_ends,
                                plain_margins, released, sabr, shi, whole_set)
from torch import nn

import lirpa_multinorm.losses.multinorm as multinorm
from lirpa_multinorm import (BoundedModule, Branch, MultiNormLoss, PerturbationL1Box, PerturbationL2Box,
                             PerturbationLinf, build_loss, certify, distributed)
from lirpa_multinorm.distributed import SharedGenerator
from lirpa_multinorm.errors import InvalidArgumentError
from lirpa_multinorm.losses import Alignment, shi_regularizer
from lirpa_multinorm.models import Normalize

EPS_INF, EPS_2, EPS_1, SEED = 0.08, 0.3, 0.6, 7
SETS = [PerturbationLinf(EPS_INF), PerturbationL2Box(EPS_2)]
THREE = [*SETS, PerturbationL1Box(EPS_1)]

LINF_SET, L2_SET, L1_SET = Slow(whole_set, math.inf, EPS_INF), Slow(whole_set, 2, EPS_2), Slow(whole_set, 1, EPS_1)
SABR, CURE, CURE_1 = Slow(sabr, math.inf, EPS_INF, 0.4), Slow(cure, 2, EPS_2, 1e-5), Slow(cure, 1, EPS_1, 1e-5)
BALL, BALL_1, RELEASED = Slow(ball, 2, EPS_2, 0.5), Slow(ball, 1, EPS_1, 0.5), Slow(released, 2, EPS_2, 1e-5)


class Aligned(NamedTuple):
    """Bound alignment by hand: the (target, other) numbers of branches."""

    eta: float
    pairs: list
    detach: bool = False


class Case(NamedTuple):
    """A loss by name with its options, its branches by hand, and how they are combined."""

    name: str
    options: dict
    branches: list
    how: Any = "mean"
    aligned: Aligned = Aligned(0.0, [])
    sets: list = SETS


def mixed(mix, alpha=0.5, attack_scale=1.0):
    return [one._replace(mix=mix, alpha=alpha, attack_scale=attack_scale) for one in (LINF_SET, L2_SET)]


CASES = {
    "ibp": Case("ibp", {}, [LINF_SET, L2_SET]),
    "ibp_three": Case("ibp", {}, [LINF_SET, L2_SET, L1_SET], sets=THREE),
    "sabr": Case("sabr", {}, [SABR]),
    "sabr_0.7": Case("sabr", {"ratio_inf": 0.7}, [SABR._replace(ratio=0.7)]),
    "sabr_shrunk": Case("sabr", {"ratio_inf": 1, "shrink_inf": 0.4}, [SABR._replace(ratio=1, shrink=0.4)]),
    "cure_l2": Case("cure_l2", {}, [CURE]),
    "cure_l2_0.3": Case("cure_l2", {"ratio_2": 0.3}, [CURE._replace(ratio=0.3)]),
    "cure_l2_ball": Case("cure_l2", {"ratio_2": 0.3, "region_2": "ball"}, [BALL._replace(ratio=0.3)]),
    "cure_l2_clipped": Case("cure_l2", {"ratio_2": 0.5, "region_2": "clipped_ball"},
                            [BALL._replace(make=clipped_ball)]),
    "cure_l2_whole_ball": Case("cure_l2", {"ratio_2": 1, "region_2": "ball"}, [BALL._replace(ratio=1)]),
    "cure_l2_released": Case("cure_l2", {"region_2": "released"}, [RELEASED]),
    "cure_l2_released_0.3": Case("cure_l2", {"region_2": "released", "ratio_2": 0.3}, [RELEASED._replace(ratio=0.3)]),
    "joint": Case("joint", {}, [SABR, CURE]),
    "joint_weighted": Case("joint", {"weights": (0.8, 0.2)}, [SABR, CURE], (0.8, 0.2)),
    "joint_linf_only": Case("joint", {"weights": (1, 0)}, [SABR, CURE], (1, 0)),
    "joint_released": Case("joint", {"region_2": "released"}, [RELEASED, SABR], sets=SETS[::-1]),
    "joint_shrunk": Case("joint", {"shrink_inf": 0.4, "region_2": "set", "shrink_2": 1.0},
                         [SABR._replace(shrink=0.4), L2_SET._replace(shrink=1.0)]),
    "joint_one_mixed": Case("joint", {"mix_2": "mtl", "alpha_2": 0.3, "shrink_inf": 0.5},
                            [SABR._replace(shrink=0.5), CURE._replace(mix="mtl", alpha=0.3)]),
    "max": Case("max", {}, [SABR, CURE], "max"),
    "max_ball": Case("max", {"ratio_2": 0.5, "region_2": "ball"}, [SABR, BALL], "max"),
    "max_three": Case("max", {"region_2": "ball", "ratio_2": 0.5, "region_1": "ball", "ratio_1": 0.5},
                      [SABR, BALL, BALL_1], "max", sets=THREE),
    "random": Case("random", {}, [SABR, CURE], "random"),
    "random_ball": Case("random", {"ratio_2": 0.5, "region_2": "ball"}, [SABR, BALL], "random"),
    "random_three": Case("random", {}, [SABR, CURE, CURE_1], "random", sets=THREE),
    "random_shrunk": Case("random", {"region_2": "set", "shrink_2": 0.6}, [SABR, L2_SET._replace(shrink=0.6)],
                          "random"),
    "random_overlapping": Case("random", {"blocks": "overlapping"}, [SABR, CURE], "overlapping"),
    "cure": Case("cure", {}, [SABR, CURE], "max", Aligned(2.0, [(1, 0)])),
    "cure_inf": Case("cure", {"eta": 0.5, "target": "inf"}, [SABR, CURE], "max", Aligned(0.5, [(0, 1)])),
    "cure_detached": Case("cure", {"detach": True}, [SABR, CURE], "max", Aligned(2.0, [(1, 0)], True)),
    "cure_both": Case("cure", {"target": "both"}, [SABR, CURE], "max", Aligned(2.0, [(0, 1), (1, 0)])),
    "cure_joint": Case("cure", {"combine": "joint", "weights": (0.3, 0.7)}, [SABR, CURE], (0.3, 0.7),
                       Aligned(2.0, [(1, 0)])),
    "cure_eta_0": Case("cure", {"eta": 0}, [SABR, CURE], "max"),
    "cure_three": Case("cure", {"target": 1, "region_1": "ball", "ratio_1": 0.5}, [SABR, CURE, BALL_1], "max",
                       Aligned(2.0, [(2, 0), (2, 1)]), THREE),
    "cure_three_both": Case("cure", {"target": "both", "detach": True}, [SABR, CURE, CURE_1], "max",
                            Aligned(2.0, [(q, r) for q in range(3) for r in range(3) if q != r], True), THREE),
    "cure_mixed": Case("cure", {"mix_2": "cc", "alpha_2": 0.2, "region_2": "set", "eta": 1.5},
                       [SABR, L2_SET._replace(mix="cc", alpha=0.2)], "max", Aligned(1.5, [(1, 0)])),
    "mtl": Case("mtl_ibp", {"alpha": 0.3}, mixed("mtl", 0.3), "max"),
    "mtl_joint": Case("mtl_ibp", {"alpha": 0.6, "combine": "joint"}, mixed("mtl", 0.6)),
    "mtl_wide_attack": Case("mtl_ibp", {"alpha": 0.01, "attack_scale": 2.0}, mixed("mtl", 0.01, 2.0), "max"),
    "mtl_random": Case("mtl_ibp", {"alpha": 0.3, "combine": "random"}, mixed("mtl", 0.3), "random"),
    "cc": Case("cc_ibp", {"alpha": 0.3}, mixed("cc", 0.3), "max"),
    "cc_box": Case("cc_ibp", {"alpha": 0.8, "region_2": "box", "ratio_2": 0.2, "combine": "joint"},
                   [mixed("cc", 0.8)[0], CURE._replace(ratio=0.2, mix="cc", alpha=0.8)]),
    "exp": Case("exp_ibp", {"alpha": 0.3}, mixed("exp", 0.3), "max"),
    "exp_ball": Case("exp_ibp", {"alpha": 0.9, "region_2": "ball", "ratio_2": 0.5, "region_inf": "box"},
                     [SABR._replace(mix="exp", alpha=0.9), BALL._replace(mix="exp", alpha=0.9)], "max"),
}
cases = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def linear():
    model = nn.Sequential(nn.Flatten(), nn.Linear(32, 3))
    nn.init.normal_(model[1].bias)  # so that some margins are large beside the radii
    return model


def mlp():
    return nn.Sequential(nn.Flatten(), nn.Linear(32, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))


def conv():
    return nn.Sequential(nn.Conv2d(2, 4, 3, stride=1, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 3, stride=2, padding=1),
                         nn.ReLU(), nn.Flatten(), nn.Linear(12, 3))


class Negative(Normalize):
    """The colours inverted."""

    def forward(self, x):
        return -super().forward(x)


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


def flipped_conv():
    """A normalisation with a negative scale."""
    return nn.Sequential(Negative([0.4, 0.5], [0.2, 0.3]), *conv())


def network(make):
    model = make().double()
    for layer in model:
        if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)):
            nn.init.normal_(layer.weight)  # scales of both signs
            nn.init.normal_(layer.bias)
    return model


def some_right(model, x):
    """Labels of which every other one is the model's own answer, so that some examples are proved and some are not."""
    with torch.no_grad():
        answers = model(x).argmax(1)
    return torch.where(torch.arange(len(x)) % 2 == 0, answers, (answers + 1) % 3)


def combined(losses, how):
    if how == "max":
        return sum(max(pair, key=torch.Tensor.item) for pair in zip(*losses)) / len(losses[0])
    if isinstance(how, tuple):
        return sum(weight * loss.mean() for weight, loss in zip(how, losses))
    return sum(loss.mean() for loss in losses) / len(losses)


def gradients(value, model):
    found = torch.autograd.grad(value, list(model.parameters()), retain_graph=True, allow_unused=True)
    return [torch.zeros_like(p) if one is None else one for p, one in zip(model.parameters(), found)]


def assert_same_gradients(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected):
        # A bias that BatchNorm cancels has a gradient of rounding errors only.
        assert torch.allclose(one, other, rtol=1e-8, atol=1e-12)


def by_hand(model, x, y, case, statistics=None, scale=1.0):
    """(value, alignment term, what each branch comes to)."""
    found = branch_losses(model, x, y, [one.at(scale) for one in case.branches], SEED, statistics, case.how)
    value, aligned = combined([one.loss for one in found], case.how), case.aligned
    terms = [alignment(found[q].margins.detach() if aligned.detach else found[q].margins, found[r].margins)
             for q, r in aligned.pairs]
    return value + aligned.eta * sum(terms), sum(terms), found


def of_package(model, x, y, case, scale=1.0, **more):
    loss = build_loss(case.name, case.sets, **case.options, **more)
    bounded = BoundedModule(model, perturbations=case.sets)
    return loss(bounded, x, y, eps_scale=scale, generator=torch.Generator().manual_seed(SEED))


# --- values and gradients -----------------------------------------------------------------------------------------

@cases
@pytest.mark.parametrize("make", [linear, mlp, conv, normalized_conv], ids=lambda make: make.__name__)
def test_value_and_gradients_are_the_formulas(make, case):
    model, (x, _) = network(make), images()
    y = some_right(model, x)
    expected = by_hand(model, x, y, case)
    found = of_package(model, x, y, case)
    assert_same(found, expected, case)
    assert_same_gradients(gradients(found.value, model), gradients(expected[0], model))


def assert_same(found, expected, case):
    value, term, branches = expected
    assert found.value.item() == pytest.approx(value.item(), rel=1e-9)
    assert len(found.per_example) == len(found.margins) == len(branches)
    for loss, margins, branch in zip(found.per_example, found.margins, branches):
        assert torch.allclose(loss, branch.loss, rtol=1e-9) and torch.allclose(margins, branch.margins, rtol=1e-9)
    assert set(found.terms) == ({"alignment"} if case.name == "cure" else set())
    if case.aligned.pairs:
        assert found.terms["alignment"].item() == pytest.approx(term.item(), rel=1e-8)


@pytest.mark.parametrize("case", ["cure", "cure_inf", "cure_three"])
@pytest.mark.parametrize("make", [linear, mlp, conv, normalized_conv], ids=lambda make: make.__name__)
def test_the_cases_of_alignment_prove_some_examples_and_not_all(make, case):
    """Else the comparisons above would say nothing about the choice of examples."""
    model, (x, _) = network(make), images()
    found = of_package(model, x, some_right(model, x), CASES[case])
    for target, _ in CASES[case].aligned.pairs:
        assert 0 < (found.margins[target] > 0).all(1).sum() < len(x)
    assert found.terms["alignment"] > 0


@pytest.mark.parametrize("name", ["joint", "max_ball", "random", "cure", "cure_three_both", "mtl_wide_attack", "cc",
                                  "exp", "joint_released", "joint_shrunk"])
@pytest.mark.parametrize("scale", [0.0, 0.3], ids=["zero", "part"])
def test_eps_scale_multiplies_every_radius(name, scale):
    model, (x, _) = network(mlp), images()
    y, case = some_right(model, x), CASES[name]
    expected, _, _ = by_hand(model, x, y, case, scale=scale)
    found = of_package(model, x, y, case, scale)
    assert found.value.item() == pytest.approx(expected.item(), rel=1e-9)
    assert_same_gradients(gradients(found.value, model), gradients(expected, model))


@pytest.mark.parametrize("scale", [0.0, 0.25, 0.8, 1.0])
def test_the_ratio_moves_linearly_in_the_radius(scale):
    model, (x, _) = network(mlp), images()
    y = some_right(model, x)
    case = Case("joint", {"ratio_inf": 0.4, "ratio_start_inf": 1.0, "region_2": "ball", "ratio_2": 0.9,
                          "ratio_start_2": 0.1},
                [SABR._replace(ratio_start=1.0), BALL._replace(ratio=0.9, ratio_start=0.1)])
    expected, _, _ = by_hand(model, x, y, case, scale=scale)
    assert of_package(model, x, y, case, scale).value.item() == pytest.approx(expected.item(), rel=1e-9)


@pytest.mark.parametrize("mix", ["mtl", "cc", "exp"])
@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_the_ends_of_a_mix_are_the_bound_and_the_attack(mix, alpha):
    model, (x, y) = network(mlp), images()
    found = of_package(model, x, y, Case("max", {"region_inf": "set", "mix_inf": mix, "alpha_inf": alpha}, [],
                                         sets=SETS[:1]))
    bound, = of_package(model, x, y, Case("ibp", {}, [], sets=SETS[:1])).per_example
    if alpha == 1:
        assert torch.allclose(found.per_example[0], bound, rtol=1e-12)
    else:
        clean = nn.functional.cross_entropy(model(x), y, reduction="none")
        assert (clean < found.per_example[0]).all() and (found.per_example[0] < bound).all()


def test_radius_zero_is_the_cross_entropy():
    model, (x, y) = network(mlp), images()
    found = of_package(model, x, y, CASES["joint"], scale=0.0)
    assert found.value.item() == pytest.approx(nn.functional.cross_entropy(model(x), y).item(), rel=1e-12)


def test_the_sets_keep_their_radii():
    branches = [Branch(SETS[0]), Branch(SETS[1])]
    model, (x, y) = network(linear), images()
    MultiNormLoss(branches)(BoundedModule(model), x, y, eps_scale=0.1)
    assert [branch.perturbation.eps for branch in branches] == [EPS_INF, EPS_2]


def test_margins_are_those_of_the_per_example_losses():
    model, (x, y) = network(mlp), images()
    found = of_package(model, x, y, CASES["joint"])
    for lower, loss in zip(found.margins, found.per_example):
        assert lower.shape == (7, 2)
        assert torch.allclose(loss, torch.log1p(torch.exp(-lower).sum(1)), rtol=1e-12)


# --- how branches are combined ------------------------------------------------------------------------------------

def test_max_is_taken_per_example():
    model, (x, y) = network(mlp), images(30)
    found = of_package(model, x, y, Case("max", {"ratio_2": 0.6, "region_2": "ball"}, []))
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
    bounded, generator = BoundedModule(nn.Sequential(nn.Linear(3, 2))), torch.Generator().manual_seed(1)
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


def blocks_of(loss, count, generator):
    """Numbers of the examples that every block gets."""
    x = torch.arange(count, dtype=torch.float64).unsqueeze(1)
    batches = loss._batches(x, torch.arange(count), generator)
    assert all(torch.equal(block[:, 0].long(), labels) for block, labels in batches)
    return [labels.tolist() for _, labels in batches]


@pytest.mark.parametrize("how", ["partition", "overlapping"])
@pytest.mark.parametrize("count, branches", [(6, 2), (7, 2), (7, 3)])
def test_every_example_is_equally_likely_in_each_block(how, count, branches):
    loss, draws = MultiNormLoss([Branch(SETS[0], "set")] * branches, "random", blocks=how), 1500
    generator, seen = torch.Generator().manual_seed(0), torch.zeros(branches, count)
    for _ in range(draws):
        for block, members in enumerate(blocks_of(loss, count, generator)):
            seen[block, members] += 1
    share = torch.full((branches, 1), 1 / branches)
    if how == "overlapping":  # the first blocks of an uneven batch are longer by one
        share = torch.tensor([[-(-(count - i) // branches) / count] for i in range(branches)])
    assert ((seen / draws - share).abs() < 5 * (share * (1 - share) / draws).sqrt()).all()


def test_overlapping_blocks_use_some_examples_twice_and_some_never():
    """Halves of independent permutations: a quarter of the batch each."""
    loss, generator = MultiNormLoss([Branch(one, "set") for one in SETS], "random", blocks="overlapping"), None
    twice = []
    for seed in range(200):
        generator = torch.Generator().manual_seed(seed)
        first, second = blocks_of(loss, 8, generator)
        assert len(set(first)) == len(set(second)) == 4
        twice.append(len(set(first) & set(second)) / 8)
    assert sum(twice) / len(twice) == pytest.approx(0.25, abs=0.03)


@pytest.mark.parametrize("count, processes, branches", [(8, 2, 2), (12, 2, 3), (12, 3, 2)])
def test_the_blocks_of_several_processes_are_together_those_of_one(monkeypatch, count, processes, branches):
    loss = MultiNormLoss([Branch(SETS[0], "set")] * branches, "random")
    alone = [set(block) for block in blocks_of(loss, count, SharedGenerator(3))]
    share, together = count // processes, [set() for _ in range(branches)]
    monkeypatch.setattr(distributed, "world_size", lambda: processes)
    for rank in range(processes):
        monkeypatch.setattr(distributed, "rank", lambda: rank)
        for block, members in zip(together, blocks_of(loss, share, SharedGenerator(3))):
            block.update(rank * share + member for member in members)
    assert together == alone


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


TWO = [Branch(one) for one in SETS]
BAD_ADDITIONS = {
    "blocks": (TWO, {"combine": "random", "blocks": "halves"}, "blocks='halves'.*partition or overlapping"),
    "random": (TWO, {"combine": "random", "alignment": Alignment()}, "combine='random'"),
    "one_set": (TWO[:1], {"alignment": Alignment(target="inf")}, "1 set; bound alignment.*needs two"),
    "no_l1": (TWO, {"alignment": Alignment(target=1)}, "target=1.0 is not the norm of any set"),
    "nan_target": (TWO, {"alignment": Alignment(target=float("nan"))}, "target=nan is not the norm"),
    "above": (TWO, {"regularized": 2}, "regularized=2.*2 branches, 0 to 1"),
    "below": (TWO, {"regularized": -3}, "regularized=-3"),
    "no_number": (TWO, {"regularized": "last"}, "regularized='last'"),
    "half": (TWO, {"regularized": 0.5}, "regularized=0.5")}


@pytest.mark.parametrize("branches, arguments, match", BAD_ADDITIONS.values(), ids=BAD_ADDITIONS)
def test_unusable_additions_are_refused(branches, arguments, match):
    with pytest.raises(InvalidArgumentError, match=match):
        MultiNormLoss(branches, **{"combine": "max", **arguments})


# --- bounds inside the network for regularisers -------------------------------------------------------------------

def assert_hidden(found, model, slow):
    """The intervals and Shi's regularisers on them, gradients included."""
    ends = input_ends(model, slow.region)
    for one, other in zip(found.hidden.input, ends):
        assert torch.allclose(one, other, rtol=1e-9, atol=1e-12)
    assert len(found.hidden.relus) == len(slow.relus)
    for (lower, upper), (low, high) in zip(found.hidden.relus, slow.relus):
        assert torch.allclose(lower, low, rtol=1e-9, atol=1e-12) and torch.allclose(upper, high, rtol=1e-9, atol=1e-12)
    value, expected = shi_regularizer(found.hidden), shi(ends, slow.relus)
    assert value.item() == pytest.approx(expected.item(), rel=1e-8, abs=1e-12)
    if slow.relus:
        assert_same_gradients(gradients(value, model), gradients(expected, model))


@pytest.mark.parametrize("name, number, regularized", [
    ("joint", 0, None), ("joint", 1, 1), ("joint", 1, -1), ("joint_released", 1, None), ("max_three", 2, 2),
    ("ibp", 1, 1), ("mtl", 0, None), ("cc", 1, 1), ("random", 0, None), ("random_three", 2, -1), ("cure", 0, None),
    ("joint_shrunk", 0, None)])
@pytest.mark.parametrize("make", [linear, mlp], ids=lambda make: make.__name__)
def test_hidden_bounds_are_those_of_one_branch(make, name, number, regularized):
    """The first l_inf branch, wherever it stands, unless another one is asked for."""
    model, (x, y), case = network(make), images(5), CASES[name]
    _, _, slow = by_hand(model, x, y, case)
    assert_hidden(of_package(model, x, y, case, regularized=regularized), model, slow[number])


@pytest.mark.parametrize("name, number", [("joint", 0), ("ibp_three", 1)])
@pytest.mark.parametrize("make", [conv, normalized_conv, flipped_conv], ids=lambda make: make.__name__)
def test_hidden_bounds_of_convolutions(make, name, number):
    """The network's input is measured behind its normalisation."""
    model, (x, y), case = network(make), images(4), CASES[name]
    _, _, slow = by_hand(model, x, y, case)
    assert_hidden(of_package(model, x, y, case, regularized=number), model, slow[number])


def test_without_linf_the_first_branch_is_regularised():
    model, (x, y), case = network(mlp), images(5), CASES["cure_l2_0.3"]
    assert_hidden(of_package(model, x, y, case), model, by_hand(model, x, y, case)[2][0])


@pytest.mark.parametrize("name, number", [("joint", 0), ("ibp", 0), ("max_three", 0), ("mtl_random", 0)])
def test_hidden_bounds_behind_batch_norm_in_training(name, number):
    model, (x, y), case = network(batch_norm_conv), images(), CASES[name]
    bounded = BoundedModule(model).train()
    bounded(x)
    _, _, slow = by_hand(model, x, y, case, clean_statistics(model, x))
    found = build_loss(case.name, case.sets, **case.options)(bounded, x, y,
                                                             generator=torch.Generator().manual_seed(SEED))
    assert_hidden(found, model, slow[number])


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
    model, (x, y) = network(batch_norm_conv), images()
    statistics = clean_statistics(model, x)
    y = (plain_margins(model, x, torch.zeros_like(y), statistics) < 0).any(1).long()
    bounded = BoundedModule(model, perturbations=case.sets).train()
    bounded(x)
    loss = build_loss(case.name, case.sets, **case.options)
    found = loss(bounded, x, y, generator=torch.Generator().manual_seed(SEED))
    expected = by_hand(model, x, y, case, statistics)
    assert_same(found, expected, case)
    assert_same_gradients(gradients(found.value, model), gradients(expected[0], model))


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
    expected, _, _ = by_hand(model, x, y, Case("ibp", {}, [LINF_SET]))
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
        value = loss(bounded, x, y).value
        value.backward()
        optimizer.step()
        values.append(value.item())
    after = certify(model, x, y, sets).summary()
    assert values[-1] < 0.5 * values[0]
    assert after["certified_union"] >= before["certified_union"] + 0.3 and after["certified_union"] > 0.8
