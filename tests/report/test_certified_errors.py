"""Records that the report refuses, by name."""

from __future__ import annotations

import pytest
import torch

from lirpa_multinorm import CertifySettings
from lirpa_multinorm.certification import record_header, records
from lirpa_multinorm.errors import InvalidArgumentError, OutputFolderError, RecordsError
from lirpa_multinorm.report import certification_report
from lirpa_multinorm.report.runs import load_runs
from tests.report.records import SETS, write


def test_no_runs():
    with pytest.raises(InvalidArgumentError, match="runs: none given"):
        certification_report([])
    with pytest.raises(InvalidArgumentError, match="must be a list"):
        certification_report("one")


def test_two_runs_of_one_name(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    single, other = write(tmp_path / "a" / "max"), write(tmp_path / "b" / "max", seed=1)
    with pytest.raises(InvalidArgumentError, match="2 of them have the name 'max' .*NAME=FOLDER"):
        certification_report([single, other])
    assert [run.name for run in load_runs([("a", single), other])] == ["a", "max"]


def test_folders_without_records(tmp_path):
    with pytest.raises(RecordsError, match="holds no records.jsonl; give a folder"):
        certification_report([tmp_path])
    (tmp_path / "records.0-of-2.jsonl").write_text("")
    with pytest.raises(RecordsError, match="those of shards: merge them"):
        certification_report([tmp_path])
    (tmp_path / "records.jsonl").write_text("no header\n")
    with (
        pytest.warns(UserWarning, match="damaged"),
        pytest.raises(RecordsError, match="does not start with"),
    ):
        certification_report([tmp_path])


def test_a_run_without_images(tmp_path):
    with pytest.raises(RecordsError, match=r"no record of any image \(of 6.*--resume"):
        certification_report([write(tmp_path / "one", left=range(6))])
    header = record_header.header_of(
        torch.nn.Linear(1, 1), torch.rand(0, 1), torch.zeros(0), SETS, CertifySettings()
    )
    (tmp_path / "none").mkdir()
    records.write_records(tmp_path / "none" / "records.jsonl", header, {})
    with pytest.raises(RecordsError, match=r"no record of any image \(of 0"):
        certification_report([tmp_path / "none"])


def test_an_output_that_cannot_be_written(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(OutputFolderError, match="taken"):
        certification_report([write(tmp_path / "one")], tmp_path / "taken" / "report")
