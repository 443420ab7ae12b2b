"""Results of alpha-beta-CROWN decide what is open in the records, and nothing else."""

import json
import math
import warnings

import pytest
import torch
from torch import nn

from lirpa_multinorm import (
    Certification,
    CertifySettings,
    PerturbationL2Box,
    PerturbationLinf,
    certify_to,
    read_records,
)
from lirpa_multinorm.abcrown import export_problems, import_results
from lirpa_multinorm.abcrown.vnnlib import box_of
from lirpa_multinorm.certification import (
    CERTIFIED,
    ERROR,
    FALSIFIED,
    MISCLASSIFIED,
    NOT_RUN,
    TIMEOUT,
    UNKNOWN,
    merge_records,
    record_header,
    record_lines,
    records,
)
from lirpa_multinorm.errors import OutputFolderError, RecordsError
from lirpa_multinorm.utils.files import exclusive

SETS = [PerturbationLinf(0.2), PerturbationL2Box(0.3)]
SETTINGS = CertifySettings(methods=["IBP"], attack=None)
X = torch.tensor(
    [[0.9, 0.1], [0.5, 0.4], [0.5, 0.4], [0.4, 0.5], [0.9, 0.1], [0.5, 0.4], [0.5, 0.4]]
)
Y = torch.zeros(7, dtype=torch.long)
STATUS = [CERTIFIED, UNKNOWN, FALSIFIED, MISCLASSIFIED, TIMEOUT, UNKNOWN, ERROR]
PROVER = "alpha-beta-CROWN"


def identity():
    """Classifies by the larger pixel: at 0.2 images 0 and 4 are robust, the others are not."""
    model = nn.Sequential(nn.Linear(2, 2, bias=False))
    model[0].weight.data.copy_(torch.eye(2))
    return model


@pytest.fixture
def run(tmp_path):
    """Records made by hand, and the problem that l_inf is."""
    pytest.importorskip("onnx")
    margin = torch.tensor(
        [[0.4, -0.3, -math.inf, -math.inf, -0.1, -0.3, -math.inf], [0.2] * 7], dtype=torch.float64
    )
    result = Certification(
        SETS,
        [STATUS, [CERTIFIED] * 3 + [MISCLASSIFIED] + [CERTIFIED] * 3],
        [["IBP", "", "PGD", "clean", "", "", ""], ["IBP"] * 7],
        margin,
        torch.tensor([0, 0, 0, 1, 0, 0, 0]),
        torch.tensor([True] * 3 + [False] + [True] * 3),
        torch.ones(7, dtype=torch.float64),
        {(0, 2): torch.tensor([0.3, 0.6])},
        {6: "memory"},
    )
    write(tmp_path / "run" / "records.jsonl", result)
    (tmp_path / "run").joinpath("problem").mkdir()
    return tmp_path / "run"


def write(path, found, left=()):
    header = record_header.header_of(identity(), X, Y, SETS, SETTINGS)
    records.write_records(
        path, header, {i: record_lines.line_of(found, i, i, 0) for i in range(7) if i not in left}
    )


def taken(run, *lines, place=0, **changes):
    """Import results given as lines of a CSV file."""
    (run / "results.csv").write_text("\n".join(lines) + "\n")
    return import_into(run, run / "results.csv", place, **changes)


def import_into(run, results, place=0, model=None, x=X, y=Y):
    problem = export_problems(run / "problem", identity(), X, Y, SETS)[place]
    return import_results(run, problem, results, model or identity(), x, y)


def line(run, image):
    return json.loads((run / "records.jsonl").read_text().splitlines()[image + 1])


# --- what changes ---------------------------------------------------------------------------------


def test_a_proof_certifies_what_is_open(run):
    before = [line(run, image) for image in range(7)]
    result = taken(run, "4,unsat,2.5")
    assert (result.status[0][4], result.method[0][4], float(result.margin[0, 4])) == (
        CERTIFIED,
        PROVER,
        0.0,
    )
    assert float(result.seconds[4]) == 3.5 and line(run, 4)["sets"][1] == before[4]["sets"][1]
    assert [line(run, image) for image in range(7) if image != 4] == [
        item for item in before if item["index"] != 4
    ]
    assert read_records(run).summary() == result.summary()


def test_undecided_results_are_told_apart(run):
    result = taken(run, "1,timeout,360", "4,unknown", "5,unknown")
    assert [result.status[0][image] for image in (1, 4, 5)] == [TIMEOUT, UNKNOWN, UNKNOWN]
    assert [result.method[0][image] for image in (1, 4, 5)] == ["", "", ""] and float(
        result.seconds[1]
    ) == 1
    assert float(result.margin[0, 4]) == -0.1  # what bounds the cascade found


