"""One folder, one run: flags, and signals."""

import os
import signal
import time

import pytest
import torch

from lirpa_multinorm.training import load_checkpoint
from lirpa_multinorm.training.step import TrainingStep
from tests.cli.runs import error_of, train_on
from tests.processes import Process
from tests.training.comparisons import timeless, written

pytestmark = pytest.mark.usefixtures("no_figures")


def test_the_flags(file, tmp_path, capsys):
    chosen = [file, tmp_path / "run", "--losses", "natural"]
    assert train_on(*chosen) == 0
    capsys.readouterr()
    line = error_of(capsys, train_on(*chosen))
    assert "holds a run already" in line and "--resume" in line and "--overwrite" in line
    assert "only one" in error_of(capsys, train_on(*chosen, "--resume", "--overwrite"))
    assert "extend: " in error_of(capsys, train_on(*chosen, "--extend"))
    assert train_on(*chosen, "--overwrite", "--learning-rate", 0.1) == 0
    assert written(tmp_path / "run" / "natural" / "config.json")["train"]["learning_rate"] == 0.1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl_c", "terminate"])
def test_a_signal_saves_and_says_how_to_go_on(number, file, tmp_path, monkeypatch, capsys):
    chosen, original = ["--losses", "natural", "--epochs", 3], TrainingStep.__call__
    before = [signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)]
    assert train_on(file, tmp_path / "whole", *chosen) == 0

    def step(*args):
        step.calls += 1
        if step.calls == 3:
            signal.raise_signal(number)
        return original(*args)

    step.calls = 0
    with monkeypatch.context() as patch:
        patch.setattr(TrainingStep, "__call__", step)
        capsys.readouterr()
        assert train_on(file, tmp_path / "run", *chosen) == 130
    (line,) = capsys.readouterr().err.splitlines()
    path = tmp_path / "run" / "natural" / "checkpoint.pt"
    assert (
        line.startswith("interrupted: ") and f"{str(path)!r} (epoch 1, step 1 of the next)" in line
    )
    assert "the same command and --resume" in line
    assert load_checkpoint(path).run["state"]["partial"]["steps"] == 1
    assert train_on(file, tmp_path / "run", *chosen, "--resume") == 0
    assert timeless(written(tmp_path / "run" / "table.json")["rows"]) == timeless(
        written(tmp_path / "whole" / "table.json")["rows"]
    )
    assert [signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)] == before


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="no such signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl_c", "terminate"])
def test_a_signal_from_outside(number, file, tmp_path):
    chosen = ["--losses", "natural", "--epochs", 5000]
    child = Process(train_on, file, tmp_path / "run", *chosen)
    path = tmp_path / "run" / "natural" / "checkpoint.pt"
    deadline = time.monotonic() + 60
    while not path.exists() and child.is_alive() and time.monotonic() < deadline:
        time.sleep(0.05)
    child.signal(number)
    code, errors = child.ended()
    assert code == 130 and "--resume" in errors and "Traceback" not in errors
    assert (
        load_checkpoint(path).epoch >= 1
        and torch.isfinite(next(load_checkpoint(path).model.parameters())).all()
    )
