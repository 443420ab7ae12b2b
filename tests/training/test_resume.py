"""A run killed at any moment goes on from its last whole epoch, to the same weights bit for bit."""

import dataclasses
import os
import signal

import pytest
import torch

import lirpa_multinorm.training.run as run_module
from lirpa_multinorm.training import load_checkpoint
from lirpa_multinorm.training.step import TrainingStep
from tests.processes import Process
from tests.toy import SETS
from tests.training.interruptions import (
    MOMENTS,
    Killed,
    arm,
    assert_same_run,
    counted,
    interrupt,
    kill_here,
)
from tests.training.runs import CONFIG, SPEC, run, same

pytestmark = pytest.mark.usefixtures("plain_logs")


# --- moments at which a run is killed -------------------------------------------------------------


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_run_goes_on_bit_for_bit(moment, tmp_path, monkeypatch, uninterrupted):
    interrupt(tmp_path, monkeypatch, moment)
    assert_same_run(tmp_path, run(tmp_path, resume=True), uninterrupted)


def test_killed_many_times(tmp_path, monkeypatch, uninterrupted):
    """Each moment counts from the resumed start, so the run advances about an epoch at a time."""
    for moment in (
        "within_the_first_checkpoint",
        "within_an_annealing_epoch",
        "within_a_line_of_the_log",
        "within_the_first_checkpoint",
    ):
        interrupt(tmp_path, monkeypatch, moment)
    assert_same_run(tmp_path, run(tmp_path, resume=True), uninterrupted)


def run_until_killed(folder, moment):
    """Of a process of its own: it ends by SIGKILL."""
    arm(moment, lambda: os.kill(os.getpid(), signal.SIGKILL))
    run(folder, resume=True)


def test_sigkill_twice(tmp_path, uninterrupted):
    """Two processes, killed for good; a third one, which is this, ends the run."""
    for moment, epoch in (("within_a_checkpoint", 3), ("within_the_first_checkpoint", 3)):
        code, errors = Process(run_until_killed, tmp_path, moment).ended()
        assert code == -signal.SIGKILL, errors
        assert load_checkpoint(tmp_path / "checkpoint.pt").epoch == epoch
        assert len(list(tmp_path.glob(".checkpoint.pt.*.tmp"))) == 1
    assert_same_run(tmp_path, run(tmp_path, resume=True), uninterrupted)


# --- what resuming does without a whole run behind it ---------------------------------------------


def test_an_empty_folder_starts_anew(tmp_path, uninterrupted):
    assert_same_run(tmp_path / "new", run(tmp_path / "new", resume=True), uninterrupted)


def test_a_finished_run_does_no_work(tmp_path, monkeypatch, uninterrupted):
    run(tmp_path)
    monkeypatch.setattr(TrainingStep, "__call__", lambda *_: pytest.fail("training goes on"))
    before = (tmp_path / "checkpoint.pt").read_bytes()
    for _ in range(2):
        assert_same_run(tmp_path, run(tmp_path, resume=True), uninterrupted)
    assert (tmp_path / "checkpoint.pt").read_bytes() == before


def test_the_run_is_what_it_says_it_is():
    """The settings of these tests use everything that a run must remember."""
    default = type(CONFIG)()
    used = {
        item.name
        for item in dataclasses.fields(CONFIG)
        if getattr(CONFIG, item.name) != getattr(default, item.name)
    }
    assert {
        "projection",
        "average_from",
        "precise_bn",
        "augment",
        "regularizer",
        "clip_norm",
    } <= used
    assert SETS[0].norm != SETS[1].norm


def test_the_lipschitz_branch_goes_on_bit_for_bit(tmp_path, monkeypatch):
    """Its vectors are part of the checkpoint."""
    changes = {"loss": "joint", "loss_options": {"region_2": "lipschitz", "attack": {"steps": 1}}}
    expected = run(tmp_path / "whole", **changes)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(
            run_module, "save_checkpoint", run_module.save_checkpoint
        )  # undone afterwards
        counted(run_module, "save_checkpoint", 3, kill_here)
        run(tmp_path / "killed", **changes)
    state = torch.load(tmp_path / "killed" / "checkpoint.pt", weights_only=True)["state"]["step"]
    assert state["lipschitz"] and all(
        bool(torch.isfinite(vectors).all()) for vectors in state["lipschitz"].values()
    )
    assert same(run(tmp_path / "killed", resume=True, **changes), expected)


@pytest.mark.parametrize("loss, options", [("staps", {"bounding_2": "TAPS"}), ("crown_ibp", {})])
def test_latent_attacks_and_shares_go_on_bit_for_bit(loss, options, tmp_path, monkeypatch):
    """The starts of TAPS come from the generator of the other attacks."""
    changes = {"loss": loss, "loss_options": {"attack": {"steps": 1}, **options}}
    expected = run(tmp_path / "whole", **changes)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(
            run_module, "save_checkpoint", run_module.save_checkpoint
        )  # undone afterwards
        counted(run_module, "save_checkpoint", 3, kill_here)
        run(tmp_path / "killed", **changes)
    assert same(run(tmp_path / "killed", resume=True, **changes), expected)


def test_a_state_of_before_the_lipschitz_branch_is_read():
    step = TrainingStep(SPEC.build(), None, SETS, dataclasses.replace(CONFIG, projection=None))
    state = {name: value for name, value in step.state_dict().items() if name != "lipschitz"}
    step.load_state_dict(state)
    assert step.bounded.lipschitz_vectors == {}
