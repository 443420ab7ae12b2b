"""The host's perturbations as our sets."""

import math

import pytest
import torch

from lirpa_multinorm import PerturbationL2Box, PerturbationLinf, PerturbationLpBox, host
from lirpa_multinorm.errors import InvalidArgumentError
from lirpa_multinorm.perturbations import (
    PerturbationStack,
    Region,
    as_perturbation,
    as_perturbations,
)


@pytest.mark.parametrize("norm", [math.inf, 2, 1], ids=["linf", "l2", "l1"])
def test_plain_balls(norm):
    ball = as_perturbation(host.PerturbationLpNorm(norm=norm, eps=0.25))
    assert type(ball) is PerturbationLpBox
    assert (ball.norm, ball.eps, ball.clip) == (norm, 0.25, None)


def test_linf_ends_are_the_set():
    x = torch.tensor([[0.5, 0.5], [0.2, 0.9]])
    x_L, x_U = (
        x - torch.tensor([[0.1, 0.3], [0.2, 0.0]]),
        x + torch.tensor([[0.4, 0.2], [0.0, 0.1]]),
    )
    ball = as_perturbation(host.PerturbationLpNorm(norm=math.inf, x_L=x_L, x_U=x_U))
    lower, upper = ball.enclosing_box(x)
    assert torch.allclose(lower, x_L) and torch.allclose(upper, x_U)
    # From a corner of the box as well.
    lower, upper = ball.enclosing_box(x_L)
    assert torch.allclose(lower, x_L) and torch.allclose(upper, x_U)


def test_ends_count_for_linf_only():
    """As in the host, which means the plain ball for finite p."""
    x = torch.rand(2, 3)
    ball = as_perturbation(host.PerturbationLpNorm(norm=2, eps=0.5, x_L=x - 0.1, x_U=x + 0.1))
    assert (ball.norm, ball.eps, ball.clip) == (2, 0.5, None)


def test_our_sets_pass_through():
    ball = PerturbationL2Box(0.5)
    assert as_perturbation(ball) is ball
    assert as_perturbations([ball, host.PerturbationLpNorm(norm=1, eps=2.0)])[0] is ball


@pytest.mark.parametrize(
    "ball",
    [PerturbationLinf(0.1), host.PerturbationLpNorm(norm=math.inf, eps=0.1)],
    ids=["ours", "hosts"],
)
def test_one_set_counts_as_a_list(ball):
    (ball,) = as_perturbations(ball)
    assert (ball.norm, ball.eps) == (math.inf, 0.1)


def _stack():
    return PerturbationStack([Region(torch.rand(1, 2), PerturbationLinf(0.1))])


UNSUPPORTED = {
    "number": lambda: 0.1,
    "text": lambda: "linf",
    "none": lambda: None,
    "class": lambda: PerturbationLinf,
    "other_norm": lambda: host.PerturbationLpNorm(norm=3, eps=0.1),
    "negative_eps": lambda: host.PerturbationLpNorm(norm=2, eps=-0.1),
    "one_end": lambda: host.PerturbationLpNorm(norm=math.inf, eps=0.1, x_L=torch.zeros(1)),
    "crossed_ends": lambda: host.PerturbationLpNorm(
        norm=math.inf, x_L=torch.ones(1, 2), x_U=torch.zeros(1, 2)
    ),
    # A stack belongs to its own centres; read as a plain ball it would have radius 0.
    "stack": _stack,
}


@pytest.mark.parametrize("given", UNSUPPORTED.values(), ids=UNSUPPORTED)
def test_unsupported(given):
    with pytest.raises(InvalidArgumentError):
        as_perturbation(given())


@pytest.mark.parametrize("given", [[], ()], ids=["list", "tuple"])
def test_empty_list(given):
    with pytest.raises(InvalidArgumentError, match="^perturbations is empty.*give at least one"):
        as_perturbations(given)


@pytest.mark.parametrize("given", [0.1, None], ids=str)
def test_not_a_list(given):
    with pytest.raises(InvalidArgumentError, match="^perturbations"):
        as_perturbations(given)
