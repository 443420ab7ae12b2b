"""The examples run as scripts."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from toy import images

from lirpa_multinorm.experiments.comparison import ROWS
from lirpa_multinorm.training import ModelSpec, load_checkpoint

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def run(script, *arguments):
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = dict(os.environ, PYTHONPATH=path, OMP_NUM_THREADS="1")
    return subprocess.run(
        [sys.executable, str(script), *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
    )


def test_there_are_examples():
    assert {path.name for path in EXAMPLES} == {
        "finetune.py",
        "train_cifar.py",
        "train_digits.py",
        "train_mnist.py",
    }


@pytest.mark.parametrize("script", EXAMPLES, ids=lambda path: path.stem)
def test_help(script):
    done = run(script, "--help")
    assert done.returncode == 0, done.stderr
    assert "--output" in done.stdout and "python examples/" in done.stdout


def test_an_example_from_end_to_end(tmp_path):
    (x_train, y_train), (x_test, y_test) = images(40, 0), images(6, 1)
    np.savez(tmp_path / "toy.npz", x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
    done = run(
        ROOT / "examples" / "train_cifar.py",
        "--data",
        tmp_path / "toy.npz",
        "--output",
        tmp_path / "run",
        "--model",
        "cnn3",
        "--width",
        2,
        "--epochs",
        3,
        "--batch-size",
        16,
        "--anneal-epochs",
        1,
    )
    assert done.returncode == 0, done.stderr
    written = json.loads((tmp_path / "run" / "table.json").read_text())
    assert [row["method"] for row in written["rows"]] == list(ROWS)
    train = written["settings"]["train"]
    assert (train["epochs"], train["learning_rate"], train["augment"]) == (3, 5e-4, "cifar")
    assert train["milestones"] == [2, 2]  # of 160 epochs: 120 and 140
    assert train["loss_options"]["ratio_inf"] == 0.1
    assert written["settings"]["perturbations"][0]["eps"] == pytest.approx(2 / 255)
    assert (tmp_path / "run" / "table.png").is_file() and "| Random" in done.stdout


def test_fine_tuning_from_end_to_end(tmp_path):
    (x_train, y_train), (x_test, y_test) = images(40, 0), images(6, 1)
    np.savez(tmp_path / "toy.npz", x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
    spec = ModelSpec("cnn3", (1, 4, 4), 3, options={"width": 2})
    torch.save(spec.build().state_dict(), tmp_path / "weights.pt")
    done = run(
        ROOT / "examples" / "finetune.py",
        tmp_path / "weights.pt",
        "--data",
        tmp_path / "toy.npz",
        "--output",
        tmp_path / "run",
        "--model",
        "cnn3",
        "--width",
        2,
        "--epochs",
        2,
        "--batch-size",
        16,
        "--milestones",
        1,
        "--anneal-epochs",
        1,
        "--eps-inf",
        0.05,
        "--eps-2",
        0.1,
    )
    assert done.returncode == 0, done.stderr
    (row,) = json.loads((tmp_path / "run" / "table.json").read_text())["rows"]
    assert row["method"] == "Finetune" and "| Finetune" in done.stdout
    found = load_checkpoint(tmp_path / "run" / "finetune" / "checkpoint.pt")
    assert (found.config.loss, found.epoch) == ("cure", 2) and [
        one.eps for one in found.perturbations
    ] == [0.05, 0.1]


def test_a_missing_data_set_is_one_line(tmp_path):
    done = run(
        ROOT / "examples" / "train_mnist.py",
        "--data-dir",
        tmp_path,
        "--no-download",
        "--output",
        tmp_path / "run",
    )
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2 and len(errors) == 1 and "Traceback" not in done.stderr
    assert str(tmp_path) in errors[0] and "digits" in errors[0]
