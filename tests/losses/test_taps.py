"""TAPS and STAPS: formula by hand, between IBP and the latent box's points, and in every loss."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import lirpa_multinorm.losses.taps as module
from lirpa_multinorm import BoundedModule, PerturbationLinf, build_loss, pgd
from lirpa_multinorm.errors import InvalidArgumentError, UnsupportedModelError
from lirpa_multinorm.losses import LossTerm, MultiNormLoss, Taps
from lirpa_multinorm.models import MODELS
from lirpa_multinorm.perturbations import Region
from lirpa_multinorm.training import ModelSpec, Schedule, TrainConfig, train
from lirpa_multinorm.training.step import TrainingStep
from tests.losses.cases import (
    SETS,
    THREE,
    batch_norm_conv,
    conv,
    flipped_conv,
    gradients,
    images,
    mlp,
    network,
    normalized_conv,
)
from tests.losses.slow_bounds import specification, taps_margins, taps_value_and_gradients
from tests.losses.slow_losses import (
    Slow,
    ball,
    clean_statistics,
    cure,
    lower_margins,
    sabr,
    whole_set,
)
from tests.toy import data

LINF, L2, L1 = THREE
NETWORKS = {
    "mlp": mlp,
    "conv": conv,
    "normalized_conv": normalized_conv,
    "flipped_conv": flipped_conv,
    "BatchNorm": batch_norm_conv,
}
REGIONS = {
    "TAPS": (Slow(whole_set, math.inf, LINF.eps), LINF, {"region": "set"}),
    "STAPS": (Slow(sabr, math.inf, LINF.eps, 0.4), LINF, {"ratio": 0.4}),
    "shrunk STAPS": (
        Slow(sabr, math.inf, LINF.eps, 0.4, shrink=0.4),
        LINF,
        {"ratio": 0.4, "shrink": 0.4},
    ),
    "whole l_2": (Slow(whole_set, 2, L2.eps), L2, {"region": "set"}),
    "CURE": (Slow(cure, 2, L2.eps, 0.3), L2, {"ratio": 0.3}),
    "l_2 ball": (Slow(ball, 2, L2.eps, 0.5), L2, {"region": "ball", "ratio": 0.5}),
    "whole l_1": (Slow(whole_set, 1, L1.eps), L1, {"region": "set"}),
}


class Skip(nn.Module):
    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x):
        return x + self.layers(x)


def skips():
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1),
        nn.ReLU(),
        Skip(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 3, 1)),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(48, 5),
        nn.ReLU(),
        nn.Linear(5, 3),
    )


def max_pool():
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1),
        nn.LeakyReLU(0.1),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(12, 5),
        nn.ReLU(),
        nn.Linear(5, 3),
    )


OTHERS = {**NETWORKS, "skips": skips, "MaxPool": max_pool}


# --- the formula ----------------------------------------------------------------------------------


@pytest.mark.parametrize("region", REGIONS)
@pytest.mark.parametrize("name", NETWORKS)
def test_values_and_gradients_are_the_formulas(name, region):
    slow, ptb, options = REGIONS[region]
    model, (x, y) = network(NETWORKS[name]), images(4)
    bounded, generator = BoundedModule(model).train(), torch.Generator().manual_seed(3)
    taps = Taps(steps=5, restarts=2, connector=0.7, weight=3.0)
    found = MultiNormLoss([LossTerm(ptb, bounding="TAPS", taps=taps, **options)])(
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
    assert torch.allclose(found.margins[0], expected, rtol=1e-10, atol=1e-10)
    values, wanted = taps_value_and_gradients(expected, interval, 3.0, list(model.parameters()))
    assert torch.allclose(found.per_example[0], values, rtol=1e-10, atol=1e-10)
    for one, other in zip(gradients(found.value, model), wanted):
        assert torch.allclose(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "layers, steps, product", [(1, 10, True), (1, 12, False), (2, 4, False), (2, 1, True)]
)
def test_settings_of_the_attack_and_the_loss(layers, steps, product):
    def deep():
        return nn.Sequential(
            nn.Flatten(),
            nn.Linear(32, 9),
            nn.ReLU(),
            nn.Linear(9, 8),
            nn.ReLU(),
            nn.Linear(8, 7),
            nn.ReLU(),
            nn.Linear(7, 3),
        )

    model, (x, y) = network(deep), images(4)
    taps = {"layers": layers, "steps": steps, "product": product}
    found = MultiNormLoss([LossTerm(LINF, "set", bounding="TAPS", taps=taps)])(
        BoundedModule(model).train(), x, y, generator=torch.Generator().manual_seed(3)
    )
    region = "box", (x - LINF.eps).clamp(min=0), (x + LINF.eps).clamp(max=1)
    expected = taps_margins(model, region, y, torch.Generator().manual_seed(3), layers, steps=steps)
    assert torch.allclose(found.margins[0], expected, rtol=1e-10, atol=1e-10)
    interval = lower_margins(model, region, y)
    values, wanted = taps_value_and_gradients(
        expected, interval, 5.0, list(model.parameters()), product
    )
    assert torch.allclose(found.per_example[0], values, rtol=1e-10, atol=1e-10)
    for one, other in zip(gradients(found.value, model), wanted):
        assert torch.allclose(one, other, rtol=1e-9, atol=1e-9)


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
    model, (x, y) = network(OTHERS[name]), images(8)
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
    model, (x, y) = network(OTHERS[name]), images(8)
    bounded = BoundedModule(model).eval()
    one, more, long = (
        MultiNormLoss([LossTerm(LINF, "set", bounding="TAPS", taps=taps)])(
            bounded, x, y, generator=torch.Generator().manual_seed(0)
        ).margins[0]
        for taps in (Taps(steps=1), Taps(steps=1, restarts=6), Taps(steps=12))
    )
    assert bool((more <= one).all()) and bool((more < one).any())
    assert long.mean() < one.mean()


def test_the_set_itself_holds_no_worse_points_where_the_attack_is_strong():
    model, (x, y) = network(conv), images(8)
    bounded = BoundedModule(model).eval()
    strong = Taps(steps=40, restarts=5)
    found = MultiNormLoss([LossTerm(one, "set", bounding="TAPS", taps=strong) for one in THREE])(
        bounded, x, y
    )
    C = specification(y, 3)
    for margins, points in zip(found.margins, pgd(model, x, y, THREE)):
        assert bool((margins <= torch.einsum("bsk,bk->bs", C, model(points)) + 1e-6).all())


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("name", OTHERS)
def test_radius_zero_is_the_cross_entropy(name, mode):
    model, (x, y) = network(OTHERS[name]), images()
    bounded = BoundedModule(model).train(mode == "train")
    whole, alone = (
        MultiNormLoss(
            [
                LossTerm(one, "set", bounding="TAPS", taps={"product": product, "weight": 1.0})
                for one in THREE
            ]
        )(bounded, x, y, eps_scale=0.0)
        for product in (True, False)
    )
    clean = F.cross_entropy(whole.logits, y, reduction="none")
    assert alone.value.item() == pytest.approx(clean.mean().item(), rel=1e-10)
    assert whole.value.item() == pytest.approx((clean**2).mean().item(), rel=1e-10)
    expected = gradients(F.cross_entropy(bounded.clean_outputs(x), y), model)
    for one, other in zip(gradients(alone.value, model), expected):
        assert torch.allclose(one, other, rtol=1e-8, atol=1e-9)


def test_the_weight_is_on_the_attacks_gradient_alone():
    model, (x, y) = network(conv), images()
    found = [
        MultiNormLoss(
            [LossTerm(LINF, "set", bounding="TAPS", taps={"weight": weight, "product": False})]
        )(BoundedModule(model), x, y, generator=torch.Generator().manual_seed(0)).value
        for weight in (1.0, 4.0)
    ]
    assert found[0].item() == pytest.approx(found[1].item(), rel=1e-12)
    for one, other in zip(*(gradients(value, model) for value in found)):
        assert torch.allclose(4 * one, other, rtol=1e-10, atol=1e-12)


# --- where networks are cut -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, places",
    [
        ("cnn_small", {1: (32, 3, 3), 2: (16, 6, 6)}),
        ("mlp", {1: (100,)}),
        ("resnet2b", {1: (16, 3, 3), 2: (16, 3, 3), 3: (16, 3, 3), 5: (8, 6, 6)}),
    ],
)
def test_the_cut_stands_behind_an_activation_or_a_block(name, places):
    model, x = MODELS[name]((1, 12, 12), 10).double(), torch.rand(3, 1, 12, 12, dtype=torch.float64)
    bounded = BoundedModule(model).eval()
    bounded.compute_region_bounds([Region(x, PerturbationLinf(0.05))])
    points = []
    for layers, shape in places.items():
        classifier = bounded.latent_classifier(layers)
        lower, upper = classifier.box(slice(1, 3))
        assert lower.shape == upper.shape == (2, *shape) and bool((lower <= upper).all())
        points.append((lower, upper))
    bounded.compute_region_bounds([Region(x, PerturbationLinf(0.0))])
    for (lower, upper), layers in zip(points, places):
        classifier = bounded.latent_classifier(layers)
        inside, _ = classifier.box(slice(1, 3))
        assert bool((lower <= inside + 1e-12).all()) and bool((inside <= upper + 1e-12).all())
        assert torch.allclose(classifier.outputs(inside), model(x[1:]), rtol=1e-10, atol=1e-10)


def test_a_block_that_cannot_be_cut_goes_to_the_classifier_whole():
    model, (x, _) = network(skips), images(3)
    bounded = BoundedModule(model).eval()
    bounded.compute_region_bounds([Region(x, LINF)])
    shapes = [bounded.latent_classifier(layers).box()[0].shape[1:] for layers in (1, 2, 3)]
    assert shapes == [
        (3, 4, 4),
        (3, 4, 4),
        (3, 4, 4),
    ]  # behind the last ReLU but one, the sum, the first ReLU
    inside = [bounded.latent_classifier(layers).box()[0] for layers in (1, 2, 3)]
    assert (
        bool((inside[0] >= 0).all())
        and bool((inside[1] < 0).any())
        and bool((inside[2] >= 0).all())
    )


@pytest.mark.parametrize(
    "make, layers, words",
    [
        (mlp, 2, "taps of the l_inf.*layers=2: the network has no place.*use at most 1"),
        (
            lambda: nn.Sequential(nn.Flatten(), nn.Linear(32, 5), nn.ReLU(), nn.Linear(5, 3)),
            1,
            "layers=1: .*use bounding='IBP'",
        ),
    ],
)
def test_more_layers_than_there_are(make, layers, words):
    model, (x, y) = network(make), images()
    with pytest.raises(InvalidArgumentError, match=words):
        build_loss("staps", [LINF], taps_inf={"layers": layers})(BoundedModule(model), x, y)


@pytest.mark.filterwarnings("ignore:model. its graph holds", "ignore:Using len to get")
def test_a_graph_that_holds_the_number_of_inputs_is_refused():
    class Sized(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(
                nn.Linear(32, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)
            )

        def forward(self, x):
            return self.layers(x.reshape(len(x), 32))

    model, (x, y) = Sized().double(), images()
    with pytest.raises(UnsupportedModelError, match=r"number of inputs.*use -1 or flatten\(1\)"):
        build_loss("taps", [LINF])(BoundedModule(model), x, y)


def test_an_operator_the_host_lacks_is_named():
    class Erf(nn.Module):
        def forward(self, x):
            return torch.special.erf(x)

    model, (x, y) = (
        nn.Sequential(
            nn.Flatten(), nn.Linear(32, 4), Erf(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 3)
        ).double(),
        images(),
    )
    with pytest.raises(UnsupportedModelError, match="(?i)erf"):
        build_loss("taps", [LINF])(BoundedModule(model).train(), x, y)


def test_no_interval_pass_before():
    bounded, (x, _) = BoundedModule(network(conv)), images(2)
    with pytest.raises(InvalidArgumentError, match="call compute_region_bounds by IBP first"):
        bounded.latent_classifier(1)
    bounded.compute_region_bounds([Region(x, LINF)], method="CROWN")
    with pytest.raises(InvalidArgumentError, match="call compute_region_bounds by IBP first"):
        bounded.latent_classifier(1)


# --- in every loss --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, options",
    [
        ("joint", {}),
        ("max", {}),
        ("max", {"taps_inf": {"product": False}}),
        ("random", {}),
        ("cure", {}),
        ("cure", {"target": "inf"}),
        ("cure", {"detach": True}),
        ("joint", {"region_1": "lipschitz"}),
        ("joint", {"mix_2": "mtl", "region_2": "set"}),
        ("joint", {"region_2": "ball", "ratio_2": 0.5, "bounding_2": "TAPS"}),
        ("mtl_ibp", {"mix_inf": None}),
    ],
)
@pytest.mark.parametrize("make", [batch_norm_conv, skips])
def test_it_combines_with_every_loss(make, name, options):
    model, (x, y) = network(make), images(9)
    bounded = BoundedModule(model, perturbations=THREE).train()
    found, plain = (
        build_loss(name, THREE, **{**options, **more})(
            bounded, x, y, generator=torch.Generator().manual_seed(0)
        )
        for more in ({"bounding_inf": "TAPS"}, {"bounding_inf": "IBP"})
    )
    assert len(found.margins) == 3
    assert bool((found.margins[0] >= plain.margins[0] - 1e-12).all())
    assert bool((found.margins[0] > plain.margins[0] + 1e-4).any())
    found.value.backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in model.parameters())


@pytest.mark.parametrize(
    "name, kinds",
    [
        ("taps", ["TAPS", "TAPS"]),
        ("staps", ["TAPS", "IBP"]),
        ("crown_ibp", ["CROWN-IBP", "CROWN-IBP"]),
    ],
)
def test_losses_by_name(name, kinds):
    assert [one.bounding for one in build_loss(name, SETS).terms] == kinds
    changed = build_loss(
        name,
        SETS,
        bounding_inf="IBP",
        bounding_2="TAPS",
        taps_2={"layers": 3},
        weights=[0.25, 0.75],
    )
    assert [one.bounding for one in changed.terms] == ["IBP", "TAPS"] and changed.terms[
        1
    ].taps == Taps(layers=3)
    assert changed.weights == [0.25, 0.75]


def test_staps_is_taps_on_the_box_of_sabr():
    model, (x, y) = network(conv), images()
    found, plain = (
        build_loss(name, [LINF], **options)(
            BoundedModule(model), x, y, generator=torch.Generator().manual_seed(2)
        )
        for name, options in (("staps", {}), ("sabr", {"bounding_inf": "TAPS"}))
    )
    assert torch.equal(found.value, plain.value)
    with pytest.raises(
        InvalidArgumentError, match="no set of norm inf, which the loss 'staps' needs"
    ):
        build_loss("staps", [L2])


def test_the_same_generator_gives_the_same_loss_and_another_one_another():
    model, (x, y) = network(batch_norm_conv), images()
    bounded = BoundedModule(model).train()
    value = [
        build_loss("taps", THREE, **{f"taps_{norm}": {"steps": 1} for norm in ("inf", "2", "1")})(
            bounded, x, y, generator=torch.Generator().manual_seed(seed)
        ).value
        for seed in (1, 1, 2)
    ]
    assert torch.equal(value[0], value[1]) and not torch.equal(value[0], value[2])


def test_the_model_and_its_bounds_are_left_as_they_were():
    model, (x, y) = network(batch_norm_conv), images()
    bounded = BoundedModule(model, perturbations=THREE).train()
    bounded(x)
    before, state = bounded.compute_bounds(x, method="CROWN"), copy.deepcopy(model.state_dict())
    build_loss("taps", THREE)(bounded, x, y)
    after = bounded.compute_bounds(x, method="CROWN")
    assert torch.equal(before[0], after[0]) and torch.equal(before[1], after[1])
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_without_gradients_it_is_the_same_value():
    model, (x, y) = network(batch_norm_conv), images()
    bounded, generator = BoundedModule(model).train(), torch.Generator()
    value = build_loss("taps", SETS)(bounded, x, y, generator=generator.manual_seed(0)).value
    with torch.no_grad():
        other = build_loss("taps", SETS)(bounded, x, y, generator=generator.manual_seed(0)).value
    assert not other.requires_grad and other.item() == pytest.approx(value.item(), rel=1e-12)


# --- settings -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, words",
    [
        ({"layers": 0}, "layers=0 must be a whole number, at least 1"),
        ({"layers": 1.0}, "layers=1.0 must be a whole"),
        ({"steps": True}, "steps=True must be a whole"),
        ({"restarts": 0}, "restarts=0 must be"),
        ({"connector": 0}, r"connector=0 must be a number in \(0, 1\]"),
        ({"connector": 1.5}, "connector=1.5 must be"),
        ({"weight": 0.0}, "weight=0.0 must be"),
        ({"weight": float("nan")}, "weight=nan must be"),
        ({"weight": "5"}, "weight='5' must be"),
        ({"product": 1}, "product=1 must be True or False"),
        ({"layer": 1}, "'layer': 1}.*dict of its fields layers, steps"),
        ([1], r"taps=\[1\] must be Taps"),
        (None, "taps=None must be Taps"),
    ],
)
def test_bad_settings_of_taps_are_refused(options, words):
    with pytest.raises(InvalidArgumentError, match=words):
        LossTerm(LINF, "set", bounding="TAPS", taps=options)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"mix": "cc"}, "mix='cc': bounding='TAPS'.*leave one of them out"),
        ({"region": "lipschitz"}, "bounding='TAPS': region='lipschitz'.*leave one of them out"),
    ],
)
def test_what_does_not_go_with_taps(options, words):
    with pytest.raises(InvalidArgumentError, match=words):
        LossTerm(LINF, **{"region": "set", **options}, bounding="TAPS")
    with pytest.raises(InvalidArgumentError, match="mix='exp': bounding='TAPS'"):
        build_loss("exp_ibp", SETS, bounding_2="TAPS")


# --- training -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["taps", "staps", "crown_ibp"])
def test_a_training_run_lowers_the_loss_and_names_estimates_as_such(name, monkeypatch):
    logged, original = [], TrainingStep.__call__

    def step(*args):
        logged.append(original(*args))
        return logged[-1]

    monkeypatch.setattr(TrainingStep, "__call__", step)
    config = TrainConfig(
        loss=name,
        epochs=14,
        batch_size=20,
        learning_rate=0.01,
        milestones=(),
        schedule=Schedule(0, 4),
        loss_options={"attack": {"steps": 2}},
    )
    spec = ModelSpec("mlp", (1, 4, 4), 3, options={"hidden": [12, 12]})
    train(spec, data(), [PerturbationLinf(0.02)], config, progress=False)
    at_full = [float(values["robust_loss"]) for values in logged[10:]]
    assert at_full[-1] < 0.6 * at_full[0]
    names = {"region_proved_0", "estimated_margin_positive_0"} & set(logged[-1])
    assert names == {"region_proved_0" if name == "crown_ibp" else "estimated_margin_positive_0"}
