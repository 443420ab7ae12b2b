"""Moments at which a run is killed, and what it then comes to."""

import contextlib

import pytest
import torch

import lirpa_multinorm.training.checkpoint as checkpoint_module
import lirpa_multinorm.training.loop as loop_module
import lirpa_multinorm.training.run as run_module
import lirpa_multinorm.training.runlog as runlog_module
from lirpa_multinorm.training import load_checkpoint
from lirpa_multinorm.training.step import TrainingStep
from lirpa_multinorm.utils.files import temporary_beside
from tests.training.runs import STEPS, log_of, run, same


class Killed(BaseException):
    """What stands for SIGKILL within this process."""


def assert_same_run(folder, model, uninterrupted):
    """Whether an interrupted run came to what the uninterrupted one did."""
    expected, lines = uninterrupted
    assert same(model, expected) and same(load_checkpoint(folder / "checkpoint.pt").model, expected)
    timeless = [
        [{name: value for name, value in line.items() if "seconds" not in name} for line in log]
        for log in (log_of(folder), lines)
    ]
    assert timeless[0] == timeless[1] and [line["epoch"] for line in lines] == [1, 2, 3, 4, 5]
    names = {path.name for path in folder.iterdir()} - {"tensorboard"}
    assert names == {".run.lock", "checkpoint.pt", "config.json", "curves.png", "log.jsonl"}


def counted(module, name, after, before=None, instead=None):
    """Wrap a function so that call ``after`` (from 0) does something else first, or instead."""
    original, calls = getattr(module, name), [0]

    def wrapped(*args, **kwargs):
        calls[0] += 1
        if calls[0] == after + 1:
            if instead is not None:
                return instead(original, *args, **kwargs)
            before()
        return original(*args, **kwargs)

    setattr(module, name, wrapped)


def half_written(kill):
    def write(original, path, content):
        temporary_beside(path).write_bytes(content[: len(content) // 2])
        kill()

    return write


def just_written(kill):
    def write(original, path, content):
        original(path, content)
        kill()

    return write


def half_a_line(kill):
    def append(original, path, line):
        with open(path, "a") as file:
            file.write('{"epoch": 9, "natural_lo')
        kill()

    return append


# Name -> (module, function, how many calls pass, what happens then)
MOMENTS = {
    "first_step": (TrainingStep, "__call__", 0, None),
    "within_an_annealing_epoch": (TrainingStep, "__call__", 4, None),
    "within_a_projected_certified_epoch": (TrainingStep, "__call__", 3 * STEPS + 1, None),
    "within_a_natural_epoch": (TrainingStep, "update", 4 * STEPS + 2, None),
    "before_the_weights_are_merged": (loop_module, "merge_epochs", 1, None),
    "within_a_line_of_the_log": (runlog_module, "append_jsonl", 2, half_a_line),
    "between_log_and_checkpoint": (run_module, "save_checkpoint", 3, None),
    "within_the_first_checkpoint": (checkpoint_module, "write_bytes", 0, half_written),
    "within_a_checkpoint": (checkpoint_module, "write_bytes", 3, half_written),
    "after_a_checkpoint": (checkpoint_module, "write_bytes", 2, just_written),
    "within_the_last_checkpoint": (checkpoint_module, "write_bytes", 4, half_written),
    "after_the_last_checkpoint": (checkpoint_module, "write_bytes", 4, just_written),
}


def arm(moment, kill):
    module, name, after, make = MOMENTS[moment]
    counted(module, name, after, kill, None if make is None else make(kill))


def kill_here():
    raise Killed


def interrupt(folder, monkeypatch, moment):
    module, name, *_ = MOMENTS[moment]
    with monkeypatch.context() as patch:
        patch.setattr(module, name, getattr(module, name))  # undone afterwards
        # A killed process closes nothing.
        patch.setattr(loop_module.Training, "logging", lambda _: contextlib.nullcontext())
        arm(moment, kill_here)
        with pytest.raises(Killed):
            run(folder, resume=True)
    torch.rand(7)  # whatever happens in between must not matter
