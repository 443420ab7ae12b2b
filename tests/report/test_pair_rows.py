"""Certifications as rows, CSV files and frames: every value as it is in the records."""

import csv
import sys

import pytest

from lirpa_multinorm import certify_to, read_records
from lirpa_multinorm.certification import CertifySettings
from lirpa_multinorm.cli import main
from lirpa_multinorm.errors import InvalidArgumentError, LirpaMultinormError
from lirpa_multinorm.report import data_frame, pair_rows, write_csv
from tests.toy import SETS, SPEC, images


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("records")
    certify_to(folder, SPEC.build().eval(), *images(6), SETS, CertifySettings(["IBP"]))
    return folder


def test_rows_hold_each_image_and_set(folder):
    result = read_records(folder)
    rows = pair_rows(result)
    assert [(row["image"], row["set"]) for row in rows] == [
        (image, ball.title()) for image in range(6) for ball in SETS
    ]
    for row in rows:
        index = [ball.title() for ball in SETS].index(row["set"])
        assert row["status"] == result.status[index][row["image"]]
        assert row["method"] == result.method[index][row["image"]]
        margin = float(result.margin[index, row["image"]])
        assert row["margin"] == (margin if abs(margin) < float("inf") else None)


def test_a_csv_file_has_runs_and_labels(folder, tmp_path, capsys):
    runs = [("first", folder), ("second", folder)]
    with open(write_csv(runs, tmp_path / "new" / "pairs.csv"), newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["run"] for row in rows] == ["first"] * 12 + ["second"] * 12
    assert [int(row["label"]) for row in rows[:12:2]] == images(6)[1].tolist()
    assert (
        rows[0]["margin"] == ""
        or float(rows[0]["margin"]) == pair_rows(read_records(folder))[0]["margin"]
    )
    assert main(["report", f"a={folder}", "--csv", str(tmp_path / "b.csv")]) == 0
    assert (tmp_path / "b.csv").read_text().count("\n") == 13
    assert main(["report", str(folder), "--csv", str(tmp_path)]) == 2
    assert "--csv: " in capsys.readouterr().err


def test_a_folder_is_no_file(folder, tmp_path):
    with pytest.raises(InvalidArgumentError, match="is a folder; name a file in it"):
        write_csv([folder], tmp_path)


def test_a_frame_has_the_same_rows(folder):
    pandas = pytest.importorskip("pandas")
    frame = data_frame(read_records(folder))
    assert isinstance(frame, pandas.DataFrame)
    assert frame["status"].tolist() == [row["status"] for row in pair_rows(read_records(folder))]


def test_without_pandas_the_error_says_what_to_do(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(LirpaMultinormError, match="pip install pandas, or use pair_rows"):
        data_frame(read_records(folder))
