"""CROWN-IBP of a term against the formula by hand, and in every loss."""

import pytest
import torch
from torch.nn import functional as F

from lirpa_multinorm import BoundedModule, PerturbationL2Box, PerturbationLinf, build_loss, pgd
from lirpa_multinorm.errors import InvalidArgumentError
from lirpa_multinorm.losses import LossTerm, MultiNormLoss
from tests.checks import assert_same
from tests.losses.cases import (
    NETWORKS,
    REGIONS,
    SETS,
    THREE,
    assert_same_gradients,
    gradients,
    images,
)
from tests.losses.slow_bounds import crown_ibp_margins
from tests.losses.slow_intervals import clean_statistics, lower_margins, specification
from tests.losses.slow_losses import margin_loss
from tests.networks import batch_norm_conv, conv, in_float64, linear

LINF = THREE[0]


def by_hand(model, x, y, slow, share, scale, statistics=None):
    """Margins: the share of CROWN-IBP's, and the rest of IBP's."""
    model.eval()
    region, _ = slow.make(model, x, y, slow.at(scale), torch.Generator().manual_seed(3))
    model.train()
    tight, interval = (
        bound(model, region, y, statistics) for bound in (crown_ibp_margins, lower_margins)
    )
    return share * tight + (1 - share) * interval, tight, interval


@pytest.mark.parametrize("region", REGIONS)
@pytest.mark.parametrize("name", NETWORKS)
def test_values_and_gradients_are_the_formulas(name, region):
    slow, ptb, options = REGIONS[region]
    model, (x, y) = in_float64(NETWORKS[name]), images(5)
    bounded = BoundedModule(model).train()
    loss = MultiNormLoss(
        [LossTerm(ptb, bounding="CROWN-IBP", crown_share=0.1, crown_share_start=0.7, **options)]
    )
    result = loss(bounded, x, y, eps_scale=0.5, generator=torch.Generator().manual_seed(3))
    expected, tight, interval = by_hand(model, x, y, slow, 0.4, 0.5, clean_statistics(model, x))
    assert bool(((tight - interval).abs() > 1e-3).any())  # else the test would say nothing
    assert torch.allclose(result.margins[0], expected, rtol=1e-10, atol=1e-10)
    value = margin_loss(expected).mean()
    assert result.value.item() == pytest.approx(value.item(), rel=1e-10)
    assert_same(gradients(result.value, model), gradients(value, model), 1e-9, 1e-9)


@pytest.mark.parametrize(
    "scale, options, share",
    [
        (0.0, {}, 1.0),
        (0.25, {}, 0.75),
        (1.0, {}, 0.0),
        (1.3, {}, 0.0),
        (0.5, {"crown_share": 0.5}, 0.75),
        (0.5, {"crown_share": 0.3, "crown_share_start": None}, 0.3),
    ],
)
def test_the_share_moves_with_the_radius(scale, options, share):
    assert LossTerm(LINF, "set", bounding="CROWN-IBP", **options).scaled(
        scale
    ).crown_share == pytest.approx(share)


@pytest.mark.parametrize("sets", [SETS, THREE], ids=["two", "three"])
def test_at_the_full_radius_it_is_ibp_as_published(sets, monkeypatch):
    model, (x, y) = in_float64(conv), images()
    bounded = BoundedModule(model, perturbations=sets).train()
    expected, methods = build_loss("ibp", sets)(bounded, x, y), []
    original = BoundedModule.compute_region_bounds
    monkeypatch.setattr(
        BoundedModule,
        "compute_region_bounds",
        lambda self, regions, C, method, **options: (
            methods.append(method) or original(self, regions, C, method, **options)
        ),
    )
    result = build_loss("crown_ibp", sets)(bounded, x, y)
    assert torch.equal(result.value, expected.value) and methods == ["IBP"]
    build_loss("crown_ibp", sets)(bounded, x, y, eps_scale=0.5)
    assert methods == ["IBP", "CROWN-IBP", "IBP"]


def test_radius_zero_is_the_cross_entropy():
    model, (x, y) = in_float64(batch_norm_conv), images()
    bounded = BoundedModule(model).train()
    result = build_loss("crown_ibp", THREE)(bounded, x, y, eps_scale=0.0)
    assert result.value.item() == pytest.approx(F.cross_entropy(result.logits, y).item(), rel=1e-9)
    expected = gradients(F.cross_entropy(bounded.clean_outputs(x), y), model)
    assert_same(gradients(result.value, model), expected, 1e-9, 1e-6)