def test_an_error_is_gone_once_the_verifier_decides(run):
    result = taken(run, "6,unknown")
    assert result.status[0][6] == UNKNOWN and not result.errors


def test_a_log_of_the_verifier(run):
    rule = "%" * 35
    (run / "log.txt").write_text(
        f"""no customized start/end sample, testing all samples in instances.csv
Internal results will be saved to out.txt.

 {rule} idx: 0, vnnlib ID: 1 {rule}
Using vnnlib image_00001.vnnlib
verified_status unsafe-pgd
verified_success True
Result: unsafe-pgd in 0.0151 seconds

 {rule} idx: 1, vnnlib ID: 4 {rule}
verified with init bound!
Result: safe-incomplete in 0.4036 seconds

 {rule} idx: 2, vnnlib ID: 5 {rule}
No domains left, verification finished!
Result: unknown in 5.6389 seconds
############# Summary #############
safe-incomplete (total 1), index: [1]
"""
    )
    with pytest.warns(
        UserWarning, match=r"1 of 3 images are falsified without .*\(a log holds none; .*\): 1$"
    ):
        result = import_into(run, run / "log.txt")
    assert [result.status[0][image] for image in (1, 4, 5)] == [UNKNOWN, CERTIFIED, UNKNOWN]
    assert result.method[0][4] == PROVER and float(result.seconds[4]) == 1.4036


def results_of(run, image, *pixels):
    folder = run / "results"
    folder.mkdir(exist_ok=True)
    (folder / f"image_{image:05d}.txt").write_text(
        "sat\n(" + "\n".join(f"(X_{i}  {item})" for i, item in enumerate(pixels)) + "\n(Y_0  1.0))"
    )
    return folder


def test_a_counterexample_that_holds_falsifies(run):
    result = import_into(run, results_of(run, 1, 0.35, 0.55))
    assert (result.status[0][1], result.method[0][1]) == (FALSIFIED, PROVER)
    assert torch.equal(result.adversarial[0, 1], torch.tensor([0.35, 0.55]))


def test_a_counterexample_at_the_ends_of_the_box_holds(run):
    lower, upper = (
        end.flatten() for end in box_of(X[1:2], SETS[0])
    )  # rounded outwards, and there the attack stops
    assert float(upper[1]) > float(X[1, 1].double() + 0.2)
    result = import_into(run, results_of(run, 1, lower[0].numpy(), upper[1].numpy()))
    assert result.status[0][1] == FALSIFIED


@pytest.mark.parametrize(
    "pixels",
    [(0.0, 0.9), (0.55, 0.5), (0.35,), (), ("nan", "nan")],
    ids=["outside", "does_not_break", "cut", "none", "nan"],
)
def test_a_counterexample_that_does_not_hold_leaves_it_unknown(pixels, run):
    with pytest.warns(
        UserWarning, match="1 of 1 images are falsified without a counterexample .*: 1$"
    ):
        result = import_into(run, results_of(run, 1, *pixels))
    assert (result.status[0][1], result.method[0][1]) == (UNKNOWN, "") and (
        0,
        1,
    ) not in result.adversarial


def test_decided_pairs_stay(run):
    before = (run / "records.jsonl").read_bytes()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        taken(run, "0,unsat", "2,sat", "3,sat", "0,timeout", "2,unknown")
    with pytest.warns(UserWarning, match="images are falsified without a counterexample .*: 0$"):
        taken(run, "0,sat")
    assert (run / "records.jsonl").read_bytes() == before


def test_the_other_set_has_its_own_results(run):
    result = taken(run, "1,timeout", place=1)
    assert result.status[1][1] == CERTIFIED and result.status[0][1] == UNKNOWN


def test_importing_twice_changes_nothing_more(run):
    taken(run, "1,timeout,5", "4,unsat,2.5")
    before = (run / "records.jsonl").read_bytes()
    taken(run, "1,timeout,5", "4,unsat,2.5")
    assert (run / "records.jsonl").read_bytes() == before


def test_images_without_a_record_are_left_out(run):
    write(run / "records.jsonl", Certification.not_run(SETS, 7), left=[4])
    with pytest.warns(
        UserWarning,
        match="2 of 2 images have no record yet and are left out; certify them first: 4, 5",
    ):
        result = taken(run, "4,unsat", "5,unsat")
    assert result.status[0][4:6] == [NOT_RUN, NOT_RUN]


