"""TAPS in every loss, its settings, and training with it."""

import copy

import pytest
import torch

from lirpa_multinorm import BoundedModule, PerturbationLinf, build_loss
from lirpa_multinorm.errors import InvalidArgumentError
from lirpa_multinorm.losses import LossTerm, Taps
from lirpa_multinorm.training import ModelSpec, Schedule, TrainConfig, train
from lirpa_multinorm.training.step import TrainingStep
from tests.losses.cases import SETS, THREE, images
from tests.networks import batch_norm_conv, conv, in_float64, skips
from tests.toy import data

LINF, L2, _ = THREE


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
    model, (x, y) = in_float64(make), images(9)
    bounded = BoundedModule(model, perturbations=THREE).train()
    result, plain = (
        build_loss(name, THREE, **{**options, **more})(
            bounded, x, y, generator=torch.Generator().manual_seed(0)
        )
        for more in ({"bounding_inf": "TAPS"}, {"bounding_inf": "IBP"})
    )
    assert len(result.margins) == 3
    assert bool((result.margins[0] >= plain.margins[0] - 1e-12).all())
    assert bool((result.margins[0] > plain.margins[0] + 1e-4).any())
    result.value.backward()
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
    assert [term.bounding for term in build_loss(name, SETS).terms] == kinds
    changed = build_loss(
        name,
        SETS,
        bounding_inf="IBP",
        bounding_2="TAPS",
        taps_2={"layers": 3},
        weights=[0.25, 0.75],
    )
    assert [term.bounding for term in changed.terms] == ["IBP", "TAPS"] and changed.terms[
        1
    ].taps == Taps(layers=3)
    assert changed.weights == [0.25, 0.75]


def test_staps_is_taps_on_the_box_of_sabr():
    model, (x, y) = in_float64(conv), images()
    result, plain = (
        build_loss(name, [LINF], **options)(
            BoundedModule(model), x, y, generator=torch.Generator().manual_seed(2)
        )
        for name, options in (("staps", {}), ("sabr", {"bounding_inf": "TAPS"}))
    )
    assert torch.equal(result.value, plain.value)
    with pytest.raises(
        InvalidArgumentError, match="no set of norm inf, which the loss 'staps' needs"
    ):
        build_loss("staps", [L2])


def test_the_same_generator_gives_the_same_loss_and_another_one_another():
    model, (x, y) = in_float64(batch_norm_conv), images()
    bounded = BoundedModule(model).train()
    value = [
        build_loss("taps", THREE, **{f"taps_{norm}": {"steps": 1} for norm in ("inf", "2", "1")})(
            bounded, x, y, generator=torch.Generator().manual_seed(seed)
        ).value
        for seed in (1, 1, 2)
    ]
    assert torch.equal(value[0], value[1]) and not torch.equal(value[0], value[2])


def test_the_model_and_its_bounds_are_left_as_they_were():
    model, (x, y) = in_float64(batch_norm_conv), images()
    bounded = BoundedModule(model, perturbations=THREE).train()
    bounded(x)
    before, state = bounded.compute_bounds(x, method="CROWN"), copy.deepcopy(model.state_dict())
    build_loss("taps", THREE)(bounded, x, y)
    after = bounded.compute_bounds(x, method="CROWN")
    assert torch.equal(before[0], after[0]) and torch.equal(before[1], after[1])
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_without_gradients_it_is_the_same_value():
    model, (x, y) = in_float64(batch_norm_conv), images()
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
