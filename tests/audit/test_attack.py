"""The audit's attack, on sets and bounds whose violation is known by hand."""

import math

import pytest
import torch
from torch import nn

from lirpa_multinorm import PerturbationL2Box, PerturbationLinf
from lirpa_multinorm.audit import largest_violation

X = torch.tensor([[0.5, 0.5], [0.4, 0.6]])


def test_bounds_that_hold_are_not_violated():
    ball = PerturbationLinf(0.1)
    assert largest_violation(nn.Identity(), X, ball, (X - 0.1, X + 0.1)) == pytest.approx(
        0, abs=1e-6
    )
    assert largest_violation(nn.Identity(), X, ball, (X - 0.2, X + 0.2)) < 0


def test_a_radius_per_example_is_that_examples():
    eps = torch.tensor([0.1, 0.3])
    ball, reach = PerturbationLinf(eps), eps.unsqueeze(1)
    assert largest_violation(nn.Identity(), X, ball, (X - reach, X + reach)) == pytest.approx(
        0, abs=1e-6
    )
    upper = X + reach
    upper[1, 0] -= 0.05  # 0.65 is claimed where 0.7 is reached
    assert largest_violation(nn.Identity(), X, ball, (X - reach, upper)) == pytest.approx(
        0.05 / 1.65, abs=1e-6
    )


def test_specification_and_l2():
    C, ball = torch.tensor([[[3.0, 4.0]]]).expand(2, 1, 2), PerturbationL2Box(0.1, clip=None)
    value = (C @ X.unsqueeze(-1)).squeeze(-1)
    result = largest_violation(nn.Identity(), X, ball, (value - 0.4, value + 0.5), C)
    assert result == pytest.approx(0.1 / (1 + float((value - 0.4).min())), abs=1e-4)


def test_infinite_bounds_claim_nothing_or_everything_and_hide_no_others():
    ball, infinite = PerturbationLinf(0.1), torch.full_like(X, math.inf)
    assert largest_violation(nn.Identity(), X, ball, (-infinite, infinite)) == -1
    assert largest_violation(nn.Identity(), X, ball, (infinite, infinite)) == 1
    assert largest_violation(nn.Identity(), X, ball, (-infinite, X)) == pytest.approx(
        0.1 / 1.4, abs=1e-6
    )
    assert largest_violation(nn.Identity(), X, ball, (X * math.nan, X + 1)) == math.inf
