"""Bound alignment against loops over plain Python numbers."""

import math

import pytest
import torch

from lirpa_multinorm.errors import InvalidArgumentError
from lirpa_multinorm.losses import Alignment, bound_alignment
from tests.losses.slow_losses import alignment


def by_loops(target, other):
    """Mean over the proved rows of KL(q || r), in Python floats."""
    divergences = []
    for first, second in zip(target, other):
        if min(first) <= 0:
            continue
        q, r = ([1.0] + [math.exp(-margin) for margin in row] for row in (first, second))
        q, r = [value / sum(q) for value in q], [value / sum(r) for value in r]
        divergences.append(sum(a * math.log(a / b) for a, b in zip(q, r)))
    return sum(divergences) / len(divergences) if divergences else 0.0


def margins(rows=12, classes=4, seed=0):
    """Two sets of margins.

    About half of the first set's rows are proved, other ones than the second set's.
    """
    generator = torch.Generator().manual_seed(seed)
    first, second = (
        torch.randn(2, rows, classes - 1, generator=generator, dtype=torch.float64) * 2 + 2
    )
    return first.requires_grad_(), second.requires_grad_()


def slopes(rows, others, place, step=1e-6):
    """Gradient of :func:`by_loops` with regard to one of its arguments, by central differences."""
    arguments = [rows.tolist(), others.tolist()]
    result = torch.zeros_like(rows)
    for i, row in enumerate(arguments[place]):
        for j, value in enumerate(row):
            ends = []
            for moved in (value + step, value - step):
                arguments[place][i][j] = moved
                ends.append(by_loops(*arguments))
            arguments[place][i][j] = value
            result[i, j] = (ends[0] - ends[1]) / (2 * step)
    return result


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("rows, classes", [(12, 4), (1, 3), (5, 2), (40, 10)])
def test_value_is_the_formula(rows, classes, seed):
    first, second = margins(rows, classes, seed)
    expected = by_loops(first.tolist(), second.tolist())
    assert bound_alignment(first, second).item() == pytest.approx(expected, rel=1e-12, abs=1e-15)
    assert alignment(first, second).item() == pytest.approx(
        expected, rel=1e-12, abs=1e-15
    )  # of the other tests


@pytest.mark.parametrize("detach", [False, True])
def test_gradients_are_the_formulas(detach):
    """On both sides, or on the other norm's side alone."""
    first, second = margins()
    proved = (first > 0).all(1)
    assert (
        2 < proved.sum() < 10 and (proved != (second > 0).all(1)).any()
    )  # else the test would say less
    target, other = torch.autograd.grad(
        bound_alignment(first, second, detach), [first, second], allow_unused=True
    )
    assert torch.allclose(other, slopes(first, second, 1), atol=1e-8)
    if detach:
        assert target is None
    else:
        assert (
            torch.allclose(target, slopes(first, second, 0), atol=1e-8)
            and target.abs().max() > 1e-3
        )


def test_the_two_directions_differ():
    proved, other = torch.tensor([[0.5, 3.0]]), torch.tensor([[2.0, 0.1]])
    assert abs(bound_alignment(proved, other) - bound_alignment(other, proved)) > 0.01


def test_examples_that_are_not_proved_do_not_count():
    first, second = margins()
    proved = (first > 0).all(1)
    expected = bound_alignment(first[proved], second[proved])
    assert bound_alignment(first, second).item() == pytest.approx(expected.item(), rel=1e-12)
    target, other = torch.autograd.grad(bound_alignment(first, second), [first, second])
    assert (target[~proved] == 0).all() and (other[~proved] == 0).all()


def test_a_margin_of_zero_proves_nothing():
    target, other = torch.tensor([[0.0, 1.0]]), torch.tensor([[2.0, 1.0]])
    assert bound_alignment(target, other).item() == 0
    assert bound_alignment(target + 1e-6, other).item() > 0


def test_no_example_proved_is_zero_with_zero_gradients():
    first, second = margins()
    first = (first.detach() - 20).requires_grad_()
    value = bound_alignment(first, second)
    assert value.item() == 0
    assert all((item == 0).all() for item in torch.autograd.grad(value, [first, second]))


def test_equal_margins_are_zero():
    first, _ = margins()
    assert abs(bound_alignment(first, first.detach().clone()).item()) < 1e-15


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_margins_stay_finite(dtype):
    first = torch.tensor(
        [[1e4, 1e4], [1e-30, 500.0], [-1e4, 1e4], [1e3, 1.0]], dtype=dtype
    ).requires_grad_()
    second = torch.tensor(
        [[-1e4, 1e4], [-1e4, 1e3], [1e4, -1e4], [-80.0, 200.0]], dtype=dtype
    ).requires_grad_()
    value = bound_alignment(first, second)
    assert torch.isfinite(value)
    assert all(torch.isfinite(item).all() for item in torch.autograd.grad(value, [first, second]))


def test_other_shapes_are_refused():
    with pytest.raises(
        InvalidArgumentError, match=r"other: shape \(3, 2\) beside target's \(4, 2\)"
    ):
        bound_alignment(torch.zeros(4, 2), torch.zeros(3, 2))


# --- which norms are aligned ----------------------------------------------------------------------

INF = math.inf
PAIRS = {
    "l2": (2, [INF, 2], [(1, 0)]),
    "linf": ("inf", [INF, 2], [(0, 1)]),
    "number": (INF, [2, INF], [(1, 0)]),
    "word": ("2", [2, INF], [(0, 1)]),
    "both": ("both", [INF, 2], [(0, 1), (1, 0)]),
    "three": (1, [INF, 2, 1], [(2, 0), (2, 1)]),
    "middle": (2, [INF, 2, 1], [(1, 0), (1, 2)]),
    "all_of_three": ("both", [1, 2, INF], [(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)]),
}


@pytest.mark.parametrize("target, norms, pairs", PAIRS.values(), ids=PAIRS)
def test_every_other_norm_follows_the_target(target, norms, pairs):
    assert sorted(Alignment(target=target).pairs(norms)) == pairs


BAD = {
    "negative": ({"eta": -1}, "eta=-1"),
    "nan": ({"eta": float("nan")}, "eta=nan"),
    "infinite": ({"eta": INF}, "eta=inf"),
    "word": ({"target": "l2"}, "target='l2'"),
    "none": ({"target": None}, "target=None"),
    "list": ({"target": [2]}, r"target=\[2\]"),
}


@pytest.mark.parametrize("arguments, match", BAD.values(), ids=BAD)
def test_unusable_settings_are_refused(arguments, match):
    with pytest.raises(InvalidArgumentError, match=match):
        Alignment(**arguments)


@pytest.mark.parametrize(
    "target, norms, match",
    [
        (2, [2], "1 set; .*needs two"),
        (1, [INF, 2], "target=1.0 is not"),
        (float("nan"), [INF, 2], "target=nan is not"),
        ("both", [INF], "1 set"),
    ],
)
def test_sets_that_cannot_be_aligned_are_refused(target, norms, match):
    with pytest.raises(InvalidArgumentError, match=match):
        Alignment(target=target).pairs(norms)
