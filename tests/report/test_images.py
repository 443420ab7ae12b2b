"""Pictures of pixel ranges and of the places where patches fail."""

import pytest
import torch

from lirpa_multinorm import BoundedModule, PerturbationGeometric, PerturbationPatch
from lirpa_multinorm.bounds import margin_matrix
from lirpa_multinorm.errors import InvalidArgumentError
from lirpa_multinorm.report import patch_places_figure, pixel_ranges_figure
from lirpa_multinorm.transforms import exact_range, transformed

X = torch.rand(2, 1, 6, 6)


def shown(axes):
    """The pixels of the image in some axes."""
    (image,) = axes.get_images()
    return torch.as_tensor(image.get_array().data)


def test_a_transformed_image_lies_between_the_ends_beside_it(figures):
    ends = PerturbationGeometric(rotation=(4, 6)).box(X)
    lower, upper = (end.expand(2, -1) for end in ends)
    images = transformed(X, (lower + upper) / 2)
    box = exact_range(X, lower, upper)
    pixel_ranges_figure(images, *box, "f.png", ["4 to 6 degrees", "the same"])
    axes = figures[0].axes
    assert [item.get_title() for item in axes[:4]] == ["image", "lower ends", "upper ends", "width"]
    assert [axes[index].get_ylabel() for index in (0, 4)] == ["4 to 6 degrees", "the same"]
    for row in (axes[:4], axes[4:]):
        image, low, high, width = map(shown, row)
        assert (low <= image + 1e-6).all() and (image <= high + 1e-6).all()
        assert torch.allclose(width, high - low)
        assert {item.get_images()[0].get_clim() for item in row} == {(0, 1)}


def test_colours_stay_colours(figures):
    pixel_ranges_figure(*[torch.rand(1, 3, 4, 5)] * 3, "f.png")
    assert shown(figures[0].axes[0]).shape == (4, 5, 3)


def test_a_map_marks_each_place_at_the_middle_of_its_patch(figures):
    proved = torch.tensor([[True, False, True], [True, True, False]])
    patch_places_figure(torch.rand(1, 6, 5), proved, "f.png", "5x3")
    left, right = figures[0].axes
    good, bad = [dots.get_offsets().tolist() for dots in right.collections]
    assert bad == [[2.0, 2.0], [3.0, 3.0]] and len(good) == 4
    assert right.get_title() == "5x3: 4 of 6 places proved" and not left.collections


def test_a_map_of_a_search(figures):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(36, 3))
    y, perturbation = model(X).argmax(1), PerturbationPatch(3)
    C = margin_matrix(y, 3)
    result = BoundedModule(model).bound_patches(X, perturbation, C, torch.zeros(2, 2))
    patch_places_figure(X[0], result.proved[0], "f.png")
    assert f"{int(result.proved[0].sum())} of 16" in figures[0].axes[1].get_title()


def test_both_write_files(tmp_path):
    ranges = pixel_ranges_figure(X, X, X, tmp_path / "new" / "ranges.png")
    places = patch_places_figure(X[0], torch.zeros(2, 2).bool(), tmp_path / "places.png")
    assert all(path.read_bytes()[:4] == b"\x89PNG" for path in (ranges, places))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pixel_ranges_figure(X[0], X, X, "f.png"), "images has the shape"),
        (lambda: pixel_ranges_figure(X, X[:1], X, "f.png"), "lower has the shape"),
        (lambda: pixel_ranges_figure(X, X, X.expand(2, 2, 6, 6), "f.png"), "upper has the shape"),
        (lambda: pixel_ranges_figure(X, X, X, "f.png", ["one"]), "names: 1 for 2 images"),
        (lambda: patch_places_figure(X, torch.ones(2, 2).bool(), "f.png"), "image has the shape"),
        (lambda: patch_places_figure(X[0], torch.ones(7, 2).bool(), "f.png"), "proved has"),
        (lambda: patch_places_figure(X[0], torch.ones(2, 2), "f.png"), "give bools"),
    ],
)
def test_what_is_no_image_is_refused(call, message):
    with pytest.raises(InvalidArgumentError, match=message):
        call()
