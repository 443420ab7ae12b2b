"""Two processes follow the path of one, and none waits for ever for one that is lost."""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from lirpa_multinorm.cli import main
from lirpa_multinorm.errors import CheckpointError, InvalidArgumentError, ProcessGroupError
from lirpa_multinorm.training import load_checkpoint
from lirpa_multinorm.training.run_folder import digest
from lirpa_multinorm.utils import distributed
from tests.distributed import runs as distributed_runs
from tests.distributed.group import environment, free_port, joined, variables
from tests.toy import images

SCRIPT = Path(distributed_runs.__file__)
pytestmark = [
    pytest.mark.skipif(
        not torch.distributed.is_available() or not torch.distributed.is_gloo_available(),
        reason="torch without gloo",
    ),
    pytest.mark.xdist_group("two processes"),
]


def log_of(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What two processes, of which this is the first, have found, by rank, and their folder."""
    folder = tmp_path_factory.mktemp("two")
    with pytest.MonkeyPatch.context() as patch, joined([SCRIPT, folder]) as other:
        patch.setitem(sys.modules, "torch.utils.tensorboard", None)
        try:
            distributed_runs.main(folder)
        finally:
            torch.set_default_dtype(torch.float32)
    assert other.returncode == 0, other.errors
    return [torch.load(folder / f"rank_{rank}.pt", weights_only=True) for rank in range(2)], folder


@pytest.fixture
def doubles():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


# --- the same path --------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def no_tensorboard(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)


@pytest.mark.parametrize("name", distributed_runs.RUNS)
def test_two_processes_follow_the_path_of_one(name, two, tmp_path, doubles):
    found, folder = two
    model = distributed_runs.go(name, tmp_path)
    lines, expected = log_of(folder / name), log_of(tmp_path)
    assert len(lines) == len(expected) == 3
    for line, one in zip(lines, expected):
        assert line.keys() == one.keys() and {"natural_loss", "accuracy"} <= line.keys()
        assert line["run_sha256"] == one["run_sha256"]
        for key in line.keys() - {"seconds", "projection_seconds", "run_sha256"}:
            assert line[key] == pytest.approx(one[key], rel=1e-7, abs=1e-9), key
    for key, value in model.state_dict().items():
        assert torch.allclose(found[0]["models"][name][key], value, rtol=1e-7, atol=1e-8), key
        assert torch.equal(found[0]["models"][name][key], found[1]["models"][name][key]), key


def test_only_the_first_process_writes(two):
    found, folder = two
    written = {path.name for path in (folder / "joint").iterdir()} - {"tensorboard"}
    assert written == {".run.lock", "checkpoint.pt", "config.json", "curves.png", "log.jsonl"}
    assert json.loads((folder / "joint" / "config.json").read_text())["processes"] == 2
    assert [line["epoch"] for line in log_of(folder / "cure")] == [1, 2, 3]


def test_a_comparison_is_certified_and_written_once(two, tmp_path, doubles):
    found, folder = two
    assert [one["rows"] for one in found] == [2, 0]
    table = distributed_runs.compare(tmp_path)
    timeless = [
        [{key: value for key, value in row.items() if key != "seconds"} for row in rows]
        for rows in (table, json.loads((folder / "table" / "table.json").read_text())["rows"])
    ]
    assert timeless[0] == timeless[1]
    start = load_checkpoint(folder / "table" / "sabr_l_inf" / "checkpoint.pt").model
    start_from = digest(*start.state_dict().values())
    assert (
        json.loads((folder / "table" / "finetune" / "config.json").read_text())["initial_sha256"]
        == start_from
    )
    for line, one in zip(log_of(folder / "table" / "finetune"), log_of(tmp_path / "finetune")):
        assert line["robust_loss"] == pytest.approx(one["robust_loss"], rel=1e-7)


def test_gradients_of_sums_over_all_processes(two):
    """total = (w (1 + 2 + 2 + 2))^2 = 441 for w = 3.

    D total / d summand = 2 * 21 * 3, d total / d w = 2 * 21 * 7.
    """
    for found in two[0]:
        values = found["differentiated"]
        assert values["total"].item() == 441 and values["weight"].item() == 294
        assert values["own"].tolist() == [126, 126]
        assert values["mean"].item() == 0.75  # of 0 in one process and 0, 1, 2 in the other


def test_each_process_draws_its_rows_of_what_one_would_draw(two, doubles):
    source = distributed.SharedGenerator(5)
    whole = [source.rand((4, 3)), source.randn((4,)), source.rand((2, 1), dtype=torch.float64)]
    for i, one in enumerate(whole):
        assert torch.equal(torch.cat([two[0][rank]["drawn"][i] for rank in range(2)]), one)


def test_a_batch_that_cannot_be_divided_is_refused(two):
    for found in two[0]:
        kind, words = found["indivisible"]
        assert (
            kind == "InvalidArgumentError"
            and "batch_size=15 cannot be divided among 2 processes" in words
        )


def test_processes_that_differ_are_refused(two):
    for found in two[0]:
        kind, words = found["different"]
        assert kind == "InvalidArgumentError" and "the processes differ in settings" in words


def test_a_folder_that_is_refused_is_refused_to_all(two):
    kinds = [found["refused"] for found in two[0]]
    assert kinds[0][0] == "OutputFolderError" and "holds a run already" in kinds[0][1]
    assert (
        kinds[1][0] == "ProcessGroupError"
        and "another process of the group was refused" in kinds[1][1]
    )


def test_a_signal_to_one_process_stops_all_after_the_same_step(two):
    found, folder = two
    assert [one["stopped"]["steps"] for one in found] == [3, 3]
    assert all("(epoch 1, step 1 of the next)" in one["stopped"]["words"] for one in found)
    for one in found:
        assert all(
            torch.equal(value, one["models"]["natural"][key])
            for key, value in one["stopped"]["model"].items()
        )
    assert [line["epoch"] for line in log_of(folder / "stopped")] == [1, 2, 3]


# --- one process ----------------------------------------------------------------------------------


def test_without_torchrun_nothing_happens():
    with distributed.process_group():
        assert not distributed.is_active() and (distributed.rank(), distributed.world_size()) == (
            0,
            1,
        )
        x = torch.arange(4.0)
        assert distributed.all_sum(x) is x and distributed.own_rows(x).tolist() == x.tolist()
        assert distributed.mean(x) == 1.5
        distributed.wait_for_all()
        distributed.check_same("anything", "nothing")


def test_missing_variables_are_named(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")

    def init(
        *_, **__
    ):  # as torch does; a real failure would leave torch's count of groups one too high
        raise ValueError("environment variable RANK expected, but not set")

    monkeypatch.setattr(torch.distributed, "init_process_group", init)
    with pytest.raises(ProcessGroupError, match="WORLD_SIZE=2 .*RANK.*torchrun"):
        with distributed.process_group():
            pass


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf")])
def test_a_timeout_must_be_a_time(timeout, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InvalidArgumentError, match="timeout="):
        with distributed.process_group(timeout=timeout):
            pass


@pytest.mark.parametrize(
    "error",
    [
        CheckpointError("connection.pt is damaged"),
        RuntimeError("shapes do not match"),
        ValueError("a socket"),
    ],
    ids=["ours", "other", "value"],
)
def test_other_errors_stay_what_they_are(error, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(type(error)) as caught, distributed.explained():
        raise error
    assert caught.value is error


def test_errors_of_a_lost_connection_are_explained(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with (
        pytest.raises(
            ProcessGroupError,
            match=r"lost or did not answer \(Connection closed by peer "
            r"\[127.0.0.1\]:1\);.*--resume",
        ),
        distributed.explained(),
    ):
        raise RuntimeError(
            "[gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:1. Check the "
            "logs."
        )


# --- the command line -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    (x_train, y_train), (x_test, y_test) = images(40, 0), images(12, 1)
    path = tmp_path_factory.mktemp("data") / "toy.npz"
    np.savez(path, x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
    return path


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
    for line, one in zip(*(log_of(tmp_path / name / "sabr_l_inf") for name in ("two", "one"))):
        for key in line.keys() - {"seconds"}:
            assert line[key] == pytest.approx(one[key], rel=1e-2), key  # float32, with Adam's noise
    tables = [
        json.loads((tmp_path / name / "table.json").read_text())["rows"] for name in ("one", "two")
    ]
    assert [[row["method"], row["n"]] for row in tables[0]] == [
        [row["method"], row["n"]] for row in tables[1]
    ]


DYING = """
import os, signal, sys
import torch
torch.set_num_threads(1)
from lirpa_multinorm.cli import main
from lirpa_multinorm.training.step import TrainingStep
original, calls = TrainingStep.__call__, []
def step(*args):
    calls.append(1)
    if len(calls) == 4 and os.environ["RANK"] == sys.argv[1]:
        os.kill(os.getpid(), getattr(signal, sys.argv[2]))
    return original(*args)
TrainingStep.__call__ = step
sys.exit(main(sys.argv[3:]))
"""


def explained_in_one_line(errors):
    lines = [line for line in errors.splitlines() if line.startswith("error: ")]
    return (
        len(lines) == 1
        and "a process of the group was lost or did not answer" in lines[0]
        and ("--resume" in lines[0] and "Traceback" not in errors)
    )


# Which process is lost, and how; one that stands still is only missed after the timeout.
LOST = {
    "killed": (1, "SIGKILL", 120),
    "first_killed": (0, "SIGKILL", 120),
    "stopped": (1, "SIGSTOP", 5),
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
    with joined(["-c", DYING, lost, sign, *chosen], rank=1 - lost) as other:
        assert main(chosen) == 2
        assert time.monotonic() - began < 60, other.poll()  # a killed one is missed at once
        other.kill()
    assert explained_in_one_line(capsys.readouterr().err) and not torch.distributed.is_initialized()
    assert main([*chosen, "--resume"]) == 0  # as the message says; one process may do
    assert len(log_of(tmp_path / "max")) == 3


def test_a_process_that_never_comes_is_an_error_after_the_timeout(file, tmp_path):
    command = ["-m", "lirpa_multinorm", *arguments(file, tmp_path, "--timeout", 2)]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", *command],
        env=environment(**variables(0, free_port())),
        text=True,
        capture_output=True,
        timeout=100,
    )
    assert done.returncode == 2 and explained_in_one_line(done.stderr), done.stderr
