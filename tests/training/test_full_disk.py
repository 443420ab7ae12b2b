"""A full disk leaves the last checkpoint, and says so."""

import errno
import os

import pytest

import lirpa_multinorm.training.checkpoint as checkpoint_module
import lirpa_multinorm.training.run_folder as folder_module
import lirpa_multinorm.training.runlog as runlog_module
from lirpa_multinorm.errors import OutputFolderError
from lirpa_multinorm.training import load_checkpoint
from tests.training.interruptions import assert_same_run
from tests.training.runs import run

pytestmark = pytest.mark.usefixtures("plain_logs")


def disk_full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_full_disk_while_saving_leaves_the_last_checkpoint(
    function, tmp_path, monkeypatch, uninterrupted
):
    original = checkpoint_module.write_bytes

    def write(*args):
        if write.calls == 2:
            monkeypatch.setattr(os, function, disk_full)
        write.calls += 1
        return original(*args)

    write.calls = 0
    monkeypatch.setattr(checkpoint_module, "write_bytes", write)
    with pytest.raises(
        OutputFolderError, match="checkpoint.*No space left.*the previous one is intact"
    ):
        run(tmp_path)
    monkeypatch.undo()
    assert load_checkpoint(tmp_path / "checkpoint.pt").epoch == 2 and not list(
        tmp_path.glob(".*.tmp")
    )
    assert_same_run(tmp_path, run(tmp_path, resume=True), uninterrupted)


@pytest.mark.parametrize("spot", ["config.json", "log.jsonl", "curves.png"])
def test_a_full_disk_elsewhere_is_the_same_error(spot, tmp_path, monkeypatch, uninterrupted):
    module, name = {
        "config.json": (folder_module, "write_json"),
        "log.jsonl": (runlog_module, "append_jsonl"),
        "curves.png": (runlog_module, "learning_curves"),
    }[spot]
    monkeypatch.setattr(module, name, disk_full)
    with pytest.raises(OutputFolderError, match=f"{spot}.*No space left"):
        run(tmp_path)
    monkeypatch.undo()
    assert_same_run(tmp_path, run(tmp_path, resume=True), uninterrupted)


def test_the_first_of_two_errors_is_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint_module, "write_bytes", disk_full)
    monkeypatch.setattr(runlog_module, "learning_curves", disk_full)
    with pytest.raises(OutputFolderError, match="the checkpoint"):
        run(tmp_path)
