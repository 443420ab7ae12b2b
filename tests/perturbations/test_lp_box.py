"""The sets: geometry, arguments and what their messages say."""

import copy
import math
import pickle

import numpy
import pytest
import torch

from lirpa_multinorm import (
    PerturbationL1Box,
    PerturbationL2Box,
    PerturbationLinf,
    PerturbationLpBox,
)
from lirpa_multinorm.attacks.geometry import random_point
from lirpa_multinorm.errors import InvalidArgumentError
from lirpa_multinorm.perturbations import Region
from lirpa_multinorm.perturbations.rows import DenseRows
from tests.perturbations.images import every_norm, images

KINDS = {
    "linf": (PerturbationLinf, math.inf),
    "l2": (PerturbationL2Box, 2),
    "l1": (PerturbationL1Box, 1),
}


@pytest.mark.parametrize("kind,norm", KINDS.values(), ids=KINDS)
def test_named_kinds(kind, norm):
    ball = kind(0.25)
    assert (ball.norm, ball.eps, ball.clip) == (norm, 0.25, (0.0, 1.0))
    assert kind(0.25, clip=None).clip is None
    assert repr(ball) == f"{kind.__name__}(norm={norm}, eps=0.25, clip=(0.0, 1.0))"


def test_repr_counts_the_radii():
    assert "eps=<3 values>" in repr(PerturbationLinf(torch.rand(3)))


@pytest.mark.parametrize(
    "given,norm", [("inf", math.inf), (numpy.inf, math.inf), (2.0, 2), ("2", 2), (1, 1)], ids=str
)
def test_norm_spellings(given, norm):
    assert PerturbationLpBox(given, 0.1).norm == norm


@pytest.mark.parametrize("eps", [1, 0.5, "tensor", "array", [0.1, 0.2, 0.3]], ids=str)
def test_radius_of_every_kind_of_eps(eps):
    given = {"tensor": torch.tensor([0.1, 0.2, 0.3]), "array": numpy.array([0.1, 0.2, 0.3])}.get(
        str(eps), eps
    )
    radius = PerturbationLinf(given).radius(images())
    expected = [float(eps)] * 3 if isinstance(eps, (int, float)) else [0.1, 0.2, 0.3]
    assert radius.dtype == torch.float32
    assert torch.allclose(radius, torch.tensor(expected))


def test_with_eps_leaves_the_original_alone():
    ball = PerturbationL2Box(0.5, clip=(-1.0, 1.0))
    other = ball.with_eps(0.25)
    assert (type(other), other.eps, other.clip) == (PerturbationL2Box, 0.25, (-1.0, 1.0))
    assert ball.eps == 0.5
    with pytest.raises(InvalidArgumentError, match="eps"):
        ball.with_eps(-1)


def test_set_eps_changes_in_place():
    ball = PerturbationL2Box(0.5)
    ball.set_eps(torch.tensor([0.1, 0.2]))
    assert torch.equal(ball.radius(images(2)), torch.tensor([0.1, 0.2]))
    with pytest.raises(InvalidArgumentError, match="eps"):
        ball.set_eps(math.nan)


def test_clip_does_not_follow_the_callers_tensor():
    low, high = torch.zeros(2), torch.ones(2)
    ball = PerturbationLinf(0.5, clip=(low, high))
    high.fill_(7.0)
    assert ball.enclosing_box(images())[1].max() <= 1


@pytest.mark.parametrize(
    "copied",
    [copy.copy, copy.deepcopy, lambda p: pickle.loads(pickle.dumps(p))],
    ids=["copy", "deepcopy", "pickle"],
)
def test_copies(copied):
    ball = PerturbationL1Box(torch.tensor([0.1, 0.2]), clip=(torch.zeros(2), torch.ones(2)))
    other = copied(ball)
    assert (type(other), other.norm) == (PerturbationL1Box, 1)
    assert torch.equal(other.eps, ball.eps) and torch.equal(other.clip[1], ball.clip[1])


