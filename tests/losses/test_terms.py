"""Which region of a set a term propagates, and where its centre is searched."""

import pytest
import torch
from torch import nn

import lirpa_multinorm.losses.regions as regions_module
from lirpa_multinorm import (
    BoundedModule,
    LossTerm,
    PerturbationL1Box,
    PerturbationL2Box,
    PerturbationLinf,
    build_loss,
)
from lirpa_multinorm.errors import InvalidArgumentError
from lirpa_multinorm.experiments.presets import load_preset, preset_names
from lirpa_multinorm.experiments.presets.tables import of_this_package
from lirpa_multinorm.losses import TRAINING_ATTACK, find_regions

LINF, L2, L1 = PerturbationLinf(0.1), PerturbationL2Box(0.5), PerturbationL1Box(1.0)
sets = pytest.mark.parametrize("perturbation", [LINF, L2, L1], ids=["linf", "l2", "l1"])

# (set, region, ratio) -> radius the attack searches, or None where there is none
ATTACKED = {
    "sabr": (LINF, "box", 0.4, 0.1),
    "linf_ball": (LINF, "ball", 0.4, 0.06),
    "cure": (L2, "box", 0.2, 0.4),
    "l2_ball": (L2, "ball", 0.2, 0.4),
    "l1_ball": (L1, "ball", 0.25, 0.75),
    "set": (L2, "set", 0.2, None),
    "whole_ball": (L2, "ball", 1, None),
    "whole_box": (L2, "box", 1, 0.0),
}


def model():
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))


def seeded():
    return torch.Generator().manual_seed(0)


def inputs():
    return torch.rand(4, 6), torch.tensor([0, 1, 2, 0])


@pytest.mark.parametrize("perturbation, region, ratio, radius", ATTACKED.values(), ids=ATTACKED)
def test_where_the_centre_is_searched(monkeypatch, perturbation, region, ratio, radius):
    searched = []
    original = regions_module.attack_regions

    def spy(model, regions, *args):
        searched.extend(regions)
        return original(model, regions, *args)

    monkeypatch.setattr(regions_module, "attack_regions", spy)
    x, y = inputs()
    find_regions(model(), [(x, y)], [LossTerm(perturbation, region, ratio)])
    if radius is None:
        assert not searched
    else:
        assert [(item.perturbation.norm, item.perturbation.clip) for item in searched] == [
            (perturbation.norm, (0.0, 1.0))
        ]
        assert searched[0].perturbation.eps == pytest.approx(radius, abs=1e-12)
        assert torch.equal(searched[0].center, x)


@sets
def test_the_whole_set_is_the_set_around_the_input(perturbation):
    x, y = inputs()
    result = find_regions(model(), [(x, y)], [LossTerm(perturbation, "set")])
    (region,) = result.regions
    assert torch.equal(region.center, x) and region.perturbation is perturbation
    assert result.points == [None]


@sets
@pytest.mark.parametrize("ratio", [0.1, 0.5, 1.0])
def test_small_balls_lie_inside_the_ball(perturbation, ratio):
    x, y = inputs()
    (region,) = find_regions(model(), [(x, y)], [LossTerm(perturbation, "ball", ratio)]).regions
    distance = torch.linalg.vector_norm(region.center - x, perturbation.norm, dim=1)
    assert (distance + region.perturbation.eps <= perturbation.eps + 1e-6).all()
    assert region.perturbation.norm == perturbation.norm


def test_centres_are_adversarial_rather_than_clean():
    """The attack moves towards the boundary.

    The loss at the centres is higher than at the inputs.
    """
    net, (x, y) = model(), inputs()
    regions = find_regions(
        net, [(x, y)] * 2, [LossTerm(LINF, "box", 0.1), LossTerm(L2, "ball", 0.1)]
    ).regions
    with torch.no_grad():
        clean = nn.functional.cross_entropy(net(x), y, reduction="none")
        for region in regions:
            assert (
                nn.functional.cross_entropy(net(region.center), y, reduction="none") > clean
            ).all()


