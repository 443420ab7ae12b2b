"""TAPS and STAPS: formula by hand, and between IBP and the latent box's points."""

import pytest
import torch
from torch.nn import functional as F

import lirpa_multinorm.losses.taps as module
from lirpa_multinorm import BoundedModule, pgd
from lirpa_multinorm.losses import LossTerm, MultiNormLoss, Taps
from tests.checks import assert_same
from tests.losses.cases import NETWORKS, REGIONS, SABR, THREE, gradients, images
from tests.losses.slow_bounds import taps_margins, taps_value_and_gradients
from tests.losses.slow_intervals import clean_statistics, lower_margins, specification
from tests.networks import conv, dense, in_float64, max_pool, skips

LINF = THREE[0]
TAPS_REGIONS = {
    **REGIONS,
    "shrunk SABR": (SABR._replace(shrink=0.4), LINF, {"ratio": 0.4, "shrink": 0.4}),
}
OTHERS = {**NETWORKS, "skips": skips, "MaxPool": max_pool}


@pytest.mark.parametrize("region", TAPS_REGIONS)
@pytest.mark.parametrize("name", NETWORKS)
def test_values_and_gradients_are_the_formulas(name, region):
    slow, ptb, options = TAPS_REGIONS[region]
    model, (x, y) = in_float64(NETWORKS[name]), images(4)
    bounded, generator = BoundedModule(model).train(), torch.Generator().manual_seed(3)
    taps = Taps(steps=5, restarts=2, connector=0.7, weight=3.0)
    result = MultiNormLoss([LossTerm(ptb, bounding="TAPS", taps=taps, **options)])(
        bounded, x, y, generator=generator
    )
    statistics, generator = clean_statistics(model, x), torch.Generator().manual_seed(3)
    model.eval()
    region, _ = slow.make(model, x, y, slow, generator)
    model.train()
    expected = taps_margins(
        model, region, y, generator, 1, statistics, slow.shrink, 0.7, steps=5, restarts=2
    )
    interval = lower_margins(model, region, y, statistics, slow.shrink)
    assert bool((expected - interval > 1e-3).any())  # else the test would say nothing
    assert torch.allclose(result.margins[0], expected, rtol=1e-10, atol=1e-10)
    values, wanted = taps_value_and_gradients(expected, interval, 3.0, list(model.parameters()))
    assert torch.allclose(result.per_example[0], values, rtol=1e-10, atol=1e-10)
    assert_same(gradients(result.value, model), wanted, 1e-9, 1e-9)


@pytest.mark.parametrize(
    "layers, steps, product", [(1, 10, True), (1, 12, False), (2, 4, False), (2, 1, True)]
)
def test_settings_of_the_attack_and_the_loss(layers, steps, product):
    model, (x, y) = in_float64(lambda: dense(32, 9, 8, 7, 3)), images(4)
    taps = {"layers": layers, "steps": steps, "product": product}
    result = MultiNormLoss([LossTerm(LINF, "set", bounding="TAPS", taps=taps)])(
        BoundedModule(model).train(), x, y, generator=torch.Generator().manual_seed(3)
    )
    region = "box", (x - LINF.eps).clamp(min=0), (x + LINF.eps).clamp(max=1)
    expected = taps_margins(model, region, y, torch.Generator().manual_seed(3), layers, steps=steps)
    assert torch.allclose(result.margins[0], expected, rtol=1e-10, atol=1e-10)
    interval = lower_margins(model, region, y)
    values, wanted = taps_value_and_gradients(
        expected, interval, 5.0, list(model.parameters()), product
    )
    assert torch.allclose(result.per_example[0], values, rtol=1e-10, atol=1e-10)
    assert_same(gradients(result.value, model), wanted, 1e-9, 1e-9)


@pytest.mark.parametrize("c", [0.25, 0.5, 1.0])
def test_the_connector_splits_gradients_between_the_ends(c):
    lower = torch.zeros(5, dtype=torch.float64, requires_grad=True)
    upper = torch.tensor([2.0, 2.0, 2.0, 2.0, 0.0], dtype=torch.float64, requires_grad=True)
    z = torch.tensor([2.0, 1.8, 1.0, 0.0, 0.0], dtype=torch.float64)
    points = module.connected(z, lower, upper, c)
    assert torch.equal(points, z)
    points.sum().backward()
    into_upper = [max(0.0, (value - (2 - 2 * c)) / (2 * c)) for value in z[:4].tolist()]
    into_lower = [max(0.0, (2 * c - value) / (2 * c)) for value in z[:4].tolist()]
    assert upper.grad.tolist() == pytest.approx([*into_upper, 0.5])
    assert lower.grad.tolist() == pytest.approx([*into_lower, 0.5])


