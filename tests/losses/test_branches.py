"""Which region of a set a branch propagates, and where its centre is searched."""

import pytest
import torch
from torch import nn

import lirpa_multinorm.losses.branches as branches_module
from lirpa_multinorm import Branch, PerturbationL1Box, PerturbationL2Box, PerturbationLinf
from lirpa_multinorm.errors import InvalidArgumentError
from lirpa_multinorm.losses import TRAINING_ATTACK, find_regions

LINF, L2, L1 = PerturbationLinf(0.1), PerturbationL2Box(0.5), PerturbationL1Box(1.0)
sets = pytest.mark.parametrize("perturbation", [LINF, L2, L1], ids=["linf", "l2", "l1"])

# (set, region, ratio) -> radius the attack searches, or None where there is none
ATTACKED = {"sabr": (LINF, "box", 0.4, 0.1), "linf_ball": (LINF, "ball", 0.4, 0.06), "cure": (L2, "box", 0.2, 0.4),
            "l2_ball": (L2, "ball", 0.2, 0.4), "l1_ball": (L1, "ball", 0.25, 0.75), "set": (L2, "set", 0.2, None),
            "whole_ball": (L2, "ball", 1, None), "whole_box": (L2, "box", 1, 0.0)}


def model():
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))


def inputs():
    return torch.rand(4, 6), torch.tensor([0, 1, 2, 0])


@pytest.mark.parametrize("perturbation, region, ratio, radius", ATTACKED.values(), ids=ATTACKED)
def test_where_the_centre_is_searched(monkeypatch, perturbation, region, ratio, radius):
    searched = []
    original = branches_module.attack_regions

    def spy(model, regions, *args):
        searched.extend(regions)
        return original(model, regions, *args)

    monkeypatch.setattr(branches_module, "attack_regions", spy)
    x, y = inputs()
    find_regions(model(), [(x, y)], [Branch(perturbation, region, ratio)])
    if radius is None:
        assert not searched
    else:
        assert [(one.perturbation.norm, one.perturbation.clip) for one in searched] == [(perturbation.norm, (0., 1.))]
        assert searched[0].perturbation.eps == pytest.approx(radius, abs=1e-12)
        assert torch.equal(searched[0].center, x)


@sets
def test_the_whole_set_is_the_set_around_the_input(perturbation):
    x, y = inputs()
    region, = find_regions(model(), [(x, y)], [Branch(perturbation, "set")])
    assert torch.equal(region.center, x) and region.perturbation is perturbation


@sets
@pytest.mark.parametrize("ratio", [0.1, 0.5, 1.0])
def test_small_balls_lie_inside_the_ball(perturbation, ratio):
    x, y = inputs()
    region, = find_regions(model(), [(x, y)], [Branch(perturbation, "ball", ratio)])
    distance = torch.linalg.vector_norm(region.center - x, perturbation.norm, dim=1)
    assert (distance + region.perturbation.eps <= perturbation.eps + 1e-6).all()
    assert region.perturbation.norm == perturbation.norm


def test_centres_are_adversarial_rather_than_clean():
    """The attack moves towards the boundary: the loss at the centres is higher than at the inputs."""
    net, (x, y) = model(), inputs()
    regions = find_regions(net, [(x, y)] * 2, [Branch(LINF, "box", 0.1), Branch(L2, "ball", 0.1)])
    with torch.no_grad():
        clean = nn.functional.cross_entropy(net(x), y, reduction="none")
        for region in regions:
            assert (nn.functional.cross_entropy(net(region.center), y, reduction="none") > clean).all()


def test_centres_do_not_depend_on_the_graph():
    regions = find_regions(model(), [inputs()] * 2, [Branch(LINF, "box", 0.4), Branch(L2, "box", 0.4)])
    assert not any(region.center.requires_grad for region in regions)


def test_branches_may_have_batches_of_their_own():
    x, y = inputs()
    regions = find_regions(model(), [(x[:3], y[:3]), (x[3:], y[3:])], [Branch(LINF), Branch(L2)])
    assert [len(region.center) for region in regions] == [3, 1]
    assert LINF.contains(regions[0].center, x[:3]).all() and L2.contains(regions[1].center, x[3:]).all()


def test_scaled_changes_the_radius_only():
    branch = Branch(L2, "ball", 0.3).scaled(0.5)
    assert (branch.perturbation.eps, branch.region, branch.ratio, L2.eps) == (0.25, "ball", 0.3, 0.5)


def test_the_training_attack_is_sabrs():
    """Eight steps; half, then a tenth of it from steps 4 and 7 on (the last decay would come at step 8)."""
    assert TRAINING_ATTACK.step_length(float("inf")) == 0.5 and TRAINING_ATTACK.step_length(2) == 0.2
    decays = [TRAINING_ATTACK.decay(step) for step in range(TRAINING_ATTACK.steps)]
    assert decays == pytest.approx([1, 1, 1, 1, 0.1, 0.1, 0.1, 0.01])
    assert TRAINING_ATTACK.loss == "ce" and TRAINING_ATTACK.restarts == 1


BAD = {"region": ({"region": "cube"}, "region='cube'.*set, box, ball"), "zero": ({"ratio": 0}, "ratio=0 "),
       "above_one": ({"ratio": 1.5}, "ratio=1.5"), "nan": ({"ratio": float("nan")}, "ratio=nan")}


@pytest.mark.parametrize("arguments, match", BAD.values(), ids=BAD)
def test_unusable_branches_are_refused(arguments, match):
    with pytest.raises(InvalidArgumentError, match=match):
        Branch(LINF, **arguments)


def test_a_branch_needs_a_set():
    with pytest.raises(InvalidArgumentError, match="perturbations"):
        Branch(0.1)
