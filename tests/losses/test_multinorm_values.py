"""Values and gradients of every loss against the formulas worked out by hand in float64."""

import pytest
import torch
from torch import nn

from lirpa_multinorm import BoundedModule, LossTerm, MultiNormLoss, build_loss
from tests.losses.cases import (
    BALL,
    CASES,
    EPS_2,
    EPS_INF,
    LINF_SET,
    SABR,
    SEED,
    SETS,
    Case,
    assert_same_gradients,
    by_hand,
    gradients,
    images,
    of_package,
    some_right,
)
from tests.losses.slow_intervals import clean_statistics, plain_margins
from tests.networks import batch_norm_conv, conv, in_float64, linear, mlp, normalized_conv

cases = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def assert_same(found, expected, case):
    value, alignment, terms = expected
    assert found.value.item() == pytest.approx(value.item(), rel=1e-12)
    assert len(found.per_example) == len(found.margins) == len(terms)
    for loss, margins, term in zip(found.per_example, found.margins, terms):
        assert torch.allclose(loss, term.loss, rtol=1e-12) and torch.allclose(
            margins, term.margins, rtol=1e-12
        )
    assert set(found.parts) == ({"alignment"} if case.name == "cure" else set())
    if case.aligned.pairs:
        assert found.parts["alignment"].item() == pytest.approx(alignment.item(), rel=1e-12)


# --- values and gradients -------------------------------------------------------------------------


@cases
@pytest.mark.parametrize(
    "make", [linear, mlp, conv, normalized_conv], ids=lambda make: make.__name__
)
def test_value_and_gradients_are_the_formulas(make, case):
    model, (x, _) = in_float64(make), images()
    y = some_right(model, x)
    expected = by_hand(model, x, y, case)
    result = of_package(model, x, y, case)
    assert_same(result, expected, case)
    assert_same_gradients(gradients(result.value, model), gradients(expected[0], model))


@pytest.mark.parametrize("case", ["cure", "cure_inf", "cure_three"])
@pytest.mark.parametrize(
    "make", [linear, mlp, conv, normalized_conv], ids=lambda make: make.__name__
)
def test_the_cases_of_alignment_prove_some_examples_and_not_all(make, case):
    """Else the comparisons above would say nothing about the choice of examples."""
    model, (x, _) = in_float64(make), images()
    result = of_package(model, x, some_right(model, x), CASES[case])
    for target, _ in CASES[case].aligned.pairs:
        assert 0 < (result.margins[target] > 0).all(1).sum() < len(x)
    assert result.parts["alignment"] > 0


@pytest.mark.parametrize(
    "name",
    [
        "joint",
        "max_ball",
        "random",
        "cure",
        "cure_three_both",
        "mtl_wide_attack",
        "cc",
        "exp",
        "joint_released",
        "joint_shrunk",
    ],
)
@pytest.mark.parametrize("scale", [0.0, 0.3], ids=["zero", "part"])
def test_eps_scale_multiplies_every_radius(name, scale):
    model, (x, _) = in_float64(mlp), images()
    y, case = some_right(model, x), CASES[name]
    expected, _, _ = by_hand(model, x, y, case, scale=scale)
    result = of_package(model, x, y, case, scale)
    assert result.value.item() == pytest.approx(expected.item(), rel=1e-12)
    assert_same_gradients(gradients(result.value, model), gradients(expected, model))


@pytest.mark.parametrize("scale", [0.0, 0.25, 0.8, 1.0])
def test_the_ratio_moves_linearly_in_the_radius(scale):
    model, (x, _) = in_float64(mlp), images()
    y = some_right(model, x)
    case = Case(
        "joint",
        {
            "ratio_inf": 0.4,
            "ratio_start_inf": 1.0,
            "region_2": "ball",
            "ratio_2": 0.9,
            "ratio_start_2": 0.1,
        },
        [SABR._replace(ratio_start=1.0), BALL._replace(ratio=0.9, ratio_start=0.1)],
    )
    expected, _, _ = by_hand(model, x, y, case, scale=scale)
    assert of_package(model, x, y, case, scale).value.item() == pytest.approx(
        expected.item(), rel=1e-12
    )


@pytest.mark.parametrize("mix", ["mtl", "cc", "exp"])
@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_the_ends_of_a_mix_are_the_bound_and_the_attack(mix, alpha):
    model, (x, y) = in_float64(mlp), images()
    result = of_package(
        model,
        x,
        y,
        Case("max", {"region_inf": "set", "mix_inf": mix, "alpha_inf": alpha}, [], sets=SETS[:1]),
    )
    (bound,) = of_package(model, x, y, Case("ibp", {}, [], sets=SETS[:1])).per_example
    if alpha == 1:
        assert torch.allclose(result.per_example[0], bound, rtol=1e-12)
    else:
        clean = nn.functional.cross_entropy(model(x), y, reduction="none")
        assert (clean < result.per_example[0]).all() and (result.per_example[0] < bound).all()


