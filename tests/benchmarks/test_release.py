"""A run is released without its training state, and certified by the default cascade."""

import json
import sys

import pytest
import torch

from benchmarks import release
from lirpa_multinorm.certification import METHODS
from lirpa_multinorm.cli import main
from lirpa_multinorm.training import load_checkpoint
from tests.cli.runs import error_of, file, no_figures, train_on  # noqa: F401

pytestmark = pytest.mark.usefixtures("no_figures")


@pytest.fixture
def run(file, tmp_path):  # noqa: F811
    assert train_on(file, tmp_path / "runs", "--losses", "Max") == 0
    return tmp_path / "runs" / "max"


def released(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["release", *map(str, words)])
    return release.main()


def test_a_released_network_is_the_trained_one(run, file, tmp_path, monkeypatch, capsys):  # noqa: F811
    folder = tmp_path / "networks" / "toy"
    assert released(monkeypatch, run, folder, "--data", file, "--n-test", 1) == 0
    trained, result = (
        load_checkpoint(run / "checkpoint.pt"),
        load_checkpoint(folder / "checkpoint.pt"),
    )
    assert all(
        torch.equal(item, other)
        for item, other in zip(
            trained.model.state_dict().values(), result.model.state_dict().values()
        )
    )
    assert (result.config, result.spec, result.epoch) == (
        trained.config,
        trained.spec,
        trained.epoch,
    )
    assert trained.run["state"] is not None and result.run["state"] is None
    assert (folder / "checkpoint.pt").stat().st_size < (run / "checkpoint.pt").stat().st_size
    assert (folder / "config.json").read_bytes() == (run / "config.json").read_bytes()
    assert len((folder / "log.jsonl").read_text().splitlines()) == result.epoch
    written = json.loads((folder / "certified.json").read_text())
    assert written["settings"]["methods"] == list(METHODS) and written["result"]["n"] == 1
    assert written["first"]["n"] == 1
    for row, count in zip(written["first"]["status"], written["result"]["counts"]):
        assert row.count("certified") == count["certified"]

    capsys.readouterr()
    assert (
        main(
            [
                "certify",
                str(folder / "checkpoint.pt"),
                "--data",
                str(file),
                "--n-test",
                "1",
                "--output",
                str(tmp_path / "again"),
                "--no-progress",
            ]
        )
        == 0
    )
    again = json.loads((tmp_path / "again" / "summary.json").read_text())["result"]
    for name in ("clean", "certified", "certified_union", "attacked"):
        assert again[name] == written["result"][name]


def test_a_released_network_cannot_be_resumed_but_finetuned(run, file, tmp_path, monkeypatch):  # noqa: F811
    assert released(monkeypatch, run, tmp_path / "toy", "--data", file, "--n-test", 2) == 0
    assert (
        train_on(
            file,
            tmp_path / "more",
            "--losses",
            "Max",
            "--initial",
            tmp_path / "toy" / "checkpoint.pt",
        )
        == 0
    )


def test_a_network_that_is_too_large_is_not_released(run, file, tmp_path, monkeypatch, capsys):  # noqa: F811
    monkeypatch.setattr(release, "LARGEST", 1000)
    assert "1000 bytes" in error_of(
        capsys, released(monkeypatch, run, tmp_path / "toy", "--data", file)
    )
    assert not (tmp_path / "toy" / "checkpoint.pt").exists()
