"""Bars have the heights, names and error bars of their rows."""

from __future__ import annotations

import numpy
import pytest

from lirpa_multinorm.errors import InvalidArgumentError
from lirpa_multinorm.report import grouped_bars

ROWS = [
    {"loss": "ibp", "linf": 82.44, "union": 81, "spread": 1.5},
    {"loss": "sabr|max", "linf": 84.26, "union": None, "spread": None},
]


def columns_of_colours(path, count):
    """Of the colours that most pixels have: their numbers in the columns of the picture.

    White, black and the greys between them are none.
    """
    import matplotlib

    picture = (255 * matplotlib.image.imread(path)[..., :3]).round().astype(int)
    pixels = picture.reshape(-1, 3)
    bright = pixels[pixels.max(axis=1) - pixels.min(axis=1) > 40]
    colours, counts = numpy.unique(bright, axis=0, return_counts=True)
    columns = []
    for colour in colours[counts.argsort()[::-1][:count]]:
        match = (picture == colour).all(axis=-1).sum(axis=0)
        columns.append(match[match > 0])
    return columns


def error_bars(axes):
    """The ends (x, low, high) of every error bar that is longer than 0."""
    from matplotlib.collections import LineCollection

    ends = [
        segment
        for lines in axes.collections
        if isinstance(lines, LineCollection)
        for segment in lines.get_segments()
    ]
    return [(x, low, high) for (x, low), (_, high) in ends if high > low]


def test_bars_are_as_high_as_their_values(tmp_path):
    rows = [{"loss": "a", "one": 100, "two": 50.0}, {"loss": "b", "one": 25, "two": None}]
    path = grouped_bars(
        rows, ["loss", "one", "two"], tmp_path / "new" / "f.png", "Title", "accuracy (%)"
    )
    assert path.read_bytes().startswith(b"\x89PNG")
    assert [p.name for p in path.parent.iterdir()] == ["f.png"]
    first, second = columns_of_colours(path, 2)  # bars of 100 and 25, and one of 50
    # Pixel columns of a bar have its height; the legend's patches are a few pixels high.
    high, low = first.max(), sorted(set(first[first > 40]))[0]
    assert high / low == pytest.approx(4, rel=0.03)
    assert second.max() / high == pytest.approx(0.5, rel=0.03)


def test_bars_carry_their_values_and_names(figures):
    grouped_bars(ROWS, ["loss", "linf", "union"], "f.png", "Title", "%", {"linf": ".1f"})
    (axes,) = figures[0].axes
    assert [bar.get_height() for bar in axes.patches] == [82.44, 84.26, 81, 0]
    assert [text.get_text() for text in axes.texts] == ["82.4", "84.3", "81", "n/a"]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["ibp", "sabr|max"]
    assert [text.get_text() for text in figures[0].legends[0].get_texts()] == ["linf", "union"]
    assert (axes.get_title(loc="left"), axes.get_ylabel()) == ("Title", "%")
    assert not error_bars(axes)


def test_error_bars_stand_on_the_ends_of_their_bars(figures):
    rows = [*ROWS, {"loss": "max", "linf": 60, "union": 50, "spread": 4.0}]
    grouped_bars(rows, ["loss", "linf", "union"], "f.png", "Title", "%", errors={"union": "spread"})
    (axes,) = figures[0].axes
    places = [bar.get_x() + bar.get_width() / 2 for bar in axes.patches]
    want = [(places[3], 79.5, 82.5), (places[5], 46.0, 54.0)]
    assert error_bars(axes) == [pytest.approx(item) for item in want]
    # A value is written above its error bar, where one is.
    high = {text.get_text(): text.xy[1] for text in axes.texts}
    assert high["81"] == pytest.approx(82.5) and high["60"] == 60


def test_a_half_width_without_a_value_draws_nothing(figures):
    rows = [{"loss": "a", "x": None, "e": 2.0}, {"loss": "b", "x": 1, "e": 0.5}]
    grouped_bars(rows, ["loss", "x"], "f.png", "Title", "%", errors={"x": "e"})
    assert [ends[1:] for ends in error_bars(figures[0].axes[0])] == [(0.5, 1.5)]


def test_bars_leave_pyplot_alone(tmp_path):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    grouped_bars(ROWS, ["loss", "linf"], tmp_path / "f.png", "Title", "%")
    assert pyplot.get_fignums() == []


def test_many_long_names_still_fit(tmp_path):
    rows = [
        {"loss": f"a rather long name of a loss, number {i}", "x": -float(i)} for i in range(40)
    ]
    path = grouped_bars(rows, ["loss", "x"], tmp_path / "f.png", "Title", "%")
    height, width = pytest.importorskip("matplotlib").image.imread(path).shape[:2]
    assert width <= 2400 and height == 630


@pytest.mark.parametrize(
    "rows, columns, errors, message",
    [
        (ROWS, ["loss"], None, "columns: .*draw no bar"),
        ([], ["loss", "linf"], None, "with 0 rows"),
        (ROWS, ["linf", "loss"], None, "columns: 'loss' holds something other than numbers"),
        (
            ROWS,
            ["loss", "linf"],
            {"union": "spread"},
            "errors: 'union' is not drawn. Use keys among: linf",
        ),
        (ROWS, ["loss", "linf"], {"linf": "std"}, "columns: 'std' is in none"),
        (ROWS, ["loss", "linf"], {"linf": "loss"}, "errors: 'loss' holds 'ibp'"),
        (
            [{"a": "x", "b": 1, "c": -1}],
            ["a", "b"],
            {"b": "c"},
            "errors: 'c' holds -1. Pass half-widths",
        ),
    ],
)
def test_nothing_to_draw_is_an_error(tmp_path, rows, columns, errors, message):
    with pytest.raises(InvalidArgumentError, match=message):
        grouped_bars(rows, columns, tmp_path / "f.png", "Title", "%", errors=errors)
    assert not (tmp_path / "f.png").exists()