@pytest.mark.parametrize("name", NETWORKS)
def test_margins_hold_against_an_attack(name):
    model, (x, y) = in_float64(NETWORKS[name]), images()
    bounded = BoundedModule(model, perturbations=THREE).eval()
    result = build_loss(
        "crown_ibp", THREE, **{f"crown_share_{norm}": 0.6 for norm in ("inf", "2", "1")}
    )(bounded, x, y)
    for lower, points in zip(result.margins, pgd(model, x, y, THREE)):
        attacked = torch.einsum("bsk,bk->bs", specification(y, 3), model(points))
        assert bool((lower <= attacked + 1e-9).all())


@pytest.mark.parametrize(
    "name, options",
    [
        ("joint", {}),
        ("max", {}),
        ("random", {}),
        ("cure", {}),
        ("cure", {"target": "inf"}),
        ("mtl_ibp", {}),
        ("cc_ibp", {}),
        ("exp_ibp", {}),
        ("joint", {"region_1": "lipschitz"}),
        ("joint", {"bounding_2": "TAPS"}),
        ("cure", {"region_2": "ball", "ratio_2": 0.5, "bounding_2": "CROWN-IBP"}),
    ],
)
def test_it_combines_with_every_loss(name, options):
    model, (x, y) = in_float64(batch_norm_conv), images(9)
    bounded = BoundedModule(model, perturbations=THREE).train()
    result, plain = (
        build_loss(name, THREE, **{**options, "bounding_inf": bounding})(
            bounded, x, y, eps_scale=0.5, generator=torch.Generator().manual_seed(0)
        )
        for bounding in ("CROWN-IBP", "IBP")
    )
    assert len(result.margins) == 3
    assert bool((result.per_example[0] != plain.per_example[0]).any())
    result.value.backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in model.parameters())


def test_regularisers_see_the_intervals_of_ibp():
    model, (x, y) = in_float64(conv), images()
    bounded = BoundedModule(model).train()
    result, plain = (
        build_loss(name, SETS)(bounded, x, y, eps_scale=0.5).hidden for name in ("crown_ibp", "ibp")
    )
    assert len(result.relus) == 2
    assert_same(result.relus, plain.relus, 0, 0)


def test_a_network_without_relus_has_the_bounds_of_ibp():
    model, (x, y) = in_float64(linear), images()
    bounded = BoundedModule(model).train()
    result, plain = (
        build_loss(name, SETS)(bounded, x, y, eps_scale=0.5) for name in ("crown_ibp", "ibp")
    )
    assert result.value.item() == pytest.approx(plain.value.item(), rel=1e-12)
    assert_same_gradients(gradients(result.value, model), gradients(plain.value, model))


@pytest.mark.parametrize(
    "options, words",
    [
        ({"bounding": "CROWN"}, "bounding='CROWN' is unknown; use IBP, CROWN-IBP, TAPS"),
        ({"bounding": None}, "bounding=None is unknown"),
        ({"crown_share": 1.5}, r"crown_share=1.5 must lie in \[0, 1\]"),
        ({"crown_share": None}, "crown_share=None must be a number"),
        ({"crown_share": float("nan")}, "crown_share=nan must lie"),
        ({"crown_share_start": -0.5}, "crown_share_start=-0.5 must lie"),
        ({"crown_share_start": "1"}, "crown_share_start='1' must be a number"),
        (
            {"bounding": "CROWN-IBP", "shrink": 0.4},
            "shrink=0.4 is for IBP.*bounding='CROWN-IBP'.*leave one of them out",
        ),
        (
            {"bounding": "CROWN-IBP", "region": "lipschitz"},
            "bounding='CROWN-IBP': region='lipschitz'.*leave one",
        ),
    ],
)
def test_bad_settings_are_refused(options, words):
    with pytest.raises(InvalidArgumentError, match=words):
        LossTerm(PerturbationLinf(0.1), **options)


def test_a_step_lowers_the_loss():
    model, (x, y) = in_float64(batch_norm_conv), images(12)
    bounded, loss = (
        BoundedModule(model).train(),
        build_loss("crown_ibp", [LINF, PerturbationL2Box(0.1)]),
    )
    optimizer, values = torch.optim.Adam(model.parameters(), lr=0.02), []
    for _ in range(25):
        optimizer.zero_grad()
        value = loss(bounded, x, y, eps_scale=0.5).value
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[-1] < 0.7 * values[0]
