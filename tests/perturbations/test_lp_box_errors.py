"""Bad sizes, ranges, norms and inputs of the sets, and what their messages say."""

import math

import numpy
import pytest
import torch

from lirpa_multinorm import (
    PerturbationL1Box,
    PerturbationL2Box,
    PerturbationLinf,
    PerturbationLpBox,
    host,
)
from lirpa_multinorm.errors import InvalidArgumentError
from tests.perturbations.images import every_norm, images

NAN, INF = math.nan, math.inf


BAD_EPS = {
    "negative": -0.1,
    "nan": NAN,
    "infinite": INF,
    "text": "a",
    "none": None,
    "empty": torch.zeros(0),
    "matrix": torch.zeros(2, 2),
    "negative_entry": [0.1, -0.1],
    "nan_entry": torch.tensor([0.1, NAN]),
    "infinite_entry": torch.tensor([0.1, INF]),
    "complex": torch.tensor([1j]),
    "list_of_text": ["a"],
}


@pytest.mark.parametrize("eps", BAD_EPS.values(), ids=BAD_EPS)
def test_bad_eps(eps):
    with pytest.raises(InvalidArgumentError, match="^eps"):
        PerturbationL2Box(eps)


BAD_CLIP = {
    "reversed": (1.0, 0.0),
    "nan": (NAN, 1.0),
    "nan_upper": (0.0, NAN),
    "infinite": (0.0, INF),
    "number": 1.0,
    "triple": (0.0, 0.5, 1.0),
    "text": ("a", "b"),
    "none_inside": (None, 1.0),
    "reversed_entry": (torch.zeros(2), torch.tensor([1.0, -1.0])),
    "nan_entry": (torch.tensor([0.0, NAN]), torch.ones(2)),
    "shapes": (torch.zeros(2), torch.ones(3)),
}


@pytest.mark.parametrize("clip", BAD_CLIP.values(), ids=BAD_CLIP)
def test_bad_clip(clip):
    with pytest.raises(InvalidArgumentError, match="^clip"):
        PerturbationLinf(0.1, clip)


@pytest.mark.parametrize(
    "ends",
    [[0.0, 1.0], ([0.0, 0.0], [1.0, 1.0]), (numpy.zeros(2), numpy.ones(2))],
    ids=["list", "lists", "arrays"],
)
def test_clip_may_be_lists_or_arrays(ends):
    upper = PerturbationLinf(5.0, clip=ends).enclosing_box(images())[1]
    assert torch.equal(upper, torch.ones_like(upper))


@pytest.mark.parametrize("norm", [0, 4, 0.5, -1, NAN, "l2", None, [2]], ids=str)
def test_bad_norm(norm):
    with pytest.raises(
        InvalidArgumentError, match="norm=.*use one of 1, 2, math.inf, or register_norm"
    ):
        PerturbationLpBox(norm, 0.1)


BAD_INPUTS = {
    "nan": (PerturbationLinf(0.1), torch.tensor([[NAN, 0.5]]), "NaN"),
    "infinite": (PerturbationLinf(0.1, clip=None), torch.tensor([[INF, 0.5]]), "infinite"),
    "above_clip": (
        PerturbationL2Box(0.1),
        torch.tensor([[0.5, 1.5]]),
        "outside clip by up to 0.5.*clip=None",
    ),
    "below_clip": (PerturbationL2Box(0.1), torch.tensor([[0.5, -2.0]]), "outside clip by up to 2"),
    "outside_a_channel": (
        PerturbationL1Box(0.1, (torch.zeros(2), torch.tensor([1.0, 0.2]))),
        torch.full((1, 2, 3, 3), 0.5),
        "outside clip by up to 0.3",
    ),
    "length_of_eps": (
        PerturbationLinf([0.1, 0.2]),
        torch.full((3, 2), 0.5),
        "eps has 2 values for a batch of 3",
    ),
    "empty": (PerturbationLinf(0.1), torch.zeros(0, 2), "^x is an empty batch"),
    "shape_of_clip": (
        PerturbationLinf(0.1, (torch.zeros(5), torch.ones(5))),
        torch.full((3, 2), 0.5),
        "^clip has shape",
    ),
}


@pytest.mark.parametrize("ball,x,message", BAD_INPUTS.values(), ids=BAD_INPUTS)
def test_bad_inputs(ball, x, message):
    with pytest.raises(InvalidArgumentError, match=message):
        ball.check_input(x)


@pytest.mark.parametrize(
    "ball,x",
    [
        (PerturbationLinf(0.1), torch.tensor([[NAN]])),
        (PerturbationLinf(0.1), torch.tensor([[3.0]])),
    ],
    ids=["nan", "outside"],
)
def test_messages_name_the_argument(ball, x):
    with pytest.raises(InvalidArgumentError, match="^centres "):
        ball.check_input(x, name="centres")


def test_rounding_outside_clip_is_accepted_and_the_set_still_holds_x():
    x = torch.tensor([[1 + 5e-7, -5e-7]])
    ball = PerturbationLinf(0.1)
    ball.check_input(x)
    lower, upper = ball.enclosing_box(x)
    assert ((lower <= x) & (x <= upper)).all()


def test_rounding_of_normalised_inputs_is_accepted():
    """Far from 0 rounding is larger: black and white pixels of a channel with a small deviation."""
    mean, std = torch.tensor([0.485, 0.13]), torch.tensor([0.0123, 0.0017])
    pixels = torch.tensor([0.0, 1.0, 0.3]).view(1, 1, 1, 3).expand(1, 2, 1, 3)
    x = (pixels - mean.view(1, 2, 1, 1)) * (1 / std).view(1, 2, 1, 1)
    ball = PerturbationLinf(0.1, clip=((0 - mean) / std, (1 - mean) / std))
    low, high = ball.clip_box(x)
    assert torch.maximum(low - x, x - high).max() > 1e-6, "the test means to round outside"
    ball.check_input(x)


@every_norm
def test_the_hosts_own_module_refuses_the_sets(norm):
    """Its operators would take the norm for a tag and return bounds that are too narrow."""
    ball, x = PerturbationLpBox(norm, 0.1), images()
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(18, 2))
    with host.tracing():
        module = host.HostModule(model, x)
    with pytest.raises(InvalidArgumentError, match="lirpa_multinorm.BoundedModule"):
        module.compute_bounds(x=(host.BoundedTensor(x, ball),), method="IBP")