def test_a_resumed_run_keeps_what_was_imported(tmp_path):
    pytest.importorskip("onnx")
    result = certify_to(tmp_path, identity(), X, Y, SETS, SETTINGS)
    assert result.status[0][1] == UNKNOWN
    (tmp_path / "results.csv").write_text("1,timeout\n")
    problem = export_problems(tmp_path / "problem", identity(), X, Y, SETS)[0]
    import_results(tmp_path, problem, tmp_path / "results.csv", identity(), X, Y)
    assert (
        certify_to(tmp_path, identity(), X, Y, SETS, SETTINGS, resume=True).status[0][1] == TIMEOUT
    )


def test_a_later_merge_of_shards_keeps_what_was_imported(run):
    (run / "records.0-of-1.jsonl").write_bytes((run / "records.jsonl").read_bytes())
    taken(run, "4,unsat")
    merge_records(run)
    assert read_records(run).method[0][4] == PROVER


# --- what goes wrong ------------------------------------------------------------------------------


@pytest.mark.parametrize("image, status", [(2, FALSIFIED), (3, MISCLASSIFIED)])
def test_a_proof_of_what_is_broken_is_refused(image, status, run):
    before = (run / "records.jsonl").read_bytes()
    with pytest.raises(
        RecordsError, match=f"image {image} is {status} in the records and certified in the results"
    ):
        taken(run, "4,unsat", f"{image},unsat")
    assert (run / "records.jsonl").read_bytes() == before  # also image 4


def test_a_counterexample_to_what_is_certified_is_refused(run):
    path = run / "records.jsonl"
    path.write_text(
        path.read_text().replace(
            '"status": "unknown", "method": "", "margin": -0.3',
            '"status": "certified", "method": "IBP", "margin": 0.3',
        )
    )
    with pytest.raises(
        RecordsError, match="image 1 is certified in the records and falsified in the results"
    ):
        import_into(run, results_of(run, 1, 0.35, 0.55))


def other_model():
    model = identity()
    model[0].weight.data.mul_(2)
    return model


WRONG = {
    "model": ({"model": other_model()}, "problem: its model_sha256"),
    "images": ({"x": X + 0.01}, "data_sha256"),
    "labels": ({"y": Y + 1}, "data_sha256"),
    "fewer": ({"x": X[:3], "y": Y[:3]}, "data_sha256"),
}


@pytest.mark.parametrize("changes, message", WRONG.values(), ids=WRONG)
def test_another_certification(changes, message, run):
    with pytest.raises(
        RecordsError, match=f"{message}.*give the checkpoint and images that were certified"
    ):
        taken(run, "4,unsat", **changes)


def test_records_against_other_sets(run, tmp_path):
    (problem,) = export_problems(tmp_path / "other", identity(), X, Y, [PerturbationLinf(0.1)])
    (run / "results.csv").write_text("4,unsat\n")
    with pytest.raises(
        RecordsError,
        match=(
            "it is about the l_inf ball of radius 0.1 .*; the records are against l_inf "
            "ball of radius 0.2"
        ),
    ):
        import_results(run, problem, run / "results.csv", identity(), X, Y)


@pytest.mark.parametrize("content", [None, "", "[]", '{"images": ["a"]}', "\xff"])
def test_a_folder_that_is_no_problem(content, run, tmp_path):
    if content is not None:
        (tmp_path / "problem.json").write_text(content, encoding="latin-1")
    with pytest.raises(RecordsError, match="holds no problem.json that can be read"):
        import_results(run, tmp_path, run, identity(), X, Y)


def test_no_records(run):
    (run / "records.jsonl").unlink()
    with pytest.raises(RecordsError, match="holds no records.jsonl; certify first"):
        taken(run, "4,unsat")
    (run / "records.jsonl").write_text("no header\n")
    with (
        pytest.warns(UserWarning, match="damaged"),
        pytest.raises(RecordsError, match="does not start with"),
    ):
        taken(run, "4,unsat")


def test_another_process_is_at_work(run):
    with (
        exclusive(run / "records.jsonl"),
        pytest.raises(OutputFolderError, match="another process"),
    ):
        taken(run, "4,unsat")


def test_only_the_verifier_may_certify_without_a_bound(run):
    path = run / "records.jsonl"
    taken(run, "4,unsat")
    path.write_text(
        path.read_text().replace(
            f'"method": "{PROVER}", "margin": 0.0', '"method": "IBP", "margin": 0.0'
        )
    )
    with pytest.warns(UserWarning, match="1 damaged line left out"):
        assert read_records(run).status[0][4] == NOT_RUN
