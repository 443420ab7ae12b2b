"""Results of alpha-beta-CROWN in each form that it writes them."""

import pickle

import pytest
import torch

from lirpa_multinorm.certification import CERTIFIED, FALSIFIED, TIMEOUT, UNKNOWN
from lirpa_multinorm.certification.verdicts import Verdict, read_verdicts, status_of
from lirpa_multinorm.errors import RecordsError

IMAGES = [3, 5, 8]
LOG = """Experiments at Tue Dec 9 on a-machine
 %%%%% idx: 0, vnnlib ID: 0 %%%%%
Result: safe-incomplete in 0.5000 seconds
 %%%%% idx: 1, vnnlib ID: 1 %%%%%
some Result: safe in 3.0 seconds
Result: unsafe-pgd in 1.2500 seconds
 %%%%% idx: 2, vnnlib ID: 2 %%%%%
"""


@pytest.mark.parametrize(
    "word, status",
    {
        "safe": CERTIFIED,
        "safe-incomplete": CERTIFIED,
        "unsat": CERTIFIED,
        "holds": CERTIFIED,
        " UNSAT ": CERTIFIED,
        "unsafe": FALSIFIED,
        "unsafe-pgd": FALSIFIED,
        "unsafe-bab": FALSIFIED,
        "sat": FALSIFIED,
        "violated": FALSIFIED,
        "timeout": TIMEOUT,
        "run_instance_timeout": TIMEOUT,
        "safe (timed out)": TIMEOUT,
        "unknown": UNKNOWN,
        "unknown-mip": UNKNOWN,
        "error": UNKNOWN,
        "error_exit_code_1": UNKNOWN,
        "error_nonmaximal": UNKNOWN,
        "prepare_instance_error_1": UNKNOWN,
        "prepare_instance_timeout": TIMEOUT,
        "": None,
        "saturated": None,
        "0.5": None,
        "safely": None,
        "not safe": None,
    }.items(),
)
def test_words(word, status):
    assert status_of(word) == status


def test_a_log(tmp_path):
    (tmp_path / "log.txt").write_text(LOG)
    assert read_verdicts(tmp_path / "log.txt", IMAGES) == {
        3: Verdict(CERTIFIED, 0.5),
        5: Verdict(FALSIFIED, 1.25),
    }
    (tmp_path / "log.txt").write_text(
        LOG.replace("idx: 0, vnnlib ID: 0", "idx: 0, vnnlib ID: 2")
    )  # with --start 2
    assert read_verdicts(tmp_path / "log.txt", IMAGES)[8] == Verdict(CERTIFIED, 0.5)


def test_a_log_says_what_timed_out(tmp_path):
    (tmp_path / "log.txt").write_text(""" %%% idx: 0, vnnlib ID: 0 %%%
Length of domains: 550
4534 domains visited
Time out!!!!!!!!
Result: unknown in 20.4262 seconds
 %%% idx: 1, vnnlib ID: 1 %%%
all nodes are split!!
No domains left, verification finished!
Result: unknown in 5.6389 seconds
""")
    assert read_verdicts(tmp_path / "log.txt", IMAGES) == {
        3: Verdict(TIMEOUT, 20.4262),
        5: Verdict(UNKNOWN, 5.6389),
    }


CSVS = {
    "vnncomp": (
        "mnist,./model.onnx,./image_00003.vnnlib,1.5,unsat,20.25\n"
        "mnist,./model.onnx,./image_00005.vnnlib,1.5,timeout,60.0\n"
    ),
    "headings": (
        "instance,result,time\nimage_00003.vnnlib,unsat,20.25\nimage_00005.vnnlib,timeout,60\n"
    ),
    "numbers": "3, unsat, 20.25\n\n5, timeout, 60\n",
}


@pytest.mark.parametrize("text", CSVS.values(), ids=CSVS)
def test_csv_files(text, tmp_path):
    (tmp_path / "results.csv").write_text(text)
    result = read_verdicts(tmp_path / "results.csv", IMAGES)
    assert result == {3: Verdict(CERTIFIED, 20.25), 5: Verdict(TIMEOUT, 60.0)}


def test_seconds_need_not_be_there(tmp_path):
    (tmp_path / "results.csv").write_text("3,unknown\n5,sat,nan\n")
    assert read_verdicts(tmp_path / "results.csv", IMAGES) == {
        3: Verdict(UNKNOWN),
        5: Verdict(FALSIFIED),
    }


def test_a_folder_of_results(tmp_path):
    (tmp_path / "image_00003.txt").write_text(
        "sat\n((X_0  0.25)\n(X_1  1e-05)\n(Y_0  -1.0)\n(Y_1  2.0))"
    )
    (tmp_path / "image_00005.txt").write_text("unsat")
    (tmp_path / "image_00008.txt").write_text("")  # of a run that was killed
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "out.txt").write_bytes(
        pickle.dumps({"results": [["safe", 1.0]]}, protocol=4)
    )  # of the whole problem
    result = read_verdicts(tmp_path, IMAGES)
    assert result[3].status == FALSIFIED and torch.equal(
        result[3].point, torch.tensor([0.25, 1e-5])
    )
    assert result[5] == Verdict(CERTIFIED) and 8 not in result


@pytest.mark.parametrize(
    "rest", ["", "((X_1  0.5))", "((X_0  much))", "((X_0  0.5)\n(X_2  0.5))", "no"]
)
def test_a_point_that_is_not_whole_is_none(rest, tmp_path):
    (tmp_path / "image_00003.txt").write_text(f"sat\n{rest}")
    assert read_verdicts(tmp_path, IMAGES) == {3: Verdict(FALSIFIED)}


BAD = {
    "image": ("4,unsat\n", "line 1, is about image 4, which the problem does not have"),
    "word": ("3,maybe\n", "line 1, says 'maybe', which is no status"),
    "nothing_said": ("3\n", "says '', which is no status"),
    "no_image": ("3,unsat\nunsat\n", "line 2, names no image"),
    "contradiction": ("3,unsat\n3,sat\n", "line 2, contradicts what stands before about image 3"),
    "empty": ("", "holds no result"),
    "headings_only": ("image,result\n", "holds no result"),
    "row": (LOG.replace("vnnlib ID: 0", "vnnlib ID: 3"), "of instance 3; the problem has 3"),
    "log_word": (LOG.replace("unsafe-pgd", "fine"), "line 6, says 'fine'"),
}


@pytest.mark.parametrize("text, message", BAD.values(), ids=BAD)
def test_bad_files(text, message, tmp_path):
    (tmp_path / "results.txt").write_text(text)
    with pytest.raises(RecordsError, match=message):
        read_verdicts(tmp_path / "results.txt", IMAGES)


def test_a_later_decision_counts_more_than_a_timeout(tmp_path):
    (tmp_path / "results.csv").write_text("3,timeout\n3,unsat\n5,unsat\n5,timeout\n")
    assert {item.status for item in read_verdicts(tmp_path / "results.csv", IMAGES).values()} == {
        CERTIFIED
    }


def test_a_missing_file(tmp_path):
    with pytest.raises(RecordsError, match="there is no file or folder .*nowhere"):
        read_verdicts(tmp_path / "nowhere", IMAGES)


def test_a_pickle_is_not_read(tmp_path):
    (tmp_path / "out.txt").write_bytes(pickle.dumps({"results": [["safe", 1.0]]}, protocol=4))
    with pytest.raises(RecordsError, match="is no text; .* could run code: give the log"):
        read_verdicts(tmp_path / "out.txt", IMAGES)
