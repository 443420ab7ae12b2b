"""The log of a run.

Whole lines only, nothing lost silently, the same numbers in TensorBoard, curves at the end.
"""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch

from lirpa_multinorm.errors import InvalidArgumentError, OutputFolderError
from lirpa_multinorm.training.runlog import RunLog


def line(epoch, **values):
    return {"epoch": epoch, "natural_loss": 1.0 / epoch, **values}


def filled(folder, epochs=4, **options):
    log = RunLog(folder, **{"tensorboard": False, **options})
    for epoch in range(1, epochs + 1):
        log.append(line(epoch))
    return log


def text(log):
    return log.path.read_text(encoding="utf-8")


# --- lines ---


def test_lines_are_on_disk_as_json(tmp_path):
    log = RunLog(tmp_path / "new" / "run", tensorboard=False)
    assert log.lines() == []
    log.append({"epoch": 1, "loss": torch.tensor(0.5), "note": "first", "bad": float("nan")})
    assert text(log) == '{"epoch": 1, "loss": 0.5, "note": "first", "bad": "NaN"}\n'
    log.append(line(2))
    assert log.lines() == [json.loads(item) for item in text(log).splitlines()]
    assert [item["epoch"] for item in RunLog(log.folder).lines()] == [1, 2]


@pytest.mark.parametrize("epoch", [None, 1.5, "1", True])
def test_a_line_needs_its_epoch(tmp_path, epoch):
    log = RunLog(tmp_path)
    with pytest.raises(InvalidArgumentError, match="line: its 'epoch' is"):
        log.append({"epoch": epoch, "loss": 1.0})
    with pytest.raises(InvalidArgumentError, match="cannot be written as JSON"):
        log.append({"epoch": 1, "loss": object()})
    assert list(tmp_path.iterdir()) == []


def test_a_half_written_line_is_no_line(tmp_path):
    log = filled(tmp_path, 2)
    with open(log.path, "a") as file:
        file.write('{"epoch": 3, "natural_loss": 0.3')
    assert [item["epoch"] for item in log.lines()] == [1, 2]
    log.append(line(3))
    assert [item["epoch"] for item in log.lines()] == [1, 2, 3]
    # Also where the part happens to be valid JSON, or cuts a character in two.
    with open(log.path, "ab") as file:
        file.write(b'{"epoch": 4}')
    assert len(log.lines()) == 3
    with open(log.path, "ab") as file:
        file.write(b'\n{"epoch": 5, "note": "\xc3')
    assert [item["epoch"] for item in log.lines()] == [1, 2, 3, 4]


def test_keep_drops_later_and_half_lines_and_leaves_the_rest_as_it_was(tmp_path):
    log = filled(tmp_path, 4)
    before = text(log).splitlines()
    with open(log.path, "a") as file:
        file.write('{"epoch": 2, "nat')
    log.keep(3)
    assert text(log).splitlines() == before[:3] and text(log).endswith("\n")
    assert [item.name for item in tmp_path.iterdir()] == ["log.jsonl"]
    log.append(line(4, again=True))
    assert [item["epoch"] for item in log.lines()] == [1, 2, 3, 4] and log.lines()[-1]["again"]
    log.keep(0)
    assert text(log) == ""


def test_keep_without_a_file_makes_none(tmp_path):
    RunLog(tmp_path / "run").keep(0)
    assert list(tmp_path.iterdir()) == []


def test_keep_cut_short_leaves_the_old_file(tmp_path, monkeypatch):
    log = filled(tmp_path)
    before = text(log)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lirpa_multinorm.utils.files.os.fsync", full)
    with pytest.raises(
        OutputFolderError, match=r"log\.jsonl' \(No space left on device\). Free some space"
    ):
        log.keep(1)
    assert text(log) == before


# --- disks ---


def test_a_disk_that_fills_up_is_an_error(tmp_path):
    """The limit on a file's size lets the system take a part of the line, as a full disk does."""
    resource = pytest.importorskip("resource")
    log = filled(tmp_path, 2)
    size, limits = len(text(log)), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, limits[1]))
    try:
        with pytest.raises(
            OutputFolderError, match=r"cannot write '.*log\.jsonl' .*Free some space"
        ) as caught:
            log.append(line(3))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert isinstance(caught.value.__cause__, OSError) and len(text(log)) == size + 10
    assert [item["epoch"] for item in log.lines()] == [1, 2]
    log.append(line(3))  # space was freed
    assert [item["epoch"] for item in log.lines()] == [1, 2, 3]


