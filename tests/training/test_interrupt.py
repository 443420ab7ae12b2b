"""Ctrl-C ends the step, saves in the middle of the epoch, and the run goes on bit for bit."""

import random
import signal
import threading

import numpy as np
import pytest
import torch

import lirpa_multinorm.training.run as run_module
from lirpa_multinorm.errors import NaNBoundError
from lirpa_multinorm.training import Projection, initial_weights, load_checkpoint
from lirpa_multinorm.training.interrupt import Interruption
from lirpa_multinorm.training.step import TrainingStep
from lirpa_multinorm.utils.randomness import generators_kept, seed_generators
from tests.toy import SETS, data
from tests.training.runs import CONFIG, SPEC, STEPS, log_of, run, same

#: Of a run of five epochs; those after the second have a natural phase too.
ALL_STEPS = 5 * STEPS + 3 * STEPS


#: First, middle and last steps of every kind of phase; all others are slow, and a run that is
#: stopped after every step passes them too.
CHOSEN = (0, 5, 8, 9, 10, 11, 12, 13, 20, 22, 23)
pytestmark = pytest.mark.usefixtures("plain_logs")
PROJECTIONS = {"own": CONFIG.projection, "accumulated": Projection(0.5, "mixed", "copy", True)}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    torch.set_num_threads(1)
    folders = {name: tmp_path_factory.mktemp(name) for name in PROJECTIONS}
    return {
        name: (run(folder, projection=PROJECTIONS[name]), log_of(folder))
        for name, folder in folders.items()
    }


def press_at(monkeypatch, *steps, number=signal.SIGINT):
    """Send a signal within the steps of these numbers, from 0, whatever their phase."""
    original, calls = TrainingStep.update, []

    def update(*args, **kwargs):
        calls.append(1)
        if len(calls) - 1 in steps:
            signal.raise_signal(number)
        return original(*args, **kwargs)

    monkeypatch.setattr(TrainingStep, "update", update)
    return calls


def timeless(lines):
    return [
        {name: value for name, value in line.items() if "seconds" not in name} for line in lines
    ]


@pytest.mark.parametrize(
    "step",
    [
        step if step in CHOSEN else pytest.param(step, marks=pytest.mark.slow)
        for step in range(ALL_STEPS)
    ],
)
def test_a_stopped_run_goes_on_bit_for_bit(step, tmp_path, monkeypatch, whole):
    """At every step: annealing, the certified and the natural phase, and each phase's last step."""
    name = list(PROJECTIONS)[step % 2]
    with monkeypatch.context() as patch:
        calls = press_at(patch, step)
        with pytest.raises(
            KeyboardInterrupt, match=f"the checkpoint '{tmp_path}.*is saved.*--resume"
        ):
            run(tmp_path, projection=PROJECTIONS[name])
        assert len(calls) == step + 1  # it ends this step and begins no other
    checkpoint = load_checkpoint(tmp_path / "checkpoint.pt")
    partial = checkpoint.run["state"]["partial"]
    assert checkpoint.epoch * STEPS <= step and partial["steps"] == step % STEPS + 1
    if (
        partial["certified"] is not None
    ):  # who uses the checkpoint gets the certified phase's network
        values = checkpoint.model.state_dict()
        assert all(torch.equal(value, partial["certified"][key]) for key, value in values.items())
    torch.rand(7)
    calls = press_at(monkeypatch)
    model = run(tmp_path, resume=True, projection=PROJECTIONS[name])
    assert len(calls) == ALL_STEPS - step - 1  # no step is taken twice
    expected, lines = whole[name]
    assert same(model, expected) and same(
        load_checkpoint(tmp_path / "checkpoint.pt").model, expected
    )
    assert timeless(log_of(tmp_path)) == timeless(lines)


def test_stopped_after_every_step(tmp_path, monkeypatch, whole):
    for _ in range(ALL_STEPS):
        with monkeypatch.context() as patch:
            press_at(patch, 0)
            with pytest.raises(KeyboardInterrupt):
                run(tmp_path, resume=True)
    expected, lines = whole["own"]
    assert same(run(tmp_path, resume=True), expected) and timeless(log_of(tmp_path)) == timeless(
        lines
    )


