"""Settings go to plain data and back."""

import json
import math

import pytest
import torch

from lirpa_multinorm import PerturbationL2Box, PerturbationLinf, PerturbationLpBox
from lirpa_multinorm.errors import InvalidArgumentError
from lirpa_multinorm.training import ModelSpec, Projection, Schedule, TrainConfig
from lirpa_multinorm.training.config import describe_sets, sets_from

CONFIG = TrainConfig(loss="joint", loss_options={"ratio_inf": 0.6, "weights": [0.3, 0.7]}, epochs=3, batch_size=5,
                     learning_rate=1e-3, milestones=(1, 2), decay=0.5, l1=1e-5,
                     schedule=Schedule(2, 7, 0.5, 0.25), regularizer=0.5, initialization="shi",
                     projection=Projection(0.8, "mixed", "copy", True), clip_norm=10.0, average_from=1, precise_bn=True,
                     augment="cifar", seed=9)
SPEC = ModelSpec("cnn_small", (3, 8, 8), 4, (0.4, 0.5, 0.6), (0.2, 0.2, 0.3), {"width": 2})


@pytest.mark.parametrize("config", [CONFIG, TrainConfig()], ids=["changed", "default"])
def test_config_survives_json(config):
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize("spec", [SPEC, ModelSpec("mlp", (1, 2, 2), 2, options={"hidden": [3]})], ids=["cnn", "mlp"])
def test_spec_survives_json(spec):
    assert ModelSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


def test_spec_builds_what_it_says():
    model = SPEC.build()
    assert model[0].mean.flatten().tolist() == pytest.approx([0.4, 0.5, 0.6])
    assert model[1].out_channels == 2 and model(torch.rand(2, 3, 8, 8)).shape == (2, 4)


def test_sets_survive_json():
    sets = [PerturbationLinf(0.1), PerturbationL2Box(0.5, clip=None), PerturbationLpBox(1, 2.0, clip=(-1, 3))]
    described = json.loads(json.dumps(describe_sets(sets)))
    assert [(one.norm, one.eps, one.clip) for one in sets_from(described)] == [
        (math.inf, 0.1, (0.0, 1.0)), (2, 0.5, None), (1, 2.0, (-1.0, 3.0))]


def test_unknown_settings_are_named():
    with pytest.raises(InvalidArgumentError, match="unknown settings: epoch, lr"):
        TrainConfig.from_dict({"lr": 1, "epoch": 2, "seed": 0})


def test_missing_settings_take_their_defaults():
    assert TrainConfig.from_dict({"seed": 4}) == TrainConfig(seed=4)


def test_unknown_settings_below_are_named_with_their_place():
    with pytest.raises(InvalidArgumentError, match="unknown settings: projection.betta"):
        TrainConfig.from_dict({"projection": {"betta": 0.5}})


BAD = {"epochs": 0, "batch_size": -1, "learning_rate": 0.0, "decay": -0.5, "l1": -1e-5, "regularizer": -0.5,
       "clip_norm": 0.0, "average_from": 70}


@pytest.mark.parametrize("name", BAD)
def test_unusable_numbers_are_refused(name):
    with pytest.raises(InvalidArgumentError, match=f"{name}={BAD[name]}"):
        TrainConfig(**{name: BAD[name]})


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["learning_rate", "decay", "l1", "regularizer", "clip_norm"])
def test_numbers_must_be_finite(name, value):
    with pytest.raises(InvalidArgumentError, match=f"{name}={value}"):
        TrainConfig(**{name: value})


@pytest.mark.parametrize("name, value", [("initialization", "shy"), ("augment", "cifra"), ("augment", True)])
def test_unknown_names_are_refused(name, value):
    with pytest.raises(InvalidArgumentError, match=repr(value)):
        TrainConfig(**{name: value})