def test_places_that_cannot_be_written_are_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputFolderError, match="log.jsonl"):
        RunLog(tmp_path / "file").append(line(1))
    log = filled(tmp_path / "run", 2)
    (log.folder / "curves.png").mkdir()
    with pytest.raises(OutputFolderError, match="curves.png"):
        log.close()


def test_a_tensorboard_folder_that_cannot_be_made_is_named(tmp_path):
    pytest.importorskip("tensorboard")
    log = filled(tmp_path / "other", 2)
    (log.folder / "tensorboard").write_text("")
    with pytest.raises(OutputFolderError, match="tensorboard"):
        RunLog(log.folder).append(line(3))


# --- curves ---


def test_close_draws_the_whole_log_and_may_be_repeated(tmp_path):
    log = filled(tmp_path)
    log.close()
    first = (tmp_path / "curves.png").read_bytes()
    assert first.startswith(b"\x89PNG")
    log.close()
    assert (tmp_path / "curves.png").read_bytes() == first
    RunLog(tmp_path, title="another title").close()
    assert (tmp_path / "curves.png").read_bytes() != first
    assert sorted(item.name for item in tmp_path.iterdir()) == ["curves.png", "log.jsonl"]


def test_close_without_anything_to_draw(tmp_path):
    with RunLog(tmp_path / "run") as log:
        pass
    assert not log.folder.exists()
    with RunLog(tmp_path, tensorboard=False) as log:
        log.append({"epoch": 1, "note": "nothing"})
    assert [item.name for item in tmp_path.iterdir()] == ["log.jsonl"]


def test_curves_are_drawn_although_the_run_failed(tmp_path):
    with pytest.raises(KeyboardInterrupt), filled(tmp_path):
        raise KeyboardInterrupt
    assert (tmp_path / "curves.png").exists()


# --- TensorBoard ---


def scalars(folder):
    """All curves in a folder of TensorBoard's files, as TensorBoard shows them."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return {
        tag: [(item.step, item.value) for item in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


def test_numbers_go_to_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    log = RunLog(tmp_path)
    log.append(
        {
            "epoch": 1,
            "loss": 0.5,
            "count": 3,
            "on": True,
            "note": "x",
            "bad": float("nan"),
            "many": [1, 2],
        }
    )
    log.append({"epoch": 2, "loss": torch.tensor(0.25), "share": np.float32(0.75)})
    assert scalars(tmp_path)["loss"] == [
        (1, 0.5),
        (2, 0.25),
    ]  # at once, not only when the log is closed
    log.close()
    assert scalars(tmp_path) == {
        "loss": [(1, 0.5), (2, 0.25)],
        "count": [(1, 3.0)],
        "share": [(2, 0.75)],
    }


@pytest.mark.parametrize("same", [True, False], ids=["same_log", "new_log"])
def test_tensorboard_forgets_what_keep_drops(tmp_path, same):
    pytest.importorskip("tensorboard")
    log = filled(tmp_path, 4, tensorboard=True)
    if not same:
        log.close()
        log = RunLog(tmp_path)
    log.keep(2)
    log.append({"epoch": 3, "natural_loss": 9.0})
    log.close()
    assert scalars(tmp_path)["natural_loss"] == [(1, 1.0), (2, 0.5), (3, 9.0)]


@pytest.mark.parametrize("broken", [None, "raises"])
def test_without_tensorboard_the_lines_are_written_all_the_same(tmp_path, monkeypatch, broken):
    class Broken:
        """A TensorBoard at odds with another library."""

        def __getattr__(self, name):
            raise TypeError("Descriptors cannot be created directly")

    monkeypatch.setitem(
        sys.modules, "torch.utils.tensorboard", None if broken is None else Broken()
    )
    log = filled(tmp_path, 2, tensorboard=True)
    log.close()
    assert len(log.lines()) == 2 and not (tmp_path / "tensorboard").exists()


def test_tensorboard_can_be_turned_off(tmp_path):
    filled(tmp_path).close()
    assert not (tmp_path / "tensorboard").exists()
