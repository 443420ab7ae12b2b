"""Lines of records: what goes in comes out, and what cannot be a record is none."""

import json
import math
import warnings

import pytest
import torch

from lirpa_multinorm import (
    Certification,
    CertifySettings,
    PerturbationL2Box,
    PerturbationLinf,
    read_records,
)
from lirpa_multinorm.certification import (
    CERTIFIED,
    ERROR,
    FALSIFIED,
    METHODS,
    MISCLASSIFIED,
    NOT_RUN,
    TIMEOUT,
    UNKNOWN,
    record_header,
    record_lines,
    records,
)
from lirpa_multinorm.errors import InvalidArgumentError, RecordsError

SETS = [
    PerturbationLinf(torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5]), clip=None),
    PerturbationL2Box(0.5, clip=(torch.tensor([-1.0, -2.0]), torch.tensor([1.0, 2.0]))),
]
LABELS = [3, 1, 0, 2, 2]


def found(dtype=torch.float32):
    """Every status, an adversarial example of each number type, and a bound float32 cannot hold."""
    margin = torch.tensor(
        [[0.1, -math.inf, -0.25, -math.inf, -1e-3], [1 + 1e-15, -math.inf, 3e-300, 0.5, -math.inf]],
        dtype=torch.float64,
    )
    status = [
        [CERTIFIED, MISCLASSIFIED, TIMEOUT, FALSIFIED, ERROR],
        [CERTIFIED, MISCLASSIFIED, CERTIFIED, UNKNOWN, FALSIFIED],
    ]
    method = [["IBP", "clean", "", "PGD", ""], ["CROWN", "clean", "CROWN", "", "PGD"]]
    points = {(0, 3): torch.rand(1, 2, 2, dtype=dtype), (1, 4): torch.rand(1, 2, 2, dtype=dtype)}
    return Certification(
        SETS,
        status,
        method,
        margin,
        torch.tensor([3, 0, 0, 2, 2]),
        torch.tensor([True, False, True, True, True]),
        torch.arange(5.0, dtype=torch.float64),
        points,
        {4: "NaNBoundError: \u201cNaN\u201d\nin two lines"},
    )


def header(**changes):
    x, y = torch.rand(5, 1, 2, 2), torch.tensor(LABELS)
    return {
        **record_header.header_of(torch.nn.Linear(4, 4), x, y, SETS, CertifySettings()),
        **changes,
    }


def written(path, certification):
    lines = {i: record_lines.line_of(certification, i, i, LABELS[i]) for i in range(5)}
    records.write_records(path, header(), lines)
    return path


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_everything_comes_back_exactly(dtype, tmp_path):
    single = found(dtype)
    other = read_records(written(tmp_path / "records.jsonl", single))
    assert (
        other.status == single.status
        and other.method == single.method
        and other.errors == single.errors
    )
    for name in ("margin", "prediction", "correct", "seconds"):
        assert torch.equal(getattr(other, name), getattr(single, name)), name
    assert other.adversarial.keys() == single.adversarial.keys()
    for key, point in single.adversarial.items():
        assert torch.equal(other.adversarial[key], point) and other.adversarial[key].dtype == dtype
    assert [each.title() for each in other.perturbations] == [each.title() for each in SETS]
    assert torch.equal(other.perturbations[0].eps, SETS[0].eps)


def test_lines_are_plain_json(tmp_path):
    lines = written(tmp_path / "records.jsonl", found()).read_text().splitlines()
    assert len(lines) == 6  # a message of two lines is one line of the file
    fourth = json.loads(lines[4])
    assert (fourth["index"], fourth["label"], fourth["prediction"], fourth["clean"]) == (
        3,
        2,
        2,
        True,
    )
    assert fourth["sets"][0]["adversarial"]["shape"] == [1, 2, 2]
    assert fourth["sets"][0]["margin"] == "-Infinity" and fourth["sets"][1]["adversarial"] is None


def spoiled(**changes):
    return lambda line: {**line, **changes}


def in_set(**changes):
    return lambda line: {**line, "sets": [{**line["sets"][0], **changes}, *line["sets"][1:]]}


def example(shape, dtype, data):
    return in_set(status=FALSIFIED, adversarial={"shape": shape, "dtype": dtype, "data": data})


