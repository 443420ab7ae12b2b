"""The commands on a small file of images, for the tests of the command line."""

import json
import sys

import pytest

import lirpa_multinorm.experiments.table as table_module
import lirpa_multinorm.training.runlog as runlog_module
from lirpa_multinorm.cli import main
from lirpa_multinorm.training import save_checkpoint
from tests.toy import CONFIG, SETS, SPEC, write_npz


@pytest.fixture
def no_figures(monkeypatch):
    """They are slow, and have tests of their own."""
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    monkeypatch.setattr(table_module, "grouped_bars", lambda *_, **__: None)
    monkeypatch.setattr(runlog_module, "learning_curves", lambda *_: None)


@pytest.fixture
def file(tmp_path):
    """An .npz file of the toy images."""
    return write_npz(tmp_path / "toy.npz")


@pytest.fixture
def checkpoint(tmp_path):
    save_checkpoint(tmp_path / "toy.pt", SPEC.build(), SPEC, SETS, CONFIG, 1)
    return tmp_path / "toy.pt"


def train_on(file, output, *arguments, methods=("IBP",)):
    """Train on a file, and certify by one method, which is quick, unless others are named."""
    certify = ["--certify-methods", *methods] if methods else []
    return main(
        [
            "train",
            *certify,
            "--data",
            str(file),
            "--model",
            "mlp",
            "--epochs",
            "2",
            "--batch-size",
            "16",
            "--no-progress",
            "--output",
            str(output),
            *map(str, arguments),
        ]
    )


def finetune(initial, file, output, *arguments):
    return main(
        [
            "finetune",
            str(initial),
            "--data",
            str(file),
            "--output",
            str(output),
            "--epochs",
            "2",
            "--batch-size",
            "16",
            "--milestones",
            "1",
            "--anneal-epochs",
            "1",
            "--no-progress",
            *map(str, arguments),
        ]
    )


def certify_into(output, checkpoint, file, *arguments):
    return main(
        [
            "certify",
            str(checkpoint),
            "--data",
            str(file),
            "--no-progress",
            "--batch-size",
            "5",
            "--output",
            str(output),
            *map(str, arguments),
        ]
    )


def written_config(output, row):
    return json.loads((output / row / "config.json").read_text())


def summary_in(output):
    return json.loads((output / "summary.json").read_text())


def error_of(capsys, code):
    """The one line on stderr that comes with exit code 2."""
    assert code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), lines
    return lines[0]
