"""Settings go to plain data and back."""

import json
import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from lirpa_multinorm import PerturbationL2Box, PerturbationLinf, PerturbationLpBox
from lirpa_multinorm.errors import InvalidArgumentError
from lirpa_multinorm.training import ModelSpec, Projection, Schedule, TrainConfig
from lirpa_multinorm.training.config import describe_sets, sets_from

CONFIG = TrainConfig(
    loss="joint",
    loss_options={"ratio_inf": 0.6, "weights": [0.3, 0.7]},
    epochs=3,
    batch_size=5,
    learning_rate=1e-3,
    milestones=(1, 2),
    decay=0.5,
    l1=1e-5,
    schedule=Schedule(2, 7, 0.5, 0.25),
    regularizer=0.5,
    initialization="shi",
    projection=Projection(0.8, "mixed", "copy", True),
    clip_norm=10.0,
    average_from=1,
    precise_bn=True,
    augment="cifar",
    seed=9,
)
SPEC = ModelSpec("cnn_small", (3, 8, 8), 4, (0.4, 0.5, 0.6), (0.2, 0.2, 0.3), {"width": 2})


@pytest.mark.parametrize("config", [CONFIG, TrainConfig()], ids=["changed", "default"])
def test_config_survives_json(config):
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    "spec", [SPEC, ModelSpec("mlp", (1, 2, 2), 2, options={"hidden": [3]})], ids=["cnn", "mlp"]
)
def test_spec_survives_json(spec):
    assert ModelSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


def test_spec_builds_what_it_says():
    model = SPEC.build()
    assert model[0].mean.flatten().tolist() == pytest.approx([0.4, 0.5, 0.6])
    assert model[1].out_channels == 2 and model(torch.rand(2, 3, 8, 8)).shape == (2, 4)


def test_sets_survive_json():
    sets = [
        PerturbationLinf(0.1),
        PerturbationL2Box(0.5, clip=None),
        PerturbationLpBox(1, 2.0, clip=(-1, 3)),
    ]
    described = json.loads(json.dumps(describe_sets(sets)))
    assert [(item.norm, item.eps, item.clip) for item in sets_from(described)] == [
        (math.inf, 0.1, (0.0, 1.0)),
        (2, 0.5, None),
        (1, 2.0, (-1.0, 3.0)),
    ]


def test_unknown_settings_are_named():
    with pytest.raises(InvalidArgumentError, match="unknown settings: epoch, lr"):
        TrainConfig.from_dict({"lr": 1, "epoch": 2, "seed": 0})


def test_missing_settings_take_their_defaults():
    assert TrainConfig.from_dict({"seed": 4}) == TrainConfig(seed=4)


def test_unknown_settings_below_are_named_with_their_place():
    with pytest.raises(InvalidArgumentError, match="unknown settings: projection.betta"):
        TrainConfig.from_dict({"projection": {"betta": 0.5}})


WRONG = [
    *(
        (name, value)
        for name in ("epochs", "batch_size", "seed")
        for value in (2.5, 3.0, True, "3", None, math.nan, math.inf, [3])
    ),
    *(
        (name, value)
        for name in ("learning_rate", "decay", "l1", "regularizer")
        for value in (True, "0.1", None, [0.1], 1j)
    ),
    ("clip_norm", "1"),
    ("clip_norm", True),
    ("average_from", 0.5),
    ("average_from", True),
    ("average_from", "1"),
    ("average_from", -1),
    ("milestones", 5),
    ("milestones", "50"),
    ("milestones", (1.5,)),
    ("milestones", (-1,)),
    ("milestones", (True,)),
    ("milestones", (None,)),
    ("milestones", ("70",)),
    ("milestones", (math.nan,)),
    ("schedule", 3),
    ("schedule", None),
    ("schedule", (1, 2)),
    ("projection", 0.5),
    ("projection", True),
    ("loss_options", None),
    ("loss_options", ["ratio_inf"]),
    ("loss_options", {3: 1}),
    ("precise_bn", 1),
    ("precise_bn", "no"),
    ("partial_radius", 1),
    ("loss", None),
    ("seed", -1),
]


@pytest.mark.parametrize("name, value", WRONG, ids=str)
def test_values_of_another_type_are_refused_by_name(name, value):
    with pytest.raises(InvalidArgumentError, match=f"^{name}"):
        TrainConfig(**{name: value})


