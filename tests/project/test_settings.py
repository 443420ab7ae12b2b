"""Every flag leads to a setting that exists, and changes nothing else."""

import argparse
import dataclasses
import inspect

import pytest

from lirpa_multinorm import (
    PerturbationGeometric,
    PerturbationL1Box,
    PerturbationL2Box,
    PerturbationLinf,
    PerturbationPatch,
)
from lirpa_multinorm.data import load
from lirpa_multinorm.errors import InvalidArgumentError
from lirpa_multinorm.experiments.flags import add_setting_arguments, given
from lirpa_multinorm.experiments.presets import load_preset, preset_names
from lirpa_multinorm.experiments.setting_sources import run_settings
from lirpa_multinorm.experiments.settings import config_of, merge, nested, sets_of, spec_of
from lirpa_multinorm.losses import LOSSES, accepts, build_loss
from lirpa_multinorm.models import MODELS
from lirpa_multinorm.training import TrainConfig

SETS = [PerturbationLinf(0.1), PerturbationL2Box(0.5), PerturbationL1Box(1.0)]
SPLIT = [PerturbationGeometric(rotation=5), PerturbationPatch(1)]
SETTINGS = run_settings()
#: A value that is not its default, for flags that always existed; others get one by their type.
VALUES = {
    "--eps-inf": "0.2",
    "--eps-2": "0.7",
    "--eps-1": "1.5",
    "--model": "cnn7",
    "--width": "3",
    "--masks-per-side": "2",
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
    "--p-start": "16",
    "--p-end": "500",
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

#: Values by type.
BY_KIND = {"bool": "", "int": "1", "float": "0.25", "Sequence[int]": "3"}
#: Options of a loss that do not go with it, or only with other options beside them.
CONTRADICTIONS = ("leave one of them out", "leave them out", "use it for an l_2 set only")


def parsed(*words, paths=("",)):
    parser = argparse.ArgumentParser()
    add_setting_arguments(parser, paths)
    return given(parser.parse_args(words))


def words_of(flag):
    if flag in VALUES:
        return [flag, *VALUES[flag].split()]
    (setting,) = [setting for setting in SETTINGS if setting.flag == flag]
    if setting.kind == "bool" and setting.default is True:
        return [f"--no-{flag[2:]}"]
    names = [name for name in setting.names if name not in (setting.default, "random", "lipschitz")]
    return [flag, *(names[:1] or BY_KIND[setting.kind].split())]


def network_with(option):
    """The first network that has an option and can be drawn with any number for it."""
    if option == "hidden":
        return "cnn5"  # one number
    return next(
        (name for name, make in MODELS.items() if option in inspect.signature(make).parameters),
        "cnn_small",
    )


def at(spot, path):
    for name in path.split("."):
        spot = spot[name] if isinstance(spot, dict) else getattr(spot, name)
    return spot


def test_flags_that_always_existed_are_there():
    assert set(VALUES) <= {setting.flag for setting in SETTINGS}
    assert len({setting.path for setting in SETTINGS}) == len(SETTINGS)


@pytest.mark.parametrize(
    "flag, path",
    [(setting.flag, setting.path) for setting in SETTINGS],
    ids=[setting.flag for setting in SETTINGS],
)
def test_every_flag_leads_to_a_setting(flag, path):
    values = parsed(*words_of(flag))
    ((where, value),) = values.items()
    settings = nested(values)
    assert where == path and at(settings, path) == value
    kind = path.split(".")[0]
    if kind == "eps":
        (ball,) = sets_of(settings["eps"])
        assert ball.eps == value and ball.norm == {"inf": float("inf"), "2": 2, "1": 1}[path[4:]]
    elif kind == "model":
        network = network_with(path.split(".")[-1])
        spec = spec_of(merge({"name": network}, settings["model"]), load("digits"))
        assert spec.build() is not None
        assert value in (spec.name, *spec.options.values()) or value == [spec.options["hidden"]]
    elif "loss_options" in path:
        option = path.split(".")[2]
        losses = [name for name in LOSSES if accepts(name, option)]
        sets = SETS + [entry for entry in SPLIT if option.endswith(f"_{entry.kind}")]
        assert losses
        for name in losses:
            try:
                loss = build_loss(name, sets, **settings["train"]["loss_options"])
            except InvalidArgumentError as error:
                assert any(reason in str(error) for reason in CONTRADICTIONS), error
                losses = [other for other in losses if other != name]
            else:
                assert loss is not None
        assert losses  # the option is of use to some
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
    values = parsed(
        *[
            word
            for setting in SETTINGS
            if not setting.path.startswith(("model.name", "train.loss_options"))
            for word in words_of(setting.flag)
        ]
    )
    merged = merge(base, nested(values))
    config = config_of(merged["train"])
    assert (config.epochs, config.projection.beta, config.schedule.kappa_end) == (9, 0.3, 0.25)
    assert config.loss == base["train"]["loss"] and [
        ball.eps for ball in sets_of(merged["eps"])
    ] == [0.2, 0.7, 1.5]
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
