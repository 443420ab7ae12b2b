"""Two processes follow the path of one, and none waits for ever for one that is lost."""

import json
import sys

import pytest
import torch

from lirpa_multinorm.errors import CheckpointError, InvalidArgumentError, ProcessGroupError
from lirpa_multinorm.training import load_checkpoint
from lirpa_multinorm.training.run_folder import digest
from lirpa_multinorm.utils import distributed
from tests.distributed import runs as distributed_runs
from tests.distributed.group import TWO_PROCESSES, joined, log_of

pytestmark = TWO_PROCESSES


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What two processes, of which this is the first, have found, by rank, and their folder."""
    folder = tmp_path_factory.mktemp("two")
    with pytest.MonkeyPatch.context() as patch, joined(distributed_runs.main, folder) as other:
        patch.setitem(sys.modules, "torch.utils.tensorboard", None)
        try:
            distributed_runs.main(folder)
        finally:
            torch.set_default_dtype(torch.float32)
    assert other.code == 0, other.errors
    return [torch.load(folder / f"rank_{rank}.pt", weights_only=True) for rank in range(2)], folder


@pytest.fixture
def doubles():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


# --- the same path --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", distributed_runs.RUNS)
def test_two_processes_follow_the_path_of_one(name, two, tmp_path, doubles):
    loaded, folder = two
    model = distributed_runs.go(name, tmp_path)
    lines, expected = log_of(folder / name), log_of(tmp_path)
    assert len(lines) == len(expected) == 3
    for line, entry in zip(lines, expected):
        assert line.keys() == entry.keys() and {"natural_loss", "accuracy"} <= line.keys()
        assert line["run_sha256"] == entry["run_sha256"]
        for key in line.keys() - {"seconds", "projection_seconds", "run_sha256"}:
            assert line[key] == pytest.approx(entry[key], rel=1e-7, abs=1e-9), key
    for key, value in model.state_dict().items():
        assert torch.allclose(loaded[0]["models"][name][key], value, rtol=1e-7, atol=1e-8), key
        assert torch.equal(loaded[0]["models"][name][key], loaded[1]["models"][name][key]), key


def test_only_the_first_process_writes(two):
    loaded, folder = two
    written = {path.name for path in (folder / "joint").iterdir()} - {"tensorboard"}
    assert written == {".run.lock", "checkpoint.pt", "config.json", "curves.png", "log.jsonl"}
    assert json.loads((folder / "joint" / "config.json").read_text())["processes"] == 2
    assert [line["epoch"] for line in log_of(folder / "cure")] == [1, 2, 3]


def test_a_comparison_is_certified_and_written_once(two, tmp_path, doubles):
    loaded, folder = two
    assert [entry["rows"] for entry in loaded] == [2, 0]
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
    for line, entry in zip(log_of(folder / "table" / "finetune"), log_of(tmp_path / "finetune")):
        assert line["robust_loss"] == pytest.approx(entry["robust_loss"], rel=1e-7)


def test_gradients_of_sums_over_all_processes(two):
    """total = (w (1 + 2 + 2 + 2))^2 = 441 for w = 3.

    D total / d summand = 2 * 21 * 3, d total / d w = 2 * 21 * 7.
    """
    for loaded in two[0]:
        values = loaded["differentiated"]
        assert values["total"].item() == 441 and values["weight"].item() == 294
        assert values["own"].tolist() == [126, 126]
        assert values["mean"].item() == 0.75  # of 0 in one process and 0, 1, 2 in the other


def test_each_process_draws_its_rows_of_what_one_would_draw(two, doubles):
    source = distributed.SharedGenerator(5)
    whole = [source.rand((4, 3)), source.randn((4,)), source.rand((2, 1), dtype=torch.float64)]
    for i, entry in enumerate(whole):
        assert torch.equal(torch.cat([two[0][rank]["drawn"][i] for rank in range(2)]), entry)


def test_a_batch_that_cannot_be_divided_is_refused(two):
    for loaded in two[0]:
        kind, words = loaded["indivisible"]
        assert (
            kind == "InvalidArgumentError"
            and "batch_size=15 cannot be divided among 2 processes" in words
        )


def test_processes_that_differ_are_refused(two):
    for loaded in two[0]:
        kind, words = loaded["different"]
        assert kind == "InvalidArgumentError" and "the processes differ in settings" in words


def test_a_folder_that_is_refused_is_refused_to_all(two):
    kinds = [loaded["refused"] for loaded in two[0]]
    assert kinds[0][0] == "OutputFolderError" and "holds a run already" in kinds[0][1]
    assert (
        kinds[1][0] == "ProcessGroupError"
        and "another process of the group was refused" in kinds[1][1]
    )


def test_a_signal_to_one_process_stops_all_after_the_same_step(two):
    loaded, folder = two
    assert [entry["stopped"]["steps"] for entry in loaded] == [3, 3]
    assert all("(epoch 1, step 1 of the next)" in entry["stopped"]["words"] for entry in loaded)
    for entry in loaded:
        assert all(
            torch.equal(value, entry["models"]["natural"][key])
            for key, value in entry["stopped"]["model"].items()
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