NO_RECORD = {
    "index_too_large": spoiled(index=5),
    "negative_index": spoiled(index=-1),
    "index_text": spoiled(index="1"),
    "no_sets": spoiled(sets=[]),
    "a_set_too_few": lambda line: {**line, "sets": line["sets"][:1]},
    "seconds": spoiled(seconds=math.nan),
    "clean": spoiled(clean="yes"),
    "class": spoiled(prediction=None),
    "unknown_status": in_set(status="robust"),
    "nan_margin": in_set(margin="NaN"),
    "margin_text": in_set(margin="much"),
    "certified_at_zero": in_set(margin=0.0),
    "certified_below_zero": in_set(margin=-1.0),
    "certified_though_wrong": spoiled(clean=False),
    "falsified_without_example": in_set(status=FALSIFIED),
    "no_message": in_set(status=ERROR),
    "example_cut": example([2], "float32", "AAAA"),
    "example_type": example([1], "object", "AAAA"),
    "example_shape": example([2], "float32", "AAAAAA=="),
    "example_text": example([1], "float32", "?"),
    "missing": lambda line: {key: value for key, value in line.items() if key != "sets"},
    "a_list": lambda line: [line],
    "a_number": lambda line: 7,
    "null": lambda line: None,
}


@pytest.mark.parametrize("spoil", NO_RECORD.values(), ids=NO_RECORD)
def test_what_cannot_be_a_record_is_left_out(spoil, tmp_path):
    path = written(tmp_path / "records.jsonl", found())
    first, second, *rest = path.read_text().splitlines(keepends=True)
    path.write_text("".join([first, json.dumps(spoil(json.loads(second))) + "\n", *rest]))
    with pytest.warns(
        UserWarning, match=r"records.jsonl: 1 damaged line left out, 4 whole records kept"
    ):
        loaded = records.load_records(path)
    assert sorted(loaded.lines) == [1, 2, 3, 4] and not loaded.tidy
    with pytest.warns(UserWarning):
        assert [row[0] for row in read_records(path).status] == [NOT_RUN, NOT_RUN]


def test_the_first_record_of_an_image_counts_unless_it_was_not_run(tmp_path):
    path = written(tmp_path / "records.jsonl", found())
    head, *lines = path.read_text().splitlines()
    left = record_lines.line_of(Certification.not_run(SETS, 5), 2, 2, 0)
    changed = json.dumps({**json.loads(lines[1]), "seconds": 77.0})
    path.write_text(
        "\n".join([head, json.dumps(json.loads(records.jsonl([left]))), *lines, changed]) + "\n"
    )
    loaded = records.load_records(path)
    assert (
        loaded.lines[1]["seconds"] == 1.0
        and record_lines.is_run(loaded.lines[2])
        and not loaded.tidy
    )
    assert loaded.dropped == 0


@pytest.mark.parametrize("content", ["", "{}\n", '{"format": 99}\n', "no json\n", "[1]\n"])
def test_a_file_without_header_is_no_file_of_records(content, tmp_path):
    (tmp_path / "records.jsonl").write_text(content)
    with (
        pytest.raises(RecordsError, match="does not start with the header"),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")  # the damaged lines
        read_records(tmp_path)


def test_a_missing_file(tmp_path):
    with pytest.raises(RecordsError, match="there is no file.*records.jsonl"):
        read_records(tmp_path)


def test_digests_see_names_types_shapes_and_values():
    w = torch.arange(4.0)
    every = [
        [("w", w)],
        [("v", w)],
        [("w", w.double())],
        [("w", w.view(2, 2))],
        [("w", w + 1)],
        [("w", w), ("b", w)],
        [("w", w.to(torch.bfloat16))],
        [("w", torch.tensor(3))],
        [("w", "extra state")],
        [("w", w[:0])],
    ]
    assert len({record_header.digest(item) for item in every}) == len(every)
    assert record_header.digest([("w", torch.arange(8.0)[::2].clone())]) == record_header.digest(
        [("w", torch.arange(8.0)[::2])]
    )


def test_a_header_says_what_determines_the_results():
    single = header()
    assert (
        set(record_header.IDENTITY) <= set(single)
        and single["n"] == 5
        and "torch" in single["environment"]
    )
    assert [each["title"] for each in single["sets"]] == [
        "plain l_inf ball of radius 0.1 to 0.5",
        "l_2 ball of radius 0.5 within [-2, 2]",
    ]
    assert (
        single["settings"]["methods"] == list(METHODS) and len(single["settings"]["attacks"]) == 2
    )
    assert "total_time_limit" not in single["settings"] and single["settings"]["time_limit"] is None


def test_settings_that_cannot_be_written_are_refused():
    with pytest.raises(InvalidArgumentError, match="cannot be written as JSON"):
        record_header.header_of(
            torch.nn.Linear(2, 2),
            torch.rand(1, 2),
            torch.tensor([0]),
            SETS[1:],
            CertifySettings(bound_opts={"hook": print}),
        )
