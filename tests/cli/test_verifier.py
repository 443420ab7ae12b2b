"""The commands ``export`` and ``import``."""

import json

import numpy as np
import pytest

from lirpa_multinorm import read_records
from lirpa_multinorm.cli import main
from lirpa_multinorm.training import save_checkpoint
from tests.toy import CONFIG, SETS, SPEC, images

pytest.importorskip("onnx")


@pytest.fixture
def arguments(tmp_path):
    """A checkpoint, and the data that it takes."""
    (x_train, y_train), (x_test, y_test) = images(12, 0), images(12, 1)
    np.savez(tmp_path / "toy.npz", x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
    save_checkpoint(tmp_path / "toy.pt", SPEC.build(), SPEC, SETS, CONFIG, 1)
    return [str(tmp_path / "toy.pt"), "--data", str(tmp_path / "toy.npz"), "--n-test", "6"]


def test_from_records_to_the_verifier_and_back(arguments, tmp_path, capsys):
    run, out = str(tmp_path / "run"), tmp_path / "out"
    assert (
        main(
            [
                "certify",
                *arguments,
                "--methods",
                "IBP",
                "--no-attack",
                "--output",
                run,
                "--no-progress",
            ]
        )
        == 0
    )
    path = tmp_path / "run" / "records.jsonl"
    lines = path.read_text().splitlines()
    first = json.loads(lines[1])
    first.update(clean=True)
    first["sets"][0].update(
        status="unknown", method="", margin=-1.0
    )  # whatever the untrained network does
    path.write_text("\n".join([lines[0], json.dumps(first), *lines[2:]]) + "\n")
    assert (
        main(["export", *arguments, "--output", str(out), "--records", run, "--time-limit", "30"])
        == 0
    )
    problem = out / "0_l_inf"
    assert f"cd {problem} && python" in capsys.readouterr().out
    assert (
        (problem / "instances.csv").read_text().startswith("../model.onnx,image_00000.vnnlib,30\n")
    )
    (tmp_path / "log.txt").write_text("%%% idx: 0, vnnlib ID: 0 %%%\nResult: safe in 2.0 seconds\n")
    assert (
        main(
            [
                "import",
                *arguments,
                "--records",
                run,
                "--problem",
                str(problem),
                "--results",
                str(tmp_path / "log.txt"),
            ]
        )
        == 0
    )
    assert "l_inf ball of radius 0.05 within [0, 1]: certified" in capsys.readouterr().out
    assert read_records(run).method[0][0] == "alpha-beta-CROWN"


def test_what_the_commands_cannot_use(arguments, tmp_path, capsys):
    assert main(["export", *arguments, "--output", str(tmp_path / "out"), "--time-limit", "0"]) == 2
    assert "time_limit=0.0" in capsys.readouterr().err
    assert (
        main(["export", *arguments, "--output", str(tmp_path / "out"), "--records", str(tmp_path)])
        == 2
    )
    assert "--records: there is no file" in capsys.readouterr().err
    assert main(["export", *arguments, "--output", str(tmp_path / "out"), "--eps-inf", "0.2"]) == 0
    assert (
        main(
            [
                "import",
                *arguments,
                "--records",
                str(tmp_path),
                "--problem",
                str(tmp_path / "out" / "0_l_inf"),
                "--results",
                str(tmp_path),
            ]
        )
        == 2
    )
    line = capsys.readouterr().err
    assert "--records: " in line and "certify first" in line
    assert (
        main(
            [
                "import",
                *arguments,
                "--records",
                str(tmp_path),
                "--problem",
                "nowhere",
                "--results",
                "log",
            ]
        )
        == 2
    )
    assert "--problem: 'nowhere'" in capsys.readouterr().err
