"""Files are whole or absent."""

from __future__ import annotations

import hashlib
import json
import math
import multiprocessing
import os
import time
import zipfile
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch

from lirpa_multinorm.errors import InvalidArgumentError, OutputFolderError
from lirpa_multinorm.utils import files as io
from lirpa_multinorm.utils import seal


@dataclass
class Settings:
    eps: float
    norms: tuple


def test_write_json_reads_back(tmp_path):
    obj = {
        "eps": torch.tensor(0.25),
        "curve": np.array([1, 2]),
        "best": np.float32(0.5),
        "settings": Settings(0.1, (2, "inf")),
        "file": Path("a") / "b",
        8: None,
        "done": True,
    }
    path = io.write_json(tmp_path / "new" / "folder" / "r.json", obj)
    assert json.loads(path.read_text(encoding="utf-8")) == {
        "eps": 0.25,
        "curve": [1, 2],
        "best": 0.5,
        "settings": {"eps": 0.1, "norms": [2, "inf"]},
        "file": os.path.join("a", "b"),
        "8": None,
        "done": True,
    }


def test_numbers_without_json_survive_as_strings(tmp_path):
    values = [math.inf, -math.inf, math.nan, torch.tensor([math.nan])]
    text = io.write_json(tmp_path / "r.json", values).read_text()
    back = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert back == ["Infinity", "-Infinity", "NaN", ["NaN"]]
    assert float(back[0]) == math.inf and math.isnan(float(back[2]))


def test_what_json_cannot_express_is_refused_and_nothing_is_written(tmp_path):
    with pytest.raises(InvalidArgumentError, match="obj: .*of type set"):
        io.write_json(tmp_path / "r.json", {"norms": {1, 2}})
    with pytest.raises(InvalidArgumentError, match="of type set"):
        io.append_jsonl(tmp_path / "r.jsonl", {"norms": {1, 2}})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch, broken):
    path = io.write_text(tmp_path / "r.txt", "old")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(io.os, broken, fail)
    with pytest.raises(OSError, match="disk full"):
        io.write_text(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(os.name == "nt", reason="permission bits are POSIX's")
def test_written_files_have_the_usual_permissions(tmp_path):
    plain = tmp_path / "plain.txt"
    plain.write_text("x")
    assert io.write_text(tmp_path / "ours.txt", "x").stat().st_mode == plain.stat().st_mode


def test_append_jsonl_starts_a_new_line_after_a_cut_one(tmp_path):
    path = tmp_path / "log.jsonl"
    io.append_jsonl(path, {"epoch": 1})
    with open(path, "a") as file:
        file.write('{"epoch": 2, "lo')
    io.append_jsonl(path, {"epoch": 3})
    io.append_jsonl(path, {"epoch": 4})
    assert path.read_text().split("\n") == [
        '{"epoch": 1}',
        '{"epoch": 2, "lo',
        '{"epoch": 3}',
        '{"epoch": 4}',
        "",
    ]


def test_ensure_writable_makes_the_folder_and_leaves_it_empty(tmp_path):
    folder = io.ensure_writable(str(tmp_path / "a" / "b"))
    assert folder == tmp_path / "a" / "b" and list(folder.iterdir()) == []
    (folder / "kept").write_text("x")
    assert [p.name for p in io.ensure_writable(folder).iterdir()] == ["kept"]


def test_ensure_writable_names_argument_folder_and_remedy(tmp_path):
    (tmp_path / "file").write_text("x")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OutputFolderError, match=r"^output: .*file.*--output") as caught:
            io.ensure_writable(folder)
        assert isinstance(caught.value.__cause__, OSError)


def test_ensure_writable_really_writes(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "write_text", refuse)
    with pytest.raises(OutputFolderError, match="Permission denied"):
        io.ensure_writable(tmp_path)


def test_a_line_written_in_part_is_an_error(tmp_path):
    """The limit on a file's size lets the system take a part of the line, as a full disk does."""
    resource = pytest.importorskip("resource")
    path = io.append_jsonl(tmp_path / "log.jsonl", {"epoch": 1})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 5, limits[1]))
    try:
        with pytest.raises(OSError, match="No space left"):
            io.append_jsonl(path, {"epoch": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


# --- one process at a time ------------------------------------------------------------------------


def test_appended_objects_are_one_line_each(tmp_path):
    path = io.append_jsonl(tmp_path / "r.jsonl", {"a": 1}, {"b": math.inf})
    io.append_jsonl(path)
    assert path.read_text() == '{"a": 1}\n{"b": "Infinity"}\n'


def test_a_file_is_one_processes_at_a_time(tmp_path):
    with io.exclusive(tmp_path / "r.jsonl"):
        with pytest.raises(OutputFolderError, match="another process is writing.*r.jsonl"):
            with io.exclusive(tmp_path / "r.jsonl"):
                pass
        with io.exclusive(tmp_path / "s.jsonl"):
            pass
    with pytest.raises(KeyboardInterrupt), io.exclusive(tmp_path / "r.jsonl"):
        raise KeyboardInterrupt
    with io.exclusive(tmp_path / "r.jsonl", wait=True):
        pass


def hold(path, ready):
    with io.exclusive(path):
        ready.set()
        time.sleep(60)


@pytest.mark.skipif(
    "fork" not in multiprocessing.get_all_start_methods(), reason="starting anew takes too long"
)
def test_a_killed_process_leaves_no_lock(tmp_path):
    fork = multiprocessing.get_context("fork")
    ready = fork.Event()
    child = fork.Process(target=hold, args=(tmp_path / "r.jsonl", ready))
    child.start()
    assert ready.wait(10)
    with pytest.raises(OutputFolderError), io.exclusive(tmp_path / "r.jsonl"):
        pass
    child.kill()
    child.join()
    with io.exclusive(tmp_path / "r.jsonl"):
        pass


# --- seals ----------------------------------------------------------------------------------------


def archive(obj):
    buffer = BytesIO()
    torch.save(obj, buffer)
    return buffer.getvalue()


def test_a_sealed_archive_is_one_for_every_reader():
    plain = archive({"a": torch.arange(3), "b": [1, "x"]})
    content = seal.sealed(plain)
    assert seal.is_sealed(content) and not seal.is_sealed(plain)
    result = torch.load(BytesIO(content), weights_only=True)
    assert result["a"].tolist() == [0, 1, 2] and result["b"] == [1, "x"]
    with zipfile.ZipFile(BytesIO(content)) as file:
        assert (
            file.testzip() is None
            and file.comment == b"sha256:" + hashlib.sha256(plain).hexdigest().encode()
        )


def test_every_changed_byte_breaks_the_seal():
    content = seal.sealed(archive({"a": torch.arange(3)}))
    for at in range(len(content)):
        with pytest.raises(ValueError, match="SHA-256"):
            seal.is_sealed(content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :])


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c[:-1],
        lambda c: c[:-71],
        lambda c: c + b"x",
        lambda c: c[:200],
        lambda c: c[1:],
        lambda c: b"",
        lambda c: c[-71:],
        lambda c: c[:50] + c[60:],
    ],
)
def test_lost_and_added_bytes_break_the_seal(change):
    with pytest.raises(ValueError, match="SHA-256"):
        seal.is_sealed(change(seal.sealed(archive({"a": torch.arange(3)}))))
