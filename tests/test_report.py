"""Tables and figures show the numbers that they were given."""

from __future__ import annotations

import pytest

from lirpa_multinorm import report
from lirpa_multinorm.errors import InvalidArgumentError
from lirpa_multinorm.report import COLOURS, grouped_bars, markdown_table

ROWS = [
    {"loss": "ibp", "linf": 82.44, "union": 81},
    {"loss": "sabr|max", "linf": 84.26, "union": None, "note": "two\nlines"},
]


def test_table_is_aligned_and_formatted():
    assert markdown_table(ROWS, ["loss", "linf", "union", "note"], {"linf": ".1f"}).split("\n") == [
        r"| loss      | linf | union | note      |",
        r"| :-------- | ---: | ----: | :-------- |",
        r"| ibp       | 82.4 |    81 | –         |",
        r"| sabr\|max | 84.3 |     – | two lines |",
    ]


def test_table_takes_functions_as_formats():
    table = markdown_table(ROWS, ["linf"], {"linf": lambda value: f"{value:.0f} %"})
    assert table.split("\n")[2] == "| 82 % |"


def test_table_without_rows_keeps_its_heading():
    assert markdown_table([], ["loss"]).split("\n") == ["| loss |", "| :--- |"]


def test_text_formats_are_not_forced_on_strings():
    rows = [{"time": 1.25}, {"time": "timeout"}]
    assert markdown_table(rows, ["time"], {"time": ".1f"}).split("\n")[2:] == ["| 1.2     |", "| timeout |"]


def test_unknown_columns_are_named():
    with pytest.raises(InvalidArgumentError, match="columns: 'l2' is in none.*loss, linf, union, note"):
        markdown_table(ROWS, ["loss", "l2"])
    with pytest.raises(InvalidArgumentError, match="columns: none given"):
        markdown_table(ROWS, [])


def columns_of_colour(path, colour):
    """Lowest and highest number of pixels of a colour in the columns of the picture that have it."""
    matplotlib = pytest.importorskip("matplotlib")
    from matplotlib.colors import to_rgb

    picture = matplotlib.image.imread(path)[..., :3]
    match = (abs(picture - to_rgb(colour)) < 0.01).all(axis=-1).sum(axis=0)
    return match[match > 0]


def test_bars_are_as_high_as_their_values(tmp_path):
    rows = [{"loss": "a", "one": 100, "two": 50.0}, {"loss": "b", "one": 25, "two": None}]
    path = grouped_bars(rows, ["loss", "one", "two"], tmp_path / "new" / "f.png", "Title", "accuracy (%)")
    assert path.read_bytes().startswith(b"\x89PNG")
    assert [p.name for p in path.parent.iterdir()] == ["f.png"]
    one, two = (columns_of_colour(path, colour) for colour in COLOURS[:2])
    # Pixel columns of a bar have its height; the legend's patches are a few pixels high.
    high, low = one.max(), sorted(set(one[one > 40]))[0]
    assert high / low == pytest.approx(4, rel=0.03)
    assert two.max() / high == pytest.approx(0.5, rel=0.03)


def test_bars_carry_their_values_and_names(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    figures = []
    monkeypatch.setattr(report, "_save", lambda figure, path: figures.append(figure))
    grouped_bars(ROWS, ["loss", "linf", "union"], tmp_path / "f.png", "Title", "%", {"linf": ".1f"})
    (axes,) = figures[0].axes
    assert [bar.get_height() for bar in axes.patches] == [82.44, 84.26, 81, 0]
    assert [text.get_text() for text in axes.texts] == ["82.4", "84.3", "81", "n/a"]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["ibp", "sabr|max"]
    assert [text.get_text() for text in figures[0].legends[0].get_texts()] == ["linf", "union"]
    assert (axes.get_title(loc="left"), axes.get_ylabel()) == ("Title", "%")


def test_bars_leave_pyplot_alone(tmp_path):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    grouped_bars(ROWS, ["loss", "linf"], tmp_path / "f.png", "Title", "%")
    assert pyplot.get_fignums() == []


def test_many_long_names_still_fit(tmp_path):
    rows = [{"loss": f"a rather long name of a loss, number {i}", "x": -float(i)} for i in range(40)]
    path = grouped_bars(rows, ["loss", "x"], tmp_path / "f.png", "Title", "%")
    height, width = pytest.importorskip("matplotlib").image.imread(path).shape[:2]
    assert width <= 2400 and height == 630


@pytest.mark.parametrize(
    "rows, columns, message",
    [
        (ROWS, ["loss"], "columns: .*draw no bar"),
        ([], ["loss", "linf"], "with 0 rows"),
        (ROWS, ["linf", "loss"], "columns: 'loss' holds something other than numbers"),
    ],
)
def test_nothing_to_draw_is_an_error(tmp_path, rows, columns, message):
    with pytest.raises(InvalidArgumentError, match=message):
        grouped_bars(rows, columns, tmp_path / "f.png", "Title", "%")
    assert not (tmp_path / "f.png").exists()
