"""The environment record is true."""

from __future__ import annotations

import json
import platform
import subprocess
from importlib import metadata

import numpy as np
import pytest
import torch

from lirpa_multinorm.utils import environment
from lirpa_multinorm.utils.files import write_json


def test_environment_is_plain_and_true(tmp_path):
    record = environment.environment()
    assert json.loads(write_json(tmp_path / "e.json", record).read_text()) == record
    assert record["torch"] == torch.__version__
    assert record["numpy"] == np.__version__
    assert record["python"] == platform.python_version()
    assert record["threads"] == torch.get_num_threads()
    assert (record["device"], bool(record["device_name"])) == ("cpu", True)
    assert platform.node() not in record.values()


def test_version_prefers_the_module_in_use(monkeypatch):
    assert environment.version_of("torch") == torch.__version__
    monkeypatch.delitem(environment.sys.modules, "pytest")
    assert environment.version_of("pytest") == metadata.version("pytest")
    assert environment.version_of("no_such_library") is None


def git(folder, *command):
    who = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    done = subprocess.run(
        ["git", "-C", str(folder), *who, *command], check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def test_git_commit_is_that_of_the_checkout_which_tracks_the_file(tmp_path):
    try:
        git(tmp_path, "init", "-q")
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("git is not installed")
    file = tmp_path / "environment.py"
    file.write_text("1")
    git(tmp_path, "commit", "-q", "--allow-empty", "-m", "first")
    # Untracked, as in a virtual environment inside somebody's repository.
    assert environment.git_commit(tmp_path) is None
    git(tmp_path, "add", "environment.py")
    git(tmp_path, "commit", "-q", "-m", "second")
    git(tmp_path, "tag", "-a", "v1", "-m", "a tag must not replace the commit")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert environment.git_commit(tmp_path) == commit
    file.write_text("2")
    assert environment.git_commit(tmp_path) == f"{commit}-dirty"
