"""The set of transforms: its ranges, cells, names, and what it refuses."""

import json
import math

import pytest
import torch

from lirpa_multinorm import BoundedModule, PerturbationGeometric
from lirpa_multinorm.errors import InvalidArgumentError
from lirpa_multinorm.perturbations.described import describe_set, set_from
from lirpa_multinorm.transforms import IDENTITY, transformed

IMAGES = torch.rand(2, 1, 6, 6)


def test_a_number_means_both_signs_and_a_pair_the_range():
    result = PerturbationGeometric(rotation=5, translation=2, scale=0.1, contrast=(0.5, 1.25))
    assert result.ranges[:3] == ((-5.0, 5.0), (-2.0, 2.0), (-2.0, 2.0))
    assert result.ranges[3:] == ((0.9, 1.1), (0.0, 0.0), (0.5, 1.25), (0.0, 0.0))
    assert result.active == [0, 1, 2, 3, 5]


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"rotation": 30}, "R(30)"),
        ({"translation": 2}, "Tu(2),Tv(2)"),
        (
            {"scale": 0.05, "rotation": 5, "contrast": 0.05, "brightness": 0.01},
            "Sc(5),R(5),C(5),B(0.01)",
        ),
        ({"shear": 0.02, "rotation": (-1, 2)}, "Sh(2),R(-1..2)"),
    ],
)
def test_names_are_the_paper_s(arguments, name):
    assert PerturbationGeometric(**arguments).name == name


@pytest.mark.parametrize("grid", ["cells", "fixed_grid"])
def test_cells_cover_the_ranges_once(grid):
    result = PerturbationGeometric(
        rotation=(-20, 40), translation_x=1.5, scale=0.1, splits={"rotation": 7, "scale": 0.04}
    )
    lower, upper = getattr(result, grid)(IMAGES)
    volumes = (upper - lower)[:, result.active].double().prod(1)
    whole = math.prod(most - least for least, most in (result.ranges[k] for k in result.active))
    assert (volumes > 0).all() and abs(float(volumes.sum()) / whole - 1) < 1e-5
    ends = torch.tensor(result.ranges)
    assert torch.allclose(lower.amin(0), ends[:, 0]) and torch.allclose(upper.amax(0), ends[:, 1])
    if grid == "fixed_grid":  # 60 / 7 rounded up, times 0.2 / 0.04
        assert len(lower) == 9 * 5


def test_enclosures_hold_every_transform():
    result = PerturbationGeometric(rotation=20, brightness=0.1)
    points = result.points(200, IMAGES)
    inside = torch.zeros(len(points), len(IMAGES), dtype=torch.bool)
    for region in result.enclosures(IMAGES):
        lower, upper = region.perturbation.enclosing_box(region.center)
        for number, point in enumerate(points):
            moved = transformed(IMAGES, point.expand(2, -1))
            within = (moved >= lower - 1e-6) & (moved <= upper + 1e-6)
            inside[number] |= within.flatten(1).all(1)
    assert inside.all()


def test_points_have_the_corners():
    points = PerturbationGeometric(rotation=3, contrast=(0.5, 1.0)).points(9, IMAGES)
    assert points.shape == (9, 7)
    assert [list(corner) for corner in points[[0, -1]][:, [0, 5]].tolist()] == [[-3, 0.5], [3, 1]]


def test_the_set_as_plain_data_and_back():
    result = PerturbationGeometric(rotation=(-1, 2), shear=0.02, splits={"shear": 0.01})
    again = set_from(json.loads(json.dumps(describe_set(result))))
    assert again.ranges == result.ranges and again.splits == result.splits
    assert again.name == result.name and again.title() == result.title()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "no parameter has a width"),
        ({"rotation": 0}, "no parameter has a width"),
        ({"rotation": (3, 1)}, "the lower end is above the upper end"),
        ({"rotation": -3}, "must be >= 0"),
        ({"rotation": math.nan}, "rotation"),
        ({"rotation": (0, math.inf)}, "must be finite"),
        ({"rotation": "much"}, "must be a number or a pair"),
        ({"rotation": (1, 2, 3)}, "must be a number or a pair"),
        ({"rotation": 400}, "in degrees"),
        ({"scale": 1.0}, "must stay above 0"),
        ({"scale": (0.0, 1.0)}, "must stay above 0"),
        ({"contrast": (-0.5, 1.0)}, "must not be negative"),
        ({"translation": 1, "translation_x": 2}, "same parameter twice"),
        ({"rotation": 1, "splits": {"rotatoin": 1}}, "did you mean 'rotation'"),
        ({"rotation": 1, "splits": {"rotation": 0.0}}, "must be a positive number"),
        ({"rotation": 1, "splits": {"rotation": math.inf}}, "must be a positive number"),
    ],
)
def test_ranges_that_mean_nothing_are_refused(arguments, message):
    with pytest.raises(InvalidArgumentError, match=message):
        PerturbationGeometric(**arguments)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.rand(2, 5), "needs images"),
        (torch.rand(0, 1, 4, 4), "empty"),
        (torch.full((1, 1, 4, 4), math.nan), "NaN"),
        (torch.rand(1, 1, 4, 4) - 2, "needs pixels in"),
    ],
)
def test_inputs_that_are_no_images_are_refused(x, message):
    with pytest.raises(InvalidArgumentError, match=message):
        PerturbationGeometric(rotation=1).check_input(x)


def test_a_grid_without_splits_and_an_unknown_kind_are_refused():
    with pytest.raises(InvalidArgumentError, match="splits"):
        PerturbationGeometric(rotation=1).fixed_grid(IMAGES)
    with pytest.raises(InvalidArgumentError, match="kind='fog'"):
        set_from({"kind": "fog"})


def test_a_module_of_balls_refuses_transforms():
    with pytest.raises(InvalidArgumentError, match="certify"):
        BoundedModule(
            torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(36, 2)),
            perturbations=[PerturbationGeometric(rotation=1)],
        )


def test_the_identity_is_in_the_order_of_the_parameters():
    same = transformed(IMAGES, torch.tensor([IDENTITY]).expand(2, -1))
    assert torch.allclose(same, IMAGES, atol=1e-5)
