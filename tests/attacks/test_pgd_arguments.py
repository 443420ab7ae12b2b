"""Bad arguments and settings of the attack, by name."""

import math

import pytest

from lirpa_multinorm.attacks import AttackSettings, pgd
from lirpa_multinorm.errors import InvalidArgumentError
from tests.attacks.pgd_cases import BATCH, SETS, batch, network

X, Y = batch()


BAD = {
    "labels_too_large": ((X, Y + 1, SETS), "^labels run from 1 to 3.*3 outputs"),
    "labels_negative": ((X, Y - 1, SETS), "^labels run from -1"),
    "labels_float": ((X, Y.float(), SETS), "^labels must be an integer tensor.*labels.long"),
    "labels_shape": ((X, Y[:2], SETS), "^labels has shape"),
    "labels_list": ((X, [0] * BATCH, SETS), "^labels must be an integer tensor, found list"),
    "no_sets": ((X, Y, []), "^perturbations is empty"),
    "outside_clip": ((X * 3, Y, SETS), "^x lies outside clip"),
    "nan": ((X * math.nan, Y, SETS), "^x contains NaN"),
    "eps_length": ((X[:2], Y[:2], SETS), "^eps has 6 values for a batch of 2"),
}


@pytest.mark.parametrize("arguments,message", BAD.values(), ids=BAD)
def test_bad_arguments(arguments, message):
    with pytest.raises(InvalidArgumentError, match=message):
        pgd(network(), *arguments)


BAD_SETTINGS = {
    "no_steps": ({"steps": 0}, "steps=0"),
    "no_restarts": ({"restarts": 0}, "restarts=0"),
    "loss": ({"loss": "hinge"}, "loss='hinge' is unknown; use ce or margin"),
}


@pytest.mark.parametrize("options,message", BAD_SETTINGS.values(), ids=BAD_SETTINGS)
def test_bad_settings(options, message):
    with pytest.raises(InvalidArgumentError, match=message):
        AttackSettings(**options)


def test_missing_step_size():
    with pytest.raises(InvalidArgumentError, match="^step_size has no entry for norm 2"):
        pgd(network(), X, Y, SETS[:2], AttackSettings(step_size={math.inf: 0.1}))