def test_centres_do_not_depend_on_the_graph():
    terms = [
        LossTerm(LINF, "box", 0.4, mix="mtl"),
        LossTerm(L2, "box", 0.4),
        LossTerm(L2, "released", 0.4),
    ]
    result = find_regions(model(), [inputs()] * 3, terms)
    assert not any(region.center.requires_grad for region in [*result.regions, result.points[0]])


def test_branches_may_have_batches_of_their_own():
    x, y = inputs()
    regions = find_regions(
        model(), [(x[:3], y[:3]), (x[3:], y[3:])], [LossTerm(LINF), LossTerm(L2)]
    ).regions
    assert [len(region.center) for region in regions] == [3, 1]
    assert (
        LINF.contains(regions[0].center, x[:3]).all()
        and L2.contains(regions[1].center, x[3:]).all()
    )


@sets
@pytest.mark.parametrize(
    "region, ratio, scale, reach",
    [("set", 1, 1.0, 1.0), ("set", 1, 2.0, 2.0), ("ball", 1, 0.5, 0.5), ("ball", 0.25, 3.0, 0.75)],
)
def test_points_of_a_mix_are_single_points_within_reach(perturbation, region, ratio, scale, reach):
    """``attack_scale`` counts where the whole set is propagated.

    Else the region's centre is the point.
    """
    x, y = inputs()
    term = LossTerm(perturbation, region, ratio, mix="mtl", attack_scale=scale)
    (result,), (point,) = find_regions(model(), [(x, y)], [term])
    assert point.perturbation.norm == float("inf") and point.perturbation.eps == 0
    assert point.perturbation.clip == perturbation.clip
    distance = torch.linalg.vector_norm(point.center - x, perturbation.norm, dim=1)
    assert (distance <= reach * perturbation.eps + 1e-6).all() and (
        (point.center >= 0) & (point.center <= 1)
    ).all()
    assert torch.equal(result.center, x if region == "set" or ratio == 1 else point.center)


def test_a_wider_attack_uses_its_reach():
    x, y = inputs()
    terms = [LossTerm(LINF, "set", mix="cc", attack_scale=scale) for scale in (1.0, 2.0)]
    points = find_regions(model(), [(x, y)] * 2, terms).points
    assert ((points[1].center - x).abs() > LINF.eps * 1.5).any() and LINF.contains(
        points[0].center, x
    ).all()


def test_only_mixed_branches_have_points():
    x, y = inputs()
    points = find_regions(
        model(), [(x, y)] * 3, [LossTerm(LINF), LossTerm(L2, mix="cc"), LossTerm(L2, "set")]
    ).points
    assert points[0] is points[2] is None and len(points[1].center) == 4


def test_scaled_changes_the_radius_only():
    term = LossTerm(L2, "ball", 0.3, shrink=0.2, mix="cc", alpha=0.7, attack_scale=1.5)
    scaled = term.scaled(0.5)
    assert (scaled.perturbation.eps, L2.eps) == (0.25, 0.5)
    for name in ("region", "ratio", "shrink", "mix", "alpha", "attack_scale"):
        assert getattr(scaled, name) == getattr(term, name)


@pytest.mark.parametrize(
    "name, sets, options",
    [
        ("ibp", [LINF, L2], {}),
        ("sabr", [LINF], {}),
        ("cure_l2", [L2], {"region_2": "lipschitz"}),
        ("joint", [LINF, L1], {"region_1": "ball", "ratio_1": 0.3}),
        ("mtl_ibp", [LINF, L2], {"attack_scale": 1.5}),
    ],
)
def test_training_takes_a_multiple_of_the_radius(name, sets, options):
    scaled = LossTerm(sets[0], "set", eps_factor=1.5).scaled(0.5)
    assert scaled.perturbation.eps == pytest.approx(0.75 * sets[0].eps)
    assert scaled.scaled(0.5).perturbation.eps == scaled.perturbation.eps / 2
    (x, y), network = inputs(), model()
    factors = {f"eps_factor_{item.norm:g}": 1.5 + i for i, item in enumerate(sets)}
    larger = [item.with_eps(item.eps * factor) for item, factor in zip(sets, factors.values())]
    result = build_loss(name, sets, **factors, **options)(
        BoundedModule(network), x, y, generator=seeded()
    )
    expected = build_loss(name, larger, **options)(BoundedModule(network), x, y, generator=seeded())
    assert torch.equal(result.value, expected.value)


