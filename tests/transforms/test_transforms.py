"""Transforms against torchvision; ranges and forms against transforms that are drawn."""

import math

import pytest
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as torchvision

from lirpa_multinorm.transforms import (
    IDENTITY,
    PARAMETERS,
    exact_range,
    linear_forms,
    transformed,
    weight_range,
)
from lirpa_multinorm.transforms.coordinates import Frame, coordinate_box, coordinates
from lirpa_multinorm.transforms.forms import LinearForms
from tests.transforms.cases import case, drawn


def parameters(**values):
    result = torch.tensor([IDENTITY])
    for name, value in values.items():
        result[0, PARAMETERS.index(name)] = value
    return result


def shear(tangent):
    return [math.degrees(math.atan(tangent)), 0.0]


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"rotation": 23.0}, {"angle": 23.0}),
        ({"rotation": -170.0}, {"angle": -170.0}),
        ({"translation_x": 2.0}, {"translate": [2, 0]}),
        ({"translation_y": -3.0}, {"translate": [0, -3]}),
        ({"scale": 0.7}, {"scale": 0.7}),
        ({"shear": 0.3}, {"shear": shear(0.3)}),
        (
            {
                "rotation": 50.0,
                "translation_x": 2.0,
                "translation_y": 1.0,
                "scale": 1.3,
                "shear": 0.2,
            },
            {"angle": 50.0, "translate": [2, 1], "scale": 1.3, "shear": shear(0.2)},
        ),
    ],
)
@pytest.mark.parametrize("shape", [(1, 2, 9, 7), (1, 1, 8, 8), (1, 3, 1, 1)])
def test_transforms_are_those_of_torchvision(ours, theirs, shape):
    images = torch.rand(shape)
    neutral = {"angle": 0.0, "translate": [0, 0], "scale": 1.0, "shear": [0.0, 0.0]}
    expected = torchvision.affine(
        images, interpolation=InterpolationMode.BILINEAR, **{**neutral, **theirs}
    )
    assert torch.allclose(transformed(images, parameters(**ours)), expected, atol=1e-5)


def test_contrast_comes_before_brightness_and_the_range_last():
    images = torch.tensor([0.0, 0.5, 1.0]).view(1, 1, 1, 3)
    changed = transformed(images, parameters(contrast=1.5, brightness=-0.25))
    assert changed.flatten().tolist() == [0.0, 0.5, 1.0]


def test_half_a_pixel_by_hand():
    """In the middle between 0.2 and 0.8; nothing lies outside."""
    images = torch.tensor([0.2, 0.8]).view(1, 1, 1, 2)
    moved = transformed(images, parameters(translation_x=-0.5))
    assert torch.allclose(moved.flatten(), torch.tensor([0.5, 0.4]))


@pytest.mark.parametrize("seed", range(40))
def test_coordinates_lie_in_their_box(seed):
    images, lower, upper, _ = case(seed, torch.float64)
    frame = Frame.of(images)
    for interval, places in zip(
        coordinate_box(lower, upper, frame), coordinates(drawn(lower, upper, 300)[0], frame)
    ):
        assert (places >= interval.lower).all() and (places <= interval.upper).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("seed", range(60))
def test_nothing_lies_outside_of_ranges_and_forms(seed, dtype):
    """Up to boxes that are as wide as rotations by 80 degrees, corners included."""
    images, lower, upper, active = case(seed, dtype)
    if not active:
        return
    points, kappa = drawn(lower, upper, 300, seed)
    values = transformed(images.expand(300, -1, -1, -1), points)
    for interval in (exact_range(images, lower, upper), weight_range(images, lower, upper)):
        assert (values >= interval.lower).all() and (values <= interval.upper).all()
    forms = linear_forms(images, lower, upper, active)
    value = forms.center + torch.einsum("np,pchw->nchw", kappa[:, active], forms.generators[0])
    assert ((values - value).abs() <= forms.radius).all()
    assert (values >= forms.lower).all() and (values <= forms.upper).all()


@pytest.mark.parametrize("seed", range(20))
def test_exact_ranges_are_no_wider_than_those_of_interval_weights(seed):
    images, lower, upper, _ = case(seed)
    exact, weights = exact_range(images, lower, upper), weight_range(images, lower, upper)
    assert (exact.upper <= weights.upper + 1e-4).all()
    assert (exact.lower >= weights.lower - 1e-4).all()


def test_the_range_of_a_translation_is_reached():
    """The exact range of a translation in one direction: each end is some transform's."""
    images = torch.rand(1, 1, 6, 6)
    lower, upper = parameters(translation_x=-0.6), parameters(translation_x=0.7)
    points = lower + torch.linspace(0, 1, 1301).unsqueeze(1) * (upper - lower)
    values = transformed(images.expand(1301, -1, -1, -1), points)
    exact = exact_range(images, lower, upper)
    assert torch.allclose(values.amin(0), exact.lower[0], atol=1e-3)
    assert torch.allclose(values.amax(0), exact.upper[0], atol=1e-3)


def test_a_form_is_exact_where_the_pixels_are_linear():
    """A translation that crosses no grid line: the remainder is rounding and the rim's."""
    images = torch.rand(1, 1, 5, 5)
    lower, upper = parameters(translation_x=0.25), parameters(translation_x=0.5)
    forms = linear_forms(images, lower, upper, [1])
    assert forms.radius.max() < 5e-3 and forms.generators.abs().max() > 0.05


@pytest.mark.parametrize("active", [(0,), (1, 2), (0, 3, 5, 6)])
def test_images_that_share_a_box_have_the_forms_that_each_has_alone(active):
    """Three images on two boxes, in an order that mixes them."""
    images = torch.rand(3, 2, 7, 6)
    step = torch.zeros(1, 7)
    step[0, list(active)] = 0.1
    start = torch.cat([torch.tensor([IDENTITY]), torch.tensor([IDENTITY]) + step])
    which, box = torch.tensor([2, 0, 1, 2, 0]), torch.tensor([1, 0, 1, 0, 1])
    lower, upper = start[box], start[box] + step
    shared = linear_forms(images[which], lower, upper, active)
    ranges = exact_range(images[which], lower, upper)
    for row in range(len(box)):
        first = slice(row, row + 1)
        single = linear_forms(images[which][first], lower[first], upper[first], active)
        assert all(
            torch.allclose(ours[first], alone, atol=1e-5) for ours, alone in zip(shared, single)
        )
        alone = exact_range(images[which][first], lower[first], upper[first])
        assert torch.allclose(ranges.lower[first], alone.lower, atol=1e-5)
        assert torch.allclose(ranges.upper[first], alone.upper, atol=1e-5)


def test_a_form_gives_way_to_a_narrower_interval():
    """The interval [0, 1] is no wider than a remainder of 0.5, but wider than one of 0.4."""
    ones = torch.ones(1, 2)
    radius = torch.tensor([[0.5, 0.4]])
    forms = LinearForms(ones, ones.unsqueeze(1), radius, 0 * ones, ones).tightened()
    assert forms.center.tolist() == [[0.5, 1.0]]
    assert forms.generators.tolist() == [[[0.0, 1.0]]]
    assert torch.equal(forms.radius, radius)
