"""Training of l_inf-distance networks: p, lambda and learning rates by the step, and resuming."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from lirpa_multinorm import PerturbationLinf
from lirpa_multinorm.bounds import margin_matrix
from lirpa_multinorm.certification import CertifySettings, certify
from lirpa_multinorm.errors import InvalidArgumentError, OutputFolderError
from lirpa_multinorm.losses import build_loss
from lirpa_multinorm.training import ModelSpec, Schedule, TrainConfig, load_checkpoint, train
from lirpa_multinorm.training.optimizer import AdamSettings
from lirpa_multinorm.training.step import TrainingStep
from tests.checks import assert_same, reached_by_attack
from tests.toy import data, images

SETS = [PerturbationLinf(0.05)]
SPEC = ModelSpec("linf_dist_mlp", (1, 4, 4), 3, options={"hidden": [16]})
CONFIG = TrainConfig(
    loss="linf_dist",
    loss_options={"relax_from": 0.1, "relax_to": 0.8},
    epochs=4,
    batch_size=8,
    learning_rate=0.03,
    milestones=(),
    schedule=Schedule(0, 0),
    adam=AdamSettings(0.9, 0.99, 1e-10, True, 0.006),
)


def weights(model):
    return [value.clone() for value in model.state_dict().values()]


def test_a_run_ends_at_the_limit_and_resumes_bit_for_bit(tmp_path, monkeypatch):
    whole = train(SPEC, data(), SETS, CONFIG, progress=False)
    assert (whole[1].p, whole[3].p) == (math.inf, math.inf)
    original, steps = TrainingStep.__call__, []

    def stopped(self, *arguments):
        if len(steps) == 12:  # in the middle of the third epoch
            raise KeyboardInterrupt
        steps.append(original(self, *arguments))
        return steps[-1]

    monkeypatch.setattr(TrainingStep, "__call__", stopped)
    with pytest.raises(KeyboardInterrupt):
        train(SPEC, data(), SETS, CONFIG, tmp_path, progress=False)
    monkeypatch.undo()
    assert load_checkpoint(tmp_path / "checkpoint.pt").model[1].p < math.inf
    resumed = train(SPEC, data(), SETS, CONFIG, tmp_path, progress=False, resume=True)
    for item, other in zip(weights(resumed), weights(whole)):
        assert torch.equal(item, other)
    assert load_checkpoint(tmp_path / "checkpoint.pt").model[1].p == math.inf


def test_the_scalar_has_a_learning_rate_of_its_own_and_both_follow_a_cosine():
    model = SPEC.build()
    step = TrainingStep(model, build_loss("linf_dist", SETS), SETS, CONFIG)
    step.start_epoch(0)
    x, y = images(8)
    for now, factor in ((0.0, 1.0), (2.0, 0.5)):
        step(x, y, now)
        rates = [group["lr"] for group in step.optimizer.param_groups]
        assert rates == pytest.approx([0.03 * factor, 0.006 * factor])
    (scalar,) = step.optimizer.param_groups[1]["params"]
    assert scalar is model[-1].scale and scalar.item() != 1
    assert step.optimizer.defaults["betas"] == (0.9, 0.99)


def test_other_runs_have_one_group_with_torchs_settings():
    spec = ModelSpec("mlp", (1, 4, 4), 3)
    step = TrainingStep(spec.build(), None, SETS, TrainConfig(loss="natural"))
    (group,) = step.optimizer.param_groups
    assert (group["betas"], group["eps"]) == ((0.9, 0.999), 1e-8) and "share" not in group


def test_a_run_that_follows_its_length_gets_no_more_epochs(tmp_path):
    train(SPEC, data(), SETS, CONFIG, tmp_path, progress=False)
    longer = dataclasses.replace(CONFIG, epochs=6)
    with pytest.raises(OutputFolderError, match="extend: .*followed its 4 epochs"):
        train(SPEC, data(), SETS, longer, tmp_path, progress=False, resume=True, extend=True)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"beta_2": 1}, "adam.beta_2=1 must be less than 1"),
        ({"eps": 0}, "adam.eps=0 must be positive"),
        ({"cosine": "yes"}, "adam.cosine='yes' must be True or False"),
        ({"scale_rate": -1}, "adam.scale_rate=-1 must be positive"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_bad_settings_of_the_optimiser_are_named(settings, message):
    with pytest.raises(InvalidArgumentError, match=message):
        TrainConfig(adam=settings)


@pytest.fixture(scope="module")
def trained():
    config = dataclasses.replace(CONFIG, epochs=40, learning_rate=0.02)
    return train(SPEC, data(), SETS, config, progress=False)


def test_certificates_of_a_trained_network_hold_against_an_attack(trained):
    x, y = images(60, seed=3)
    for methods in (("Lipschitz", "IBP"), ("IBP", "Lipschitz")):
        settings = CertifySettings(methods=methods, rounding="proved")
        result = certify(trained, x, y, SETS, settings=settings)
        proved = torch.tensor([status == "certified" for status in result.status[0]])
        assert bool(proved.any())
        assert {name for name, item in zip(result.method[0], proved) if item} <= set(methods)
        ((lowest, _),) = reached_by_attack(trained, x, SETS, margin_matrix(y, 3))
        assert bool((lowest[proved] > 0).all())


def test_running_means_and_statistics_stay_finite(trained):
    assert all(bool(value.isfinite().all()) for value in trained.state_dict().values())
    assert_same(trained(images(4)[0]), trained(images(4)[0]))