def test_radius_zero_is_the_cross_entropy():
    model, (x, y) = in_float64(mlp), images()
    result = of_package(model, x, y, CASES["joint"], scale=0.0)
    assert result.value.item() == pytest.approx(
        nn.functional.cross_entropy(model(x), y).item(), rel=1e-12
    )


def test_the_sets_keep_their_radii():
    terms = [LossTerm(SETS[0]), LossTerm(SETS[1])]
    model, (x, y) = in_float64(linear), images()
    MultiNormLoss(terms)(BoundedModule(model), x, y, eps_scale=0.1)
    assert [term.perturbation.eps for term in terms] == [EPS_INF, EPS_2]


def test_margins_are_those_of_the_per_example_losses():
    model, (x, y) = in_float64(mlp), images()
    result = of_package(model, x, y, CASES["joint"])
    for lower, loss in zip(result.margins, result.per_example):
        assert lower.shape == (7, 2)
        assert torch.allclose(loss, torch.log1p(torch.exp(-lower).sum(1)), rtol=1e-12)


def test_same_seed_same_loss_and_other_seed_other_loss():
    model, (x, y) = in_float64(mlp), images()
    values = [
        MultiNormLoss([LossTerm(SETS[1], "box", 1e-5)])(
            BoundedModule(model), x, y, generator=torch.Generator().manual_seed(seed)
        ).value.item()
        for seed in (0, 0, 1)
    ]
    assert values[0] == values[1] != values[2]


# --- the attack leaves no trace -------------------------------------------------------------------


def test_no_gradient_of_the_attack_is_left_anywhere():
    model, (x, y) = in_float64(batch_norm_conv), images()
    bounded = BoundedModule(model, perturbations=SETS).train()
    bounded(x)
    modes = [module.training for module in model.modules()]
    result = build_loss("joint", SETS)(bounded, x, y)
    assert all(
        parameter.grad is None and parameter.requires_grad for parameter in model.parameters()
    )
    assert modes == [module.training for module in model.modules()]
    result.value.backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


# --- BatchNorm ------------------------------------------------------------------------------------


@cases
def test_batch_norm_uses_the_statistics_of_the_clean_batch(case):
    model, (x, y) = in_float64(batch_norm_conv), images()
    statistics = clean_statistics(model, x)
    y = (plain_margins(model, x, torch.zeros_like(y), statistics) < 0).any(1).long()
    bounded = BoundedModule(model, perturbations=case.sets).train()
    bounded(x)
    loss = build_loss(case.name, case.sets, **case.options)
    result = loss(bounded, x, y, generator=torch.Generator().manual_seed(SEED))
    expected = by_hand(model, x, y, case, statistics)
    assert_same(result, expected, case)
    assert_same_gradients(gradients(result.value, model), gradients(expected[0], model))


def test_batch_norm_follows_the_batch_of_the_loss():
    """Not what passed before, and not the attacked images."""
    model, (x, y) = in_float64(batch_norm_conv), images()
    bounded, loss = BoundedModule(model).train(), build_loss("ibp", SETS)
    values = []
    for clean in (x, x.flip(2) * 0.5, x):
        bounded(clean)
        values.append(loss(bounded, x, y).value.item())
    assert values == pytest.approx([values[0]] * 3, rel=1e-12)


def test_batch_norm_in_eval_mode_uses_the_running_statistics():
    model, (x, y) = in_float64(batch_norm_conv), images()
    bounded = BoundedModule(model).train()
    bounded(x)
    bounded.eval()
    expected, _, _ = by_hand(model, x, y, Case("ibp", {}, [LINF_SET]))
    result = MultiNormLoss([LossTerm(SETS[0], "set")])(bounded, x, y)
    assert result.value.item() == pytest.approx(expected.item(), rel=1e-12)


def test_running_statistics_change_only_in_the_clean_pass():
    model, twin, (x, y) = in_float64(batch_norm_conv), in_float64(batch_norm_conv), images()
    twin.load_state_dict(model.state_dict())
    bounded = BoundedModule(model).train()
    bounded(x)
    twin.train()(x)
    after = {name: value.clone() for name, value in model.named_buffers()}
    build_loss("max", SETS)(bounded, x, y).value.backward()
    for (name, value), (_, other) in zip(model.named_buffers(), twin.named_buffers()):
        assert torch.equal(value, after[name])
        assert torch.allclose(value, other, rtol=1e-12), name