def test_a_dict_is_taken_for_schedule_and_projection():
    config = TrainConfig(
        schedule={"anneal_epochs": 3}, projection={"beta": 0.25}, milestones=[1, "70%"]
    )
    assert (config.schedule, config.projection) == (Schedule(anneal_epochs=3), Projection(0.25))
    assert config.milestones == (1, "70%")
    for name in ("schedule", "projection"):
        with pytest.raises(InvalidArgumentError, match=f"unknown settings: {name}.betta"):
            TrainConfig(**{name: {"betta": 1}})


def test_shares_of_the_run_survive_json_and_become_epochs():
    config = TrainConfig(
        epochs=40, milestones=(0.7, "90%"), schedule=Schedule("5%", "50%", 0.5, 0.25)
    )
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    result = config.in_epochs()
    assert (
        result.milestones == (28, 36)
        and result.schedule == Schedule(2, 20, 0.5, 0.25)
        and result.in_epochs() == result
    )
    assert CONFIG.in_epochs() == CONFIG


@pytest.mark.parametrize(
    "epochs, milestones, average",
    [(140, (100, 120), 80), (35, (25, 30), 20), (5, (4, 4), 3), (2, (1, 1), 1), (1, (), 0)],
)
def test_another_length_keeps_the_proportions(epochs, milestones, average):
    config = TrainConfig(
        epochs=70, milestones=(50, 60, 70, 80), schedule=Schedule(1, 20), average_from=40
    )
    result = config.scaled(epochs)
    assert (result.epochs, result.milestones, result.average_from) == (epochs, milestones, average)
    assert result.schedule.natural_epochs == pytest.approx(epochs / 70)
    assert result.schedule.anneal_epochs == pytest.approx(20 * epochs / 70)
    shares = TrainConfig(epochs=70, milestones=("70%",), schedule=Schedule("5%", "50%"))
    assert shares.scaled(epochs) == TrainConfig(
        epochs=epochs, milestones=("70%",), schedule=Schedule("5%", "50%")
    )
    assert config.scaled(70) is config


BAD = {
    "epochs": 0,
    "batch_size": -1,
    "learning_rate": 0.0,
    "decay": -0.5,
    "l1": -1e-5,
    "regularizer": -0.5,
    "clip_norm": 0.0,
    "average_from": 70,
}


@pytest.mark.parametrize("name", BAD)
def test_unusable_numbers_are_refused(name):
    with pytest.raises(InvalidArgumentError, match=f"{name}={BAD[name]}"):
        TrainConfig(**{name: BAD[name]})


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["learning_rate", "decay", "l1", "regularizer", "clip_norm"])
def test_numbers_must_be_finite(name, value):
    with pytest.raises(InvalidArgumentError, match=f"{name}={value}"):
        TrainConfig(**{name: value})


@pytest.mark.parametrize(
    "name, value", [("initialization", "shy"), ("augment", "cifra"), ("augment", True)]
)
def test_unknown_names_are_refused(name, value):
    with pytest.raises(InvalidArgumentError, match=repr(value)):
        TrainConfig(**{name: value})


@pytest.mark.parametrize(
    "name",
    [
        "learning_rate",
        "decay",
        "clip_norm",
        "l1",
        "regularizer",
        "kappa_start",
        "kappa_end",
        "beta",
    ],
)
@pytest.mark.parametrize("kind", [np.float64, np.float32, np.float16, Fraction])
def test_numbers_of_other_kinds_become_numbers_of_python(name, kind):
    value = kind(1) / kind(2)
    if name.startswith("kappa"):
        settings, result = (
            {"schedule": {name: value}},
            lambda config: getattr(config.schedule, name),
        )
    elif name == "beta":
        settings, result = {"projection": {name: value}}, lambda config: config.projection.beta
    else:
        settings, result = {name: value}, lambda config: getattr(config, name)
    assert type(result(TrainConfig(**settings))) is float and result(TrainConfig(**settings)) == 0.5


@pytest.mark.parametrize(
    "name, value",
    [
        ("learning_rate", 1e38),
        ("decay", 1e300),
        ("seed", 2**63),
        ("seed", 2**70),
        ("milestones", b"12"),
    ],
)
def test_numbers_that_overflow_later_are_refused_at_once(name, value):
    with pytest.raises(InvalidArgumentError, match=f"^{name}="):
        TrainConfig(**{name: value})
