"""Accuracies from statuses, worked out by hand."""

import math

import pytest
import torch

from lirpa_multinorm import Certification, PerturbationL2Box, PerturbationLinf
from lirpa_multinorm.certification import CERTIFIED, FALSIFIED, MISCLASSIFIED, UNKNOWN

SETS = [PerturbationLinf(0.1), PerturbationL2Box(0.5)]


def certification(first, second):
    """From one letter per image and set."""
    names = {"c": CERTIFIED, "f": FALSIFIED, "u": UNKNOWN, "m": MISCLASSIFIED}
    status = [[names[letter] for letter in row] for row in (first, second)]
    return Certification(SETS, status, [["" for _ in row] for row in status], torch.zeros(2, len(first)))


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
    found = certification(first, second).summary()
    names = ("clean", "certified", "attacked", "certified_union", "attacked_union")
    assert found == {"n": len(first), **dict(zip(names, expected))}


def test_start_decide_and_tighten():
    result = Certification.started(SETS, torch.tensor([True, False, True, True]))
    assert result.status[0] == [UNKNOWN, MISCLASSIFIED, UNKNOWN, UNKNOWN] == result.status[1]
    assert result.method[0] == ["", "clean", "", ""] and result.margin.tolist() == [[-math.inf] * 4] * 2
    assert result.open(1).tolist() == [0, 2, 3]
    result.decide(1, torch.tensor([2]), CERTIFIED, "IBP")
    assert result.open(1).tolist() == [0, 3] and result.open(0).tolist() == [0, 2, 3]
    assert (result.status[1][2], result.method[1][2]) == (CERTIFIED, "IBP")
    result.tighten(0, torch.tensor([0, 3]), torch.tensor([-1.0, 2.0]))
    result.tighten(0, torch.tensor([3, 0]), torch.tensor([1.0, -0.5]))
    assert result.margin[0].tolist() == [-0.5, -math.inf, -math.inf, 2.0]


def test_nothing_open_gives_no_indices():
    result = Certification.started(SETS, torch.tensor([False, False]))
    assert result.open(0).shape == (0,) and result.open(0).dtype == torch.int64


def test_parts_are_joined_in_order():
    parts = [certification("cu", "fc"), certification("m", "m")]
    joined = Certification.concatenate(parts, SETS)
    assert joined.status == certification("cum", "fcm").status and joined.margin.shape == (2, 3)
    assert joined.perturbations == SETS


def test_is_status():
    assert certification("cm", "fc").is_status(CERTIFIED).tolist() == [[True, False], [False, True]]