def test_a_second_signal_stops_at_once_and_the_last_checkpoint_stays(tmp_path, monkeypatch, whole):
    original = TrainingStep.update

    def update(step, *args, **kwargs):
        if update.calls == STEPS + 1:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
        update.calls += 1
        return original(step, *args, **kwargs)

    update.calls = 0
    with monkeypatch.context() as patch:
        patch.setattr(TrainingStep, "update", update)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path)
    assert update.calls == STEPS + 1 and load_checkpoint(tmp_path / "checkpoint.pt").epoch == 1
    assert load_checkpoint(tmp_path / "checkpoint.pt").run["state"]["partial"] is None
    assert same(run(tmp_path, resume=True), whole["own"][0])


def test_a_second_signal_while_saving_leaves_the_last_checkpoint(tmp_path, monkeypatch, whole):
    original = run_module.save_checkpoint

    def save(path, model, spec, sets, config, epoch, origin, state):
        if state["partial"] is not None:
            signal.raise_signal(signal.SIGINT)
        return original(path, model, spec, sets, config, epoch, origin, state)

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "save_checkpoint", save)
        press_at(patch, STEPS + 1)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path)
    assert load_checkpoint(tmp_path / "checkpoint.pt").epoch == 1
    assert same(run(tmp_path, resume=True), whole["own"][0])


def test_broken_weights_are_not_saved_on_stopping(tmp_path, monkeypatch):
    original = TrainingStep.__call__

    def step(taken, *args):
        values = original(taken, *args)
        step.calls += 1
        if step.calls == STEPS + 1:
            torch.nn.init.constant_(taken.model[-1].bias, float("nan"))
            signal.raise_signal(signal.SIGINT)
        return values

    step.calls = 0
    monkeypatch.setattr(TrainingStep, "__call__", step)
    with pytest.raises(NaNBoundError, match="weights of .* are NaN"):
        run(tmp_path)
    assert load_checkpoint(tmp_path / "checkpoint.pt").run["state"]["partial"] is None


# --- handlers -------------------------------------------------------------------------------------


def test_handlers_are_given_back(tmp_path, monkeypatch):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    run(tmp_path / "whole", epochs=4)
    press_at(monkeypatch, 1)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "stopped", epochs=4)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.parametrize("handler", [signal.SIG_IGN, lambda *_: None], ids=["ignored", "own"])
def test_handlers_of_others_stay(handler):
    before = signal.signal(signal.SIGINT, handler)
    try:
        with Interruption() as interruption:
            assert signal.getsignal(signal.SIGINT) is handler
            signal.raise_signal(signal.SIGINT)
            assert not interruption.asked
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_request_that_nobody_looks_at_is_raised_at_the_end():
    with pytest.raises(KeyboardInterrupt), Interruption() as interruption:
        signal.raise_signal(signal.SIGINT)
        assert interruption.asked
    with pytest.raises(ZeroDivisionError):  # but no other error is hidden
        with Interruption():
            signal.raise_signal(signal.SIGINT)
            raise ZeroDivisionError


def test_training_works_in_another_thread(tmp_path, whole):
    models = []
    thread = threading.Thread(target=lambda: models.append(run(tmp_path)))
    thread.start()
    thread.join()
    assert same(models[0], whole["own"][0])


# --- the caller's random numbers ------------------------------------------------------------------


def states():
    return [torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()]


def test_the_callers_generators_are_untouched(tmp_path, monkeypatch):
    torch.manual_seed(5)
    before = states()
    run(tmp_path / "run")
    run(tmp_path / "run", resume=True)
    with monkeypatch.context() as patch:
        press_at(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "stopped")
    load_checkpoint(tmp_path / "run" / "checkpoint.pt")
    with generators_kept():
        model = SPEC.build()
    initial_weights(tmp_path / "run" / "checkpoint.pt", model)
    assert states() == before


def test_the_runs_own_numbers_do_not_depend_on_the_caller(whole):
    torch.manual_seed(99)
    assert same(run(), whole["own"][0])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_generators_of_the_gpu_are_untouched():
    torch.cuda.manual_seed(3)
    before = torch.cuda.get_rng_state()
    with generators_kept("cuda"):
        seed_generators(0, "cuda")
        torch.rand(3, device="cuda")
    assert torch.equal(torch.cuda.get_rng_state(), before)


def test_the_run_has_both_phases():
    assert (
        CONFIG.projection is not None
        and len(SETS) == 2
        and len(data(8 * STEPS + 2).x_train) // 8 == STEPS
    )
