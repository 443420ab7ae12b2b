"""Accuracies from statuses, worked out by hand."""

import math

import pytest
import torch

from lirpa_multinorm import Certification, PerturbationL2Box, PerturbationLinf
from lirpa_multinorm.certification import (
    CERTIFIED,
    ERROR,
    FALSIFIED,
    MISCLASSIFIED,
    NOT_RUN,
    TIMEOUT,
    UNKNOWN,
    CertifiedAccuracy,
    certified_accuracy,
)
from lirpa_multinorm.errors import InvalidArgumentError

SETS = [PerturbationLinf(0.1), PerturbationL2Box(0.5)]


def certification(first, second):
    """From one letter per image and set."""
    names = {
        "c": CERTIFIED,
        "f": FALSIFIED,
        "u": UNKNOWN,
        "m": MISCLASSIFIED,
        "t": TIMEOUT,
        "e": ERROR,
        "n": NOT_RUN,
    }
    status = [[names[letter] for letter in row] for row in (first, second)]
    return Certification(
        SETS, status, [["" for _ in row] for row in status], torch.zeros(2, len(first))
    )


# statuses per set -> (clean, certified, attacked, certified_union, attacked_union)
CASES = {
    "all_certified": ("cc", "cc", (1, [1, 1], [1, 1], 1, 1)),
    "never_both": ("ccff", "ffcc", (1, [0.5, 0.5], [0.5, 0.5], 0, 0)),
    "union_is_per_image": ("ccfu", "cfcc", (1, [0.5, 0.75], [0.75, 0.75], 0.25, 0.5)),
    "wrong": ("mmcu", "mmcc", (0.5, [0.25, 0.5], [0.5, 0.5], 0.25, 0.5)),
    "open": ("uuuu", "uuuu", (1, [0, 0], [1, 1], 0, 1)),
    "single": ("m", "m", (0, [0, 0], [0, 0], 0, 0)),
}


@pytest.mark.parametrize("first, second, expected", CASES.values(), ids=CASES)
def test_summary(first, second, expected):
    result = certification(first, second).summary()
    names = ("clean", "certified", "attacked", "certified_union", "attacked_union")
    assert {name: result[name] for name in ("n", *names)} == {
        "n": len(first),
        **dict(zip(names, expected)),
    }


def test_predict_decide_and_close():
    result = Certification.not_run(SETS, 4)
    assert result.status == [[NOT_RUN] * 4] * 2 and result.margin.tolist() == [[-math.inf] * 4] * 2
    right = torch.tensor([True, False, True])
    result.predict(torch.tensor([0, 1, 2]), torch.tensor([5, 6, 7]), right)
    assert result.status[0] == [UNKNOWN, MISCLASSIFIED, UNKNOWN, NOT_RUN] == result.status[1]
    assert result.method[0] == ["", "clean", "", ""] and result.prediction.tolist() == [5, 6, 7, -1]
    assert result.correct.tolist() == [True, False, True, False] and result.open(1).tolist() == [
        0,
        2,
    ]
    result.decide(1, torch.tensor([2]), CERTIFIED, "IBP")
    assert result.open(1).tolist() == [0] and result.open(0).tolist() == [0, 2]
    assert (result.status[1][2], result.method[1][2]) == (CERTIFIED, "IBP")
    result.close(2, TIMEOUT)
    assert (result.status[0][2], result.status[1][2]) == (TIMEOUT, CERTIFIED)


def test_nothing_open_gives_no_indices():
    result = Certification.not_run(SETS, 2)
    result.predict(torch.arange(2), torch.zeros(2, dtype=torch.long), torch.tensor([False, False]))
    assert result.open(0).shape == (0,) and result.open(0).dtype == torch.int64


def test_parts_are_joined_in_order():
    parts = [certification("cu", "fc"), certification("m", "m")]
    joined = Certification.concatenate(parts, SETS)
    assert joined.status == certification("cum", "fcm").status and joined.margin.shape == (2, 3)
    assert joined.perturbations == SETS


def test_is_status():
    assert certification("cm", "fc").is_status(CERTIFIED).tolist() == [[True, False], [False, True]]


# --- the metric -----------------------------------------------------------------------------------


def test_statuses_that_are_no_answer_certify_nothing():
    result = certification("ctenn", "cccnn").summary()
    assert (result["certified"], result["certified_union"]) == ([0.2, 0.6], 0.2)
    assert (result["clean"], result["attacked_union"]) == (
        0.4,
        0.4,
    )  # of errors and what was not run nothing is known
    assert result["counts"][0] == {
        CERTIFIED: 1,
        FALSIFIED: 0,
        UNKNOWN: 0,
        MISCLASSIFIED: 0,
        TIMEOUT: 1,
        ERROR: 1,
        NOT_RUN: 2,
    }
    assert result["not_run"] == [3, 4]


def test_intervals_and_sets_belong_to_the_result():
    result = certification("cccccccccc", "ffffffffff").summary()
    assert result["intervals"]["certified"][0] == pytest.approx(
        (0.722465, 1.0), abs=1e-5
    )  # Wilson, 10 of 10
    assert result["intervals"]["certified_union"] == pytest.approx((0.0, 0.277535), abs=1e-5)
    assert result["sets"] == [
        "l_inf ball of radius 0.1 within [0, 1]",
        "l_2 ball of radius 0.5 within [0, 1]",
    ]


def test_accumulating_equals_the_whole():
    parts = [certification("cufn", "fcfn"), certification("m", "m"), certification("tn", "cn")]
    metric = CertifiedAccuracy()
    for part in parts:
        metric.update(part)
    whole = certified_accuracy(Certification.concatenate(parts, SETS))
    assert metric.compute() == whole and whole["not_run"] == [3, 6] and metric.compute() == whole
    metric.reset()
    metric.update(parts[1])
    assert metric.compute() == parts[1].summary()


def test_a_metric_of_nothing_or_of_different_sets_is_refused():
    metric = CertifiedAccuracy()
    with pytest.raises(InvalidArgumentError, match="call update"):
        metric.compute()
    metric.update(certification("c", "c"))
    other = Certification(
        [PerturbationLinf(0.1, clip=None)], [[CERTIFIED]], [[""]], torch.zeros(1, 1)
    )
    with pytest.raises(InvalidArgumentError, match=r"plain l_inf ball.*reset\(\)"):
        metric.update(other)


def test_joined_parts_keep_examples_and_messages_at_their_images():
    first, second = certification("cu", "fc"), certification("me", "me")
    first.adversarial[1, 0], second.errors[1] = torch.ones(3), "NaN"
    joined = Certification.concatenate([first, second], SETS)
    assert list(joined.adversarial) == [(1, 0)] and joined.errors == {3: "NaN"}
    joined = Certification.concatenate([second, first], SETS)
    assert list(joined.adversarial) == [(1, 2)] and joined.errors == {1: "NaN"}