@every_norm
def test_normalised_inputs_are_the_same_set(norm):
    """A uniform scale: radius and clip in normalised units describe the same images."""
    x, std, mean = images(), 0.25, torch.tensor([0.4, 0.6])
    shift = mean.view(1, 2, 1, 1)
    plain = PerturbationLpBox(norm, 0.3)
    scaled = PerturbationLpBox(norm, 0.3 / std, clip=((0 - mean) / std, (1 - mean) / std))
    rows = DenseRows(torch.randn(3, 5, 18))
    z = (x - shift) / std
    expected = plain.extreme(rows, x, 1) - rows.apply(shift.expand_as(x))
    assert torch.allclose(scaled.extreme(rows, z, 1) * std, expected, atol=1e-5)
    scaled.check_input(z)
    for seed in range(5):
        point = random_point(scaled, z, torch.Generator().manual_seed(seed))
        assert plain.contains(point * std + shift, x).all()


CLIPS = {
    "per_channel": (2,),
    "image": (2, 3, 3),
    "broadcast_image": (2, 1, 1),
    "whole_batch": (3, 2, 3, 3),
}


@pytest.mark.parametrize("shape", CLIPS.values(), ids=CLIPS)
def test_clip_shapes(shape):
    low = torch.zeros(shape)
    high = torch.linspace(0.2, 1, low.numel()).view(shape)
    x = images() * 0
    upper = PerturbationLinf(5.0, clip=(low, high)).enclosing_box(x)[1]
    expected = high.view(2, 1, 1) if shape == (2,) else high
    assert torch.allclose(upper, expected.expand_as(x))


def test_clip_per_channel_is_not_per_column():
    """A vector as long as the channels and the columns counts per channel."""
    x = torch.zeros(1, 3, 3, 3)
    upper = PerturbationLinf(
        5.0, clip=(torch.zeros(3), torch.tensor([1.0, 2.0, 3.0]))
    ).enclosing_box(x)[1]
    assert torch.equal(upper[0, :, 0, 0], torch.tensor([1.0, 2.0, 3.0]))


def test_clip_of_flat_inputs():
    upper = PerturbationLinf(
        5.0, clip=(torch.zeros(3), torch.tensor([1.0, 2.0, 3.0]))
    ).enclosing_box(torch.zeros(2, 3))[1]
    assert torch.equal(upper, torch.tensor([[1.0, 2.0, 3.0]] * 2))


@pytest.mark.parametrize(
    "perturbation, title",
    [
        (PerturbationLinf(2 / 255), "l_inf ball of radius 0.00784314 within [0, 1]"),
        (PerturbationL1Box(3, clip=None), "plain l_1 ball of radius 3"),
        (
            PerturbationL2Box(torch.tensor([0.5, 0.25, 0.5])),
            "l_2 ball of radius 0.25 to 0.5 within [0, 1]",
        ),
        (
            PerturbationL2Box(torch.tensor([0.5, 0.5]), clip=([-1.0, -2.5], [1.0, 3.0])),
            "l_2 ball of radius 0.5 within [-2.5, 3]",
        ),
    ],
    ids=["linf", "plain", "per_example", "per_channel"],
)
def test_titles_say_ball_radius_and_range(perturbation, title):
    assert perturbation.title() == title


@pytest.mark.parametrize(
    "images", [torch.tensor([2, 0]), torch.tensor([True, False, True])], ids=["indices", "mask"]
)
def test_radii_follow_some_images_of_a_batch(images):
    x, each, same = (
        torch.rand(3, 2),
        PerturbationL2Box(torch.tensor([0.1, 0.2, 0.3])),
        PerturbationL2Box(0.5),
    )
    assert torch.equal(each.of_images(images, x).eps, each.eps[images]) and each.eps.numel() == 3
    assert repr(same.of_images(images, x)) == repr(same)


@pytest.mark.parametrize(
    "clip",
    [
        (torch.zeros(3, 2), torch.ones(3, 2)),
        (torch.zeros(3, 2), torch.ones(2)),
        (0.0, torch.tensor([[1.0], [2.0], [3.0]])),
    ],
    ids=["both", "one", "column"],
)
def test_ranges_per_example_follow_some_images_of_a_batch(clip):
    x, images = torch.rand(3, 2), torch.tensor([2, 0])
    whole, part = (
        PerturbationLinf(5.0, clip).enclosing_box(x),
        Region(x, PerturbationLinf(5.0, clip)).rows(images),
    )
    for ends, some in zip(whole, part.perturbation.enclosing_box(part.center)):
        assert torch.equal(ends[images], some)
