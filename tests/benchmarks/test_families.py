"""Families side by side: rows of networks trained on the spot and of released ones."""

import json

import pytest

from benchmarks import families
from benchmarks.run import Config, Places
from lirpa_multinorm.data import load
from lirpa_multinorm.errors import InvalidArgumentError
from lirpa_multinorm.training import TrainConfig

SETTINGS = Config.read("families_digits").settings
SMOKE = {**SETTINGS, "n": 12, "n_train": 64, "methods": ["IBP", "Lipschitz"]}


def brief(family):
    return {**family, "train": {**family["train"], "epochs": 1, "schedule": {"anneal_epochs": 0}}}


@pytest.mark.parametrize("name", SETTINGS["families"])
def test_a_family_that_is_trained_on_the_spot_has_a_row(name):
    settings = {**SMOKE, "families": {name: brief(SETTINGS["families"][name])}}
    [task] = families.tasks(settings, Places()).values()
    row = json.loads(json.dumps(task()))
    assert row["family"] == name and row["n"] == 12 and set(row["certified"]) == {"inf", "2"}
    assert 0 <= row["union"] <= min(row["certified"].values()) <= row["clean"] <= 1
    assert row["seconds per epoch"] > 0 and row["seconds per 1000 certificates"] > 0


def test_a_released_network_and_a_run_are_the_same():
    """Its log tells what an epoch took."""
    data = load("digits")
    released = families.member({"released": "digits-union-0.1-0.4"}, data, Places())
    run = families.member({"run": "digits-union-0.1-0.4"}, data, Places(runs=families.NETWORKS))
    assert released.epoch_seconds == run.epoch_seconds > 0
    assert all(map(lambda a, b: a.equal(b), released.model.parameters(), run.model.parameters()))


@pytest.mark.parametrize("family", [{}, {"run": "a", "released": "b"}], ids=["none", "two"])
def test_where_a_network_comes_from_is_said_once(family):
    with pytest.raises(InvalidArgumentError, match="must have one of train, run, released"):
        families.member(family, load("digits"), Places())


@pytest.mark.parametrize("name", SETTINGS["families"])
def test_the_configurations_settings_are_those_of_a_training(name):
    assert TrainConfig.from_dict(SETTINGS["families"][name]["train"]).epochs == 30
