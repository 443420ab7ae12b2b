"""Tables of ``train`` that were interrupted: what is kept, and how ``--resume`` goes on."""

import errno
import json
import os

import pytest

import lirpa_multinorm.experiments.comparison as experiment_module
from tests.cli.runs import error_of, train_on
from tests.toy import images, write_npz

pytestmark = pytest.mark.usefixtures("no_figures")


def timeless(output):
    return [
        {key: value for key, value in row.items() if key != "seconds"}
        for row in json.loads((output / "table.json").read_text())["rows"]
    ]


def test_resuming_a_half_finished_table(file, tmp_path, monkeypatch, capsys):
    chosen = ["--losses", "natural", "Joint"]
    assert train_on(file, tmp_path / "whole", *chosen) == 0
    original, started = experiment_module.train, []

    def interrupted(spec, data, sets, config, *rest):
        started.append(config.loss)
        if started == ["natural", "joint"]:
            raise KeyboardInterrupt
        return original(spec, data, sets, config, *rest)

    monkeypatch.setattr(experiment_module, "train", interrupted)
    assert (
        train_on(file, tmp_path / "run", *chosen) == 130 and "--resume" in capsys.readouterr().err
    )
    (tmp_path / "run" / ".table.json.0123.tmp").write_text("half of a table")
    certified, certify = [], experiment_module.certify
    monkeypatch.setattr(
        experiment_module, "certify", lambda *args: certified.append(1) or certify(*args)
    )
    assert train_on(file, tmp_path / "run", *chosen, "--resume") == 0
    assert timeless(tmp_path / "run") == timeless(tmp_path / "whole")
    assert len(certified) == 1  # the first row's result was there
    assert train_on(file, tmp_path / "run", *chosen, "--resume") == 0 and len(certified) == 1
    assert not list((tmp_path / "run").rglob(".*.tmp"))
    assert "train.learning_rate: 0.002 -> 0.1" in error_of(
        capsys, train_on(file, tmp_path / "run", *chosen, "--resume", "--learning-rate", 0.1)
    )


def test_resuming_certifies_again_where_the_test_images_changed(file, tmp_path):
    assert train_on(file, tmp_path / "run", "--losses", "natural") == 0
    write_npz(file, y_test=images(12, 1)[1].roll(1))  # of other classes: nearly none is right
    assert train_on(file, tmp_path / "run", "--losses", "natural", "--resume") == 0
    resumed = timeless(tmp_path / "run")
    assert train_on(file, tmp_path / "anew", "--losses", "natural") == 0
    assert resumed == timeless(tmp_path / "anew")


def test_interruption_keeps_the_finished_rows(file, tmp_path, monkeypatch, capsys):
    original = experiment_module.train

    def interrupted(spec, data, sets, config, *rest):
        if config.loss == "joint":
            raise KeyboardInterrupt
        return original(spec, data, sets, config, *rest)

    monkeypatch.setattr(experiment_module, "train", interrupted)
    assert train_on(file, tmp_path / "run", "--losses", "natural", "Joint") == 130
    assert "interrupted" in capsys.readouterr().err
    assert len(json.loads((tmp_path / "run" / "table.json").read_text())["rows"]) == 1


@pytest.mark.parametrize(
    "name", ["checkpoint.pt", "table.json", "result.json", "config.json", "table.md"]
)
def test_a_full_disk_is_one_line(name, file, tmp_path, monkeypatch, capsys):
    original = os.replace

    def replace(source, target):
        if str(target).endswith(name):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(source, target)

    monkeypatch.setattr(os, "replace", replace)
    line = error_of(capsys, train_on(file, tmp_path / "run", "--losses", "natural"))
    assert "No space left" in line and str(tmp_path / "run") in line and "--resume" in line
