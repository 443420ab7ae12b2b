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
    host,
)
from lirpa_multinorm.attacks.geometry import random_point
from lirpa_multinorm.errors import InvalidArgumentError
from lirpa_multinorm.perturbations import Region
from lirpa_multinorm.perturbations.rows import DenseRows

NORMS = {"linf": math.inf, "l2": 2, "l1": 1}
every_norm = pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS)


def images(batch=3):
    generator = torch.Generator().manual_seed(1)
    return (torch.rand(batch, 2, 3, 3, generator=generator) * 1.6 - 0.3).clamp(0, 1)


# --- kinds ----------------------------------------------------------------------------------------

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


# --- geometry -------------------------------------------------------------------------------------


@every_norm
def test_enclosing_box(norm):
    x = torch.tensor([[0.0, 0.05, 0.5, 0.95, 1.0]])
    lower, upper = PerturbationLpBox(norm, 0.1).enclosing_box(x)
    assert torch.allclose(lower, torch.tensor([[0.0, 0.0, 0.4, 0.85, 0.9]]))
    assert torch.allclose(upper, torch.tensor([[0.1, 0.15, 0.6, 1.0, 1.0]]))
    lower, upper = PerturbationLpBox(norm, 0.1, clip=None).enclosing_box(x)
    assert torch.allclose(lower, x - 0.1) and torch.allclose(upper, x + 0.1)


@every_norm
@pytest.mark.parametrize("clip", [(0.0, 1.0), None], ids=["clip", "ball"])
def test_enclosing_box_holds_every_point_and_touches_the_set(norm, clip):
    x, eps = images(), torch.tensor([0.0, 0.2, 0.7])
    ball = PerturbationLpBox(norm, eps, clip)
    lower, upper = ball.enclosing_box(x)
    for seed in range(20):
        point = random_point(ball, x, torch.Generator().manual_seed(seed))
        assert ball.contains(point, x).all()
        assert ((point >= lower - 1e-6) & (point <= upper + 1e-6)).all()
    # One coordinate alone may go to each end of the box.
    for end in (lower, upper):
        for channel, row in ((0, 1), (1, 2)):
            corner = x.clone()
            corner[:, channel, row] = x[:, channel, row]
            corner[:, channel, row, 0] = end[:, channel, row, 0]
            assert ball.contains(corner, x).all()


CONTAINS = {
    # norm, offset of two coordinates from 0.5, radius 0.3, inside?
    "linf_edge": (math.inf, (0.3, -0.3), True),
    "linf_out": (math.inf, (0.31, 0.0), False),
    "l2_edge": (2, (0.18, 0.24), True),
    "l2_out": (2, (0.18, 0.25), False),
    "l1_edge": (1, (0.1, -0.2), True),
    "l1_out": (1, (0.1, -0.21), False),
}


@pytest.mark.parametrize("norm,offset,inside", CONTAINS.values(), ids=CONTAINS)
def test_contains(norm, offset, inside):
    x = torch.full((1, 2), 0.5)
    assert PerturbationLpBox(norm, 0.3).contains(x + torch.tensor([offset]), x).tolist() == [inside]


def test_contains_knows_clip_radius_per_example_and_nan():
    x = torch.full((4, 2), 0.9)
    point = x + torch.tensor([[0.2, 0.0], [0.05, 0.0], [0.05, 0.0], [math.nan, 0.0]])
    ball = PerturbationLinf(torch.tensor([0.5, 0.1, 0.01, 0.5]))
    assert ball.contains(point, x).tolist() == [False, True, False, False]
    assert PerturbationLinf(0.5, clip=None).contains(point, x).tolist() == [True, True, True, False]


def test_radius_per_example():
    x = images()
    ball = PerturbationL2Box(torch.tensor([0.0, 0.1, 0.2]), clip=None)
    lower, upper = ball.enclosing_box(x)
    assert torch.allclose(
        (upper - lower).flatten(1).amax(1), torch.tensor([0.0, 0.2, 0.4]), atol=1e-6
    )
    assert torch.equal(PerturbationL2Box(torch.tensor([0.3])).radius(x), torch.full((3,), 0.3))


@every_norm
def test_radius_carries_the_gradient_of_a_learned_eps(norm):
    eps = torch.tensor(0.2, requires_grad=True)
    ball, x = PerturbationLpBox(norm, eps, clip=None), images()
    rows = DenseRows(torch.randn(1, 4, 18))
    ball.extreme(rows, x, 1).sum().backward()
    dual = {math.inf: 1, 2: 2, 1: math.inf}[norm]
    assert eps.grad.item() == pytest.approx(3 * rows.norm(dual).sum().item(), rel=1e-4)


@every_norm
@pytest.mark.parametrize("clip", [(0.0, 1.0), None], ids=["clip", "ball"])
def test_extremes_are_where_the_centre_says(norm, clip):
    """Both ends: above and below the value at the centre.

    Minimum of a is minus the maximum of -a.
    """
    x, rows = images(), DenseRows(torch.randn(3, 4, 18))
    ball = PerturbationLpBox(norm, torch.tensor([0.0, 0.2, 3.0]), clip)
    centre, upper, lower = rows.apply(x), ball.extreme(rows, x, 1), ball.extreme(rows, x, -1)
    assert (upper >= centre - 1e-6).all() and (lower <= centre + 1e-6).all()
    assert torch.allclose(lower, -ball.extreme(DenseRows(-rows.A), x, 1), atol=1e-5)
    assert torch.allclose(upper[0], centre[0], atol=1e-6)  # radius 0


# --- clip of normalised inputs --------------------------------------------------------------------


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


# --- bad arguments --------------------------------------------------------------------------------

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


@pytest.mark.parametrize(
    "clip",
    [
        None,
        (0.0, 1.0),
        (torch.zeros(2), torch.tensor([1.0, 2.0])),
        (torch.zeros(3, 2, 2, 2), torch.linspace(1, 2, 4).view(2, 2)),
    ],
    ids=["plain", "range", "per_channel", "per_example"],
)
def test_some_pixels_see_the_same_set(clip):
    x, pixels = torch.rand(3, 2, 2, 2), torch.tensor([1, 6])
    region = Region(x, PerturbationL2Box(0.7, clip))
    part = region.columns(pixels)
    for ends, some in zip(
        region.perturbation.enclosing_box(x), part.perturbation.enclosing_box(part.center)
    ):
        assert torch.equal(ends.flatten(1)[:, pixels], some)


@pytest.mark.parametrize("norm", [math.inf, 2, 1])
@pytest.mark.parametrize("clip", [None, (0.0, 1.0)])
def test_a_far_point_lies_in_the_set_and_far_along_the_direction(norm, clip):
    ball, x, direction = (
        PerturbationLpBox(norm, 0.3, clip),
        torch.rand(50, 2, 3),
        torch.randn(50, 2, 3),
    )
    point = ball.far_point(direction, x)
    assert ball.contains(point, x, tolerance=1e-6).all()
    reached = (direction * (point - x)).flatten(1).sum(1)
    most = ball.extreme(DenseRows(direction.flatten(1).unsqueeze(1)), x, 1).squeeze(1) - (
        direction * x
    ).flatten(1).sum(1)
    assert (reached <= most + 1e-5).all() and (reached > 0.3 * most).float().mean() > 0.9
    if norm == math.inf or (norm == 2 and clip is None):
        assert torch.allclose(reached, most, atol=1e-5)