# --- what the estimates lie between ---------------------------------------------------------------


@pytest.mark.parametrize("ptb", THREE, ids=["l_inf", "l_2", "l_1"])
@pytest.mark.parametrize("name", OTHERS)
def test_estimates_lie_between_ibp_and_any_start_of_the_attack(name, ptb, monkeypatch):
    """Above the bound that IBP has on the same box, below the margins where the attack starts.

    Often really between.
    """
    model, (x, y) = in_float64(OTHERS[name]), images(8)
    bounded, shares = BoundedModule(model).train(), []
    monkeypatch.setattr(
        module, "uniform", lambda like, _: shares.append(torch.rand_like(like)) or shares[0]
    )
    (margins,) = MultiNormLoss([LossTerm(ptb, "set", bounding="TAPS")])(bounded, x, y).margins
    classifier = bounded.latent_classifier(1)
    lower, upper = (end.repeat_interleave(2, 0) for end in classifier.box())
    start = classifier.outputs(lower + (upper - lower) * shares[0])
    seen = (specification(y, 3).flatten(0, 1) * start).sum(1).view(8, 2)
    (interval,) = MultiNormLoss([LossTerm(ptb, "set")])(bounded, x, y).margins
    assert bool((margins >= interval - 1e-12).all()) and bool((margins > interval + 1e-3).any())
    assert bool((margins <= seen + 1e-12).all()) and bool((margins < seen - 1e-3).any())


@pytest.mark.parametrize(
    "name", sorted(set(OTHERS) - {"mlp", "skips"})
)  # there one step finds the least at once
def test_more_restarts_and_steps_find_smaller_margins(name):
    model, (x, y) = in_float64(OTHERS[name]), images(8)
    bounded = BoundedModule(model).eval()
    single, more, long = (
        MultiNormLoss([LossTerm(LINF, "set", bounding="TAPS", taps=taps)])(
            bounded, x, y, generator=torch.Generator().manual_seed(0)
        ).margins[0]
        for taps in (Taps(steps=1), Taps(steps=1, restarts=6), Taps(steps=12))
    )
    assert bool((more <= single).all()) and bool((more < single).any())
    assert long.mean() < single.mean()


def test_the_set_itself_holds_no_worse_points_where_the_attack_is_strong():
    model, (x, y) = in_float64(conv), images(8)
    bounded = BoundedModule(model).eval()
    strong = Taps(steps=40, restarts=5)
    result = MultiNormLoss([LossTerm(item, "set", bounding="TAPS", taps=strong) for item in THREE])(
        bounded, x, y
    )
    C = specification(y, 3)
    for margins, points in zip(result.margins, pgd(model, x, y, THREE)):
        assert bool((margins <= torch.einsum("bsk,bk->bs", C, model(points)) + 1e-6).all())


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("name", OTHERS)
def test_radius_zero_is_the_cross_entropy(name, mode):
    model, (x, y) = in_float64(OTHERS[name]), images()
    bounded = BoundedModule(model).train(mode == "train")
    whole, alone = (
        MultiNormLoss(
            [
                LossTerm(item, "set", bounding="TAPS", taps={"product": product, "weight": 1.0})
                for item in THREE
            ]
        )(bounded, x, y, eps_scale=0.0)
        for product in (True, False)
    )
    clean = F.cross_entropy(whole.logits, y, reduction="none")
    assert alone.value.item() == pytest.approx(clean.mean().item(), rel=1e-10)
    assert whole.value.item() == pytest.approx((clean**2).mean().item(), rel=1e-10)
    expected = gradients(F.cross_entropy(bounded.clean_outputs(x), y), model)
    assert_same(gradients(alone.value, model), expected, 1e-9, 1e-8)


def test_the_weight_is_on_the_attacks_gradient_alone():
    model, (x, y) = in_float64(conv), images()
    result = [
        MultiNormLoss(
            [LossTerm(LINF, "set", bounding="TAPS", taps={"weight": weight, "product": False})]
        )(BoundedModule(model), x, y, generator=torch.Generator().manual_seed(0)).value
        for weight in (1.0, 4.0)
    ]
    assert result[0].item() == pytest.approx(result[1].item(), rel=1e-12)
    first, second = (gradients(value, model) for value in result)
    assert_same([4 * gradient for gradient in first], second, 1e-12, 1e-10)
