"""Specification matrices."""

import pytest
import torch

from lirpa_multinorm import margin_matrix
from lirpa_multinorm.bounds.margins import check_labels
from lirpa_multinorm.errors import InvalidArgumentError


@pytest.mark.parametrize("classes", [2, 3, 10], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_rows_are_the_differences(classes, dtype):
    labels = torch.arange(classes).repeat(2)
    logits = torch.randn(2 * classes, classes, dtype=dtype)
    C = margin_matrix(labels, classes, dtype)
    assert C.shape == (2 * classes, classes - 1, classes) and C.dtype == dtype
    margins = C.matmul(logits.unsqueeze(-1)).squeeze(-1)
    for row, label, margin in zip(logits, labels.tolist(), margins):
        others = [k for k in range(classes) if k != label]
        assert torch.allclose(margin, row[label] - row[others])


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.uint8], ids=str)
def test_integer_types(dtype):
    C = margin_matrix(torch.tensor([2, 0], dtype=dtype), 3)
    assert C.tolist() == [
        [[-1.0, 0.0, 1.0], [0.0, -1.0, 1.0]],
        [[1.0, -1.0, 0.0], [1.0, 0.0, -1.0]],
    ]


def test_one_class_has_no_margin():
    assert margin_matrix(torch.tensor([0]), 1).shape == (1, 0, 1)


BAD = {
    "too_large": (torch.tensor([0, 3]), "^labels run from 0 to 3; the model has 3 outputs.*0 to 2"),
    "negative": (torch.tensor([-1, 0]), "^labels run from -1"),
    "float": (
        torch.tensor([0.0, 1.0]),
        "^labels must be an integer tensor, found torch.float32; .*labels.long",
    ),
    "bool": (torch.tensor([True, False]), "^labels must be an integer tensor, found torch.bool"),
    "list": ([0, 1], "^labels must be an integer tensor, found list"),
    "none": (None, "^labels must be an integer tensor, found NoneType"),
    "scalar": (torch.tensor(1), "^labels has shape"),
    "matrix": (torch.tensor([[0, 1]]), "^labels has shape"),
}


@pytest.mark.parametrize("labels,message", BAD.values(), ids=BAD)
def test_bad_labels(labels, message):
    with pytest.raises(InvalidArgumentError, match=message):
        margin_matrix(labels, 3)


def test_labels_of_another_batch():
    with pytest.raises(InvalidArgumentError, match=r"^labels has shape \(2,\); expected \(3,\)"):
        check_labels(torch.tensor([0, 1]), 3, 3)
