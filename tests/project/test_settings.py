"""Every flag leads to a setting that exists, and changes nothing else."""

import argparse
import dataclasses

import pytest

from lirpa_multinorm import PerturbationL1Box, PerturbationL2Box, PerturbationLinf
from lirpa_multinorm.data import load
from lirpa_multinorm.errors import InvalidArgumentError
from lirpa_multinorm.experiments.flags import SETTINGS, add_setting_arguments, given
from lirpa_multinorm.experiments.presets import load_preset, preset_names
from lirpa_multinorm.experiments.settings import config_of, merge, nested, sets_of, spec_of
from lirpa_multinorm.losses import LOSSES, accepts, build_loss
from lirpa_multinorm.models import MODELS
from lirpa_multinorm.training import TrainConfig

SETS = [PerturbationLinf(0.1), PerturbationL2Box(0.5), PerturbationL1Box(1.0)]
#: A value for each flag that is not its default.
VALUES = {
    "--eps-inf": "0.2",
    "--eps-2": "0.7",
    "--eps-1": "1.5",
    "--model": "cnn7",
    "--width": "3",
    "--saturation": "0.1 0.9",
    "--epochs": "9",
    "--batch-size": "7",
    "--learning-rate": "0.5",
    "--milestones": "3 4",
    "--decay": "0.3",
    "--natural-epochs": "2.5",
    "--anneal-epochs": "3.5",
    "--kappa-start": "0.75",
    "--kappa-end": "0.25",
    "--l1": "0.01",
    "--regularizer": "0.5",
    "--initialization": "shi",
    "--clip-norm": "10",
    "--average-from": "3",
    "--precise-bn": "",
    "--augment": "cifar",
    "--seed": "5",
    "--ratio-inf": "0.3",
    "--ratio-2": "0.2",
    "--region-2": "ball",
    "--ratio-1": "0.1",
    "--region-1": "ball",
    "--eps-factor-inf": "1.2",
    "--eps-factor-2": "1.3",
    "--eps-factor-1": "1.4",
    "--shrink-inf": "0.4",
    "--mix-2": "mtl",
    "--alpha-2": "0.25",
    "--alpha": "0.75",
    "--weights": "0.2 0.3 0.5",
    "--eta": "0.5",
    "--target": "inf",
    "--partial-radius": "",
    "--detach": "",
    "--attack-precision": "bfloat16",
    "--beta": "0.3",
    **{
        f"--{name}-{norm}": value
        for norm in ("inf", "2", "1")
        for name, value in (
            ("eps-factor", "1.5"),
            ("bounding", "CROWN-IBP"),
            ("crown-share", "0.25"),
            ("taps-layers", "2"),
        )
    },
}

#: Options that a loss has, and that do not go with what it is.
CONTRADICTIONS = {("crown_ibp", "shrink_inf"), ("taps", "mix_2")}


def parsed(*words, paths=("",)):
    parser = argparse.ArgumentParser()
    add_setting_arguments(parser, paths)
    return given(parser.parse_args(words))


def words_of(flag):
    return [flag, *VALUES[flag].split()]


def at(place, path):
    for name in path.split("."):
        place = place[name] if isinstance(place, dict) else getattr(place, name)
    return place


def test_every_flag_is_tested_here():
    assert {one.flag for one in SETTINGS} == set(VALUES)
    assert len({one.path for one in SETTINGS}) == len(SETTINGS)


@pytest.mark.parametrize(
    "flag, path", [(one.flag, one.path) for one in SETTINGS], ids=[one.flag for one in SETTINGS]
)
def test_every_flag_leads_to_a_setting(flag, path):
    found = parsed(*words_of(flag))
    ((where, value),) = found.items()
    settings = nested(found)
    assert where == path and at(settings, path) == value
    kind = path.split(".")[0]
    if kind == "eps":
        (one,) = sets_of(settings["eps"])
        assert one.eps == value and one.norm == {"inf": float("inf"), "2": 2, "1": 1}[path[4:]]
    elif kind == "model":
        spec = spec_of(merge({"name": "cnn_small"}, settings["model"]), load("digits"))
        assert spec.build() is not None and value in (spec.name, *spec.options.values())
    elif "loss_options" in path:
        option = path.split(".")[2]
        losses = [name for name in LOSSES if accepts(name, option)]
        assert losses
        for name in losses:
            if (name, option) in CONTRADICTIONS:
                with pytest.raises(
                    InvalidArgumentError, match=f"{option[:3]}.*leave one of them out"
                ):
                    build_loss(name, SETS, **settings["train"]["loss_options"])
                continue
            more = {"combine": "joint"} if option == "weights" and accepts(name, "combine") else {}
            assert build_loss(name, SETS, **settings["train"]["loss_options"], **more) is not None
    else:
        config = config_of(settings["train"])
        expected = tuple(value) if isinstance(value, list) else value
        assert at(config, path[len("train.") :]) == expected
        other = dataclasses.replace(
            TrainConfig(), **{path.split(".")[1]: getattr(config, path.split(".")[1])}
        )
        assert other == config != TrainConfig()


def test_flags_that_are_not_given_change_nothing():
    assert parsed() == {}


@pytest.mark.parametrize("name", preset_names())
def test_presets_take_every_flag(name):
    base = load_preset(name).settings()
    options = [one for one in SETTINGS if one.flag != "--model"]
    found = parsed(
        *[
            word
            for one in options
            if not one.path.startswith("train.loss_options")
            for word in words_of(one.flag)
        ]
    )
    merged = merge(base, nested(found))
    config = config_of(merged["train"])
    assert (config.epochs, config.projection.beta, config.schedule.kappa_end) == (9, 0.3, 0.25)
    assert config.loss == base["train"]["loss"] and [one.eps for one in sets_of(merged["eps"])] == [
        0.2,
        0.7,
        1.5,
    ]
    assert load_preset(name).settings() == base  # nothing shared was changed


def test_switches_can_be_turned_off():
    """A preset may have turned them on."""
    assert parsed("--no-precise-bn", "--no-detach") == {
        "train.precise_bn": False,
        "train.loss_options.detach": False,
    }


def test_only_some_of_the_flags():
    assert parsed("--eps-2", "0.5", paths=["eps."]) == {"eps.2": 0.5}
    with pytest.raises(SystemExit):
        parsed("--epochs", "3", paths=["eps."])


@pytest.mark.parametrize("model", MODELS)
def test_spec_of_every_model(model):
    spec = spec_of({"name": model}, load("digits"))
    assert (spec.in_shape, spec.num_classes) == ((1, 8, 8), 10) and spec.build() is not None


def test_unknown_norms_are_named():
    with pytest.raises(InvalidArgumentError, match="norms 3, l2; use inf, 2 and 1"):
        sets_of({"inf": 0.1, "l2": 0.5, "3": 1})


def test_merging_leaves_both_sides_alone():
    base, patch = {"a": {"b": 1, "c": 2}, "d": None}, {"a": {"b": None}, "d": {"e": 3}}
    assert merge(base, patch) == {"a": {"c": 2}, "d": {"e": 3}}
    assert (base, patch) == ({"a": {"b": 1, "c": 2}, "d": None}, {"a": {"b": None}, "d": {"e": 3}})
