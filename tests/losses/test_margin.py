"""From margin bounds to a loss."""

import math

import pytest
import torch
import torch.nn.functional as F

from lirpa_multinorm.losses import margin_cross_entropy, robust_logits

EXTREME = {
    "zero": [0.0, 0.0],
    "huge": [1e3, 1e4],
    "hugely_negative": [-1e3, -1e4],
    "mixed": [1e3, -1e3],
    "tiny": [1e-300, -1e-300],
    "equal": [-2.5, -2.5],
}


def exact(margins):
    """log(1 + sum exp(-lb)) with the largest exponent taken out, in Python floats."""
    top = max(0.0, *(-m for m in margins))
    return top + math.log(math.exp(-top) + sum(math.exp(-m - top) for m in margins))


def test_margin_cross_entropy_is_the_formula():
    lower = torch.randn(50, 9, dtype=torch.float64) * 3
    expected = torch.log(1 + torch.exp(-lower).sum(1))
    assert torch.allclose(margin_cross_entropy(lower), expected, rtol=1e-14, atol=0)


@pytest.mark.parametrize("margins", EXTREME.values(), ids=EXTREME)
def test_margin_cross_entropy_of_extreme_bounds(margins):
    lower = torch.tensor([margins], dtype=torch.float64, requires_grad=True)
    value = margin_cross_entropy(lower)
    assert value.item() == pytest.approx(exact(margins), rel=1e-14)
    value.sum().backward()
    assert torch.isfinite(lower.grad).all() and (lower.grad <= 0).all()


def test_gradient_is_minus_the_softmax():
    lower = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    margin_cross_entropy(lower).sum().backward()
    odds = torch.exp(-lower.detach())
    assert torch.allclose(lower.grad, -odds / (1 + odds.sum(1, keepdim=True)), rtol=1e-12)


def test_robust_logits_put_the_true_class_first():
    logits = robust_logits(torch.tensor([[1.0, -2.0], [3.0, 4.0]]))
    assert logits.tolist() == [[0.0, -1.0, 2.0], [0.0, -3.0, -4.0]]


def test_loss_of_point_bounds_is_the_cross_entropy_of_the_logits():
    z, y = torch.randn(6, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 3, 0])
    lower = torch.stack(
        [
            torch.stack([row[label] - row[k] for k in range(4) if k != label])
            for row, label in zip(z, y)
        ]
    )
    assert torch.allclose(
        margin_cross_entropy(lower), F.cross_entropy(z, y, reduction="none"), rtol=1e-12
    )


def test_two_classes():
    assert margin_cross_entropy(torch.tensor([[0.0]])).item() == pytest.approx(math.log(2))
