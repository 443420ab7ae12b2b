"""torchrun from the command line, and processes that are lost."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from lirpa_multinorm.cli import main
from lirpa_multinorm.training.step import TrainingStep
from tests.distributed.group import TWO_PROCESSES, environment, free_port, joined, log_of, variables
from tests.processes import Process
from tests.toy import write_npz

pytestmark = TWO_PROCESSES


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return write_npz(tmp_path_factory.mktemp("data") / "toy.npz")


def arguments(file, output, *more):
    return [
        "train",
        "--data",
        str(file),
        "--model",
        "cnn3",
        "--width",
        "2",
        "--epochs",
        "3",
        "--batch-size",
        "16",
        "--milestones",
        "2",
        "--natural-epochs",
        "1",
        "--anneal-epochs",
        "1",
        "--learning-rate",
        "0.01",
        "--no-progress",
        "--output",
        str(output),
        *map(str, more),
    ]


@pytest.mark.slow
def test_torchrun_writes_the_table_of_one_process(file, tmp_path):
    methods = ["--losses", "SABR l_inf", "Finetune"]
    command = [
        "-m",
        "torch.distributed.run",
        "--nproc_per_node",
        "2",
        "--master_port",
        free_port(),
        "-m",
        "lirpa_multinorm",
    ]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", *command, *arguments(file, tmp_path / "two", *methods)],
        env=environment(),
        text=True,
        capture_output=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("| Finetune") == 1  # printed once
    assert main(arguments(file, tmp_path / "one", *methods)) == 0
    for line, item in zip(*(log_of(tmp_path / name / "sabr_l_inf") for name in ("two", "one"))):
        for key in line.keys() - {"seconds", "run_sha256"}:
            assert line[key] == pytest.approx(item[key], rel=1e-2), (
                key
            )  # float32, with Adam's noise
    tables = [
        json.loads((tmp_path / name / "table.json").read_text())["rows"] for name in ("one", "two")
    ]
    assert [[row["method"], row["n"]] for row in tables[0]] == [
        [row["method"], row["n"]] for row in tables[1]
    ]


def dying(number, words):
    """Of the other process: it gets a signal in its fourth step."""
    original, calls = TrainingStep.__call__, []

    def step(*args):
        calls.append(1)
        if len(calls) == 4:
            os.kill(os.getpid(), number)
        return original(*args)

    TrainingStep.__call__ = step
    return main(words)


def explained_in_one_line(errors):
    lines = [line for line in errors.splitlines() if line.startswith("error: ")]
    return (
        len(lines) == 1
        and "a process of the group was lost or did not answer" in lines[0]
        and ("--resume" in lines[0] and "Traceback" not in errors)
    )


# Which process is lost, and how; one that stands still is only missed after the timeout.
LOST = {
    "killed": (1, signal.SIGKILL, 120),
    "first_killed": (0, signal.SIGKILL, 120),
    "stopped": (1, signal.SIGSTOP, 5),
}


@pytest.mark.parametrize(
    "lost, sign, timeout",
    [
        LOST["killed"],
        *(
            pytest.param(*LOST[name], marks=pytest.mark.slow)
            for name in ("first_killed", "stopped")
        ),
    ],
    ids=LOST,
)
def test_a_lost_process_is_an_error_of_the_others(lost, sign, timeout, file, tmp_path, capsys):
    chosen = arguments(file, tmp_path, "--losses", "Max", "--timeout", timeout)
    began = time.monotonic()
    with joined(dying, sign, chosen, rank=1 - lost) as other:
        assert main(chosen) == 2
        assert time.monotonic() - began < 60, other.is_alive()  # a killed one is missed at once
        other.kill()
    assert explained_in_one_line(capsys.readouterr().err) and not torch.distributed.is_initialized()
    assert main([*chosen, "--resume"]) == 0  # as the message says; one process may do
    assert len(log_of(tmp_path / "max")) == 3


def test_a_process_that_never_comes_is_an_error_after_the_timeout(file, tmp_path):
    words = arguments(file, tmp_path, "--timeout", 2)
    code, errors = Process(main, words, **variables(0, free_port())).ended()
    assert code == 2 and explained_in_one_line(errors), errors