@pytest.mark.parametrize("factor", [0, -1, float("inf"), float("nan"), "2", True])
def test_a_factor_that_is_none(factor):
    with pytest.raises(InvalidArgumentError, match="eps_factor"):
        LossTerm(L2, eps_factor=factor)


@pytest.mark.parametrize(
    "scale, ratio", [(0.0, 0.9), (0.5, 0.6), (0.75, 0.45), (1.0, 0.3), (1.5, 0.3)]
)
def test_the_ratio_moves_from_start_to_end(scale, ratio):
    term = LossTerm(L2, "ball", 0.3, ratio_start=0.9)
    assert term.scaled(scale).ratio == pytest.approx(ratio)
    assert term.scaled(scale).scaled(0.5).ratio == pytest.approx(ratio)  # it does not start over
    assert LossTerm(L2, "ball", 0.3).scaled(scale).ratio == 0.3


def test_the_training_attack():
    assert (
        TRAINING_ATTACK.step_length(float("inf")) == 0.5 and TRAINING_ATTACK.step_length(2) == 0.2
    )
    decays = [TRAINING_ATTACK.decay(step) for step in range(TRAINING_ATTACK.steps)]
    assert decays == pytest.approx([1, 1, 1, 1, 0.3, 0.3])
    assert TRAINING_ATTACK.loss == "ce" and TRAINING_ATTACK.restarts == 1


def test_the_papers_recipes_attack_as_sabr_does():
    """Eight steps; half, then a tenth from steps 4 and 7 on (the last decay would be at step 8)."""
    for name in set(preset_names()) - set(of_this_package()):
        result = load_preset(name)
        attack = build_loss(
            result.train.loss, result.perturbations(), **result.train.loss_options
        ).attack
        assert attack.step_length(float("inf")) == 0.5 and attack.step_length(2) == 0.2
        decays = [attack.decay(step) for step in range(attack.steps)]
        assert decays == pytest.approx([1, 1, 1, 1, 0.1, 0.1, 0.1, 0.01])


BAD = {
    "region": ({"region": "cube"}, "region='cube'.*set, box, ball"),
    "zero": ({"ratio": 0}, "ratio=0 "),
    "above_one": ({"ratio": 1.5}, "ratio=1.5"),
    "nan": ({"ratio": float("nan")}, "ratio=nan"),
    "start": ({"ratio_start": 0.0}, "ratio_start=0.0"),
    "start_nan": ({"ratio_start": float("nan")}, "ratio_start"),
    "shrink": ({"shrink": 1.1}, "shrink=1.1"),
    "shrink_below": ({"shrink": -0.1}, "shrink=-0.1"),
    "shrink_nan": ({"shrink": float("nan")}, "shrink=nan"),
    "mix": ({"mix": "tmi"}, "mix='tmi'.*mtl, cc, exp"),
    "alpha": ({"alpha": 2}, "alpha=2"),
    "alpha_below": ({"alpha": -1e-9}, "alpha="),
    "alpha_nan": ({"alpha": float("nan")}, "alpha=nan"),
    "reach": ({"attack_scale": 0}, "attack_scale=0"),
    "reach_nan": ({"attack_scale": float("nan")}, "attack_scale=nan"),
    "reach_infinite": ({"attack_scale": float("inf")}, "attack_scale=inf"),
    "released": ({"region": "released"}, "released.*l_2 set only"),
}


@pytest.mark.parametrize("arguments, match", BAD.values(), ids=BAD)
def test_unusable_branches_are_refused(arguments, match):
    with pytest.raises(InvalidArgumentError, match=match):
        LossTerm(LINF, **arguments)


def test_a_branch_needs_a_set():
    with pytest.raises(InvalidArgumentError, match="perturbations"):
        LossTerm(0.1)
