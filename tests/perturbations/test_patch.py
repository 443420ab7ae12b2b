"""The set of patched images: what is in it, what encloses it, and what is refused."""

import pytest
import torch

from lirpa_multinorm.errors import InvalidArgumentError
from lirpa_multinorm.perturbations.described import certifiable_sets, describe_set, set_from
from lirpa_multinorm.perturbations.patch import PerturbationPatch
from tests.networks import pixels

PATCH = PerturbationPatch(2, 3)


def patched(x, top, left, height=2, width=3, seed=0):
    """Images with random pixels in a rectangle."""
    point = x.clone()
    inside = point[:, :, top : top + height, left : left + width]
    inside.copy_(torch.rand(inside.shape, generator=torch.Generator().manual_seed(seed)))
    return point


def test_name_and_title():
    assert PerturbationPatch(5).name == PerturbationPatch(5, 5).label == "5x5 patch"
    assert PATCH.title() == "patches of 2x3 pixels within [0, 1]"


def test_the_set_as_plain_data_makes_it_again():
    again = set_from(describe_set(PATCH))
    assert isinstance(again, PerturbationPatch) and repr(again) == repr(PATCH)
    assert describe_set(PATCH) == {"kind": "patch", "height": 2, "width": 3}
    assert certifiable_sets([PATCH]) == [PATCH]


@pytest.mark.parametrize("place", [(0, 0), (3, 2), (4, 3), (1, 0)])
def test_patched_images_are_in_the_set(place):
    x = pixels(3, 2, 6, 6)
    assert PATCH.contains(patched(x, *place), x).all()
    assert PATCH.contains(patched(x, *place, height=1, width=2), x).all()
    assert PATCH.contains(x, x).all()


@pytest.mark.parametrize("sides", [(3, 3), (2, 4), (1, 6)])
def test_larger_patches_are_outside(sides):
    x = pixels(3, 2, 6, 6) * 0.5 + 0.2
    assert not PATCH.contains(patched(x, 1, 0, *sides), x).any()


def test_two_patches_are_outside():
    x = pixels(2, 1, 6, 6)
    point = x.clone()
    point[0, 0, 0, 0] = point[0, 0, 5, 5] = 0.5
    assert PATCH.contains(point, x).tolist() == [False, True]


@pytest.mark.parametrize("value", [-1e-3, 1.001, float("nan")])
def test_values_outside_the_range_are_outside(value):
    x, point = pixels(2, 1, 6, 6), pixels(2, 1, 6, 6)
    point[1, 0, 2, 2] = value
    assert PATCH.contains(point, x).tolist() == [True, False]


def test_pixels_outside_the_patch_may_not_move_at_all():
    x = pixels(1, 1, 6, 6) * 0.5
    point = patched(x, 0, 0)
    point[0, 0, 5, 5] += 1e-6
    assert not PATCH.contains(point, x).any()


def test_the_enclosure_holds_every_patched_image():
    x = pixels(4, 2, 6, 6)
    (region,) = PATCH.enclosures(x)
    for seed in range(10):
        extreme = patched(x, seed % 5, seed % 4, seed=seed).round()
        assert region.perturbation.contains(torch.where(extreme == x.round(), x, extreme), x).all()
    far = patched(torch.zeros(1, 2, 6, 6), 1, 1)
    far[far > 0] = 1.0
    assert region.perturbation.contains(far, torch.zeros_like(far)).all()


def test_boxes_free_the_pixels_of_their_places_alone():
    x = pixels(1, 2, 6, 6)[0]
    place = torch.cartesian_prod(*map(torch.arange, PATCH.places(x.unsqueeze(0))))
    lower, upper = PATCH.boxes(x, place)
    assert len(place) == 20 and lower.shape == (20, 2, 6, 6)
    for low, high, (top, left) in zip(lower, upper, place.tolist()):
        inside = torch.zeros(6, 6, dtype=torch.bool)
        inside[top : top + 2, left : left + 3] = True
        assert (low[:, inside] == 0).all() and (high[:, inside] == 1).all()
        assert torch.equal(low[:, ~inside], x[:, ~inside])
        assert torch.equal(high[:, ~inside], x[:, ~inside])


@pytest.mark.parametrize("size", [0, -1, 2.0, True, None, "3"])
def test_sizes_are_positive_integers(size):
    with pytest.raises(InvalidArgumentError, match="height=.* must be a positive integer"):
        PerturbationPatch(size)


def test_the_width_is_checked_as_well():
    with pytest.raises(InvalidArgumentError, match="width=0 must be a positive integer"):
        PerturbationPatch(2, 0)


@pytest.mark.parametrize(
    "x, message",
    [
        (torch.zeros(2, 6), r"needs images \(B, C, H, W\)"),
        (torch.zeros(2, 1, 1, 6), "a patch of 2x3 does not fit"),
        (torch.zeros(2, 1, 6, 2), "a patch of 2x3 does not fit"),
        (torch.zeros(0, 1, 6, 6), "empty batch"),
        (torch.full((1, 1, 6, 6), 1.5), "needs pixels in"),
        (torch.full((1, 1, 6, 6), float("nan")), "contains NaN"),
    ],
)
def test_inputs_that_are_no_images_are_refused(x, message):
    with pytest.raises(InvalidArgumentError, match=message):
        PATCH.check_input(x)
