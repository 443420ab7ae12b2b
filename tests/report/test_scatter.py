"""Named points at their places, with error bars, and names that can be read."""

from __future__ import annotations

import math
import random

import pytest

from lirpa_multinorm.errors import InvalidArgumentError
from lirpa_multinorm.report import scatter_chart
from lirpa_multinorm.report.scatter import Box

ROWS = [
    {"loss": "IBP", "clean": 71.0, "union": 52.0, "c": 1.0, "u": 0.5, "by": "paper"},
    {"loss": "SABR", "clean": 79.5, "union": 55.0, "c": None, "u": 0.25, "by": "ours"},
    {"loss": "Max", "clean": 75.0, "union": 57.0, "by": "paper"},
    {"loss": "left out", "clean": 75.0, "union": None, "c": 1.0, "u": 1.0, "by": "nobody"},
]
LABELS = ("Title", "clean (%)", "union (%)")


def chart(rows=ROWS, path="f.png", **options):
    return scatter_chart(rows, "clean", "union", "loss", path, *LABELS, **options)


def points(axes):
    """Places by the group's name."""
    from matplotlib.collections import PathCollection

    return {
        dots.get_label(): [tuple(place) for place in dots.get_offsets()]
        for dots in axes.collections
        if isinstance(dots, PathCollection)
    }


def test_points_and_names(figures):
    chart([*ROWS, {"loss": "diverged", "clean": math.nan, "union": 50.0}])
    (axes,) = figures[0].axes
    (places,) = points(axes).values()
    assert places == [(71.0, 52.0), (79.5, 55.0), (75.0, 57.0)]
    assert {text.get_text(): text.xy for text in axes.texts} == dict(
        zip(("IBP", "SABR", "Max"), places)
    )
    assert (axes.get_title(loc="left"), axes.get_xlabel(), axes.get_ylabel()) == LABELS
    assert not figures[0].legends


def test_groups_have_a_colour_each_and_a_legend(figures):
    chart(group="by")
    (axes,) = figures[0].axes
    assert points(axes) == {"paper": [(71.0, 52.0), (75.0, 57.0)], "ours": [(79.5, 55.0)]}
    assert [text.get_text() for text in figures[0].legends[0].get_texts()] == ["paper", "ours"]
    colours = {tuple(dots.get_facecolor()[0]) for dots in axes.collections}
    assert len(colours) == 2


def test_error_bars_have_their_half_widths(figures):
    from matplotlib.collections import LineCollection

    chart(errors={"clean": "c", "union": "u"})
    bars = {
        tuple(map(tuple, segment.round(9)))
        for lines in figures[0].axes[0].collections
        if isinstance(lines, LineCollection)
        for segment in lines.get_segments()
    }
    assert bars == {((70, 52), (72, 52)), ((71, 51.5), (71, 52.5)), ((79.5, 54.75), (79.5, 55.25))}


def boxes(figure):
    figure.draw_without_rendering()
    (axes,) = figure.axes
    return [Box(*text.get_window_extent().extents) for text in axes.texts], Box(
        *axes.get_window_extent().extents
    )


@pytest.mark.parametrize("spread", [0.4, 1.5, 5.0])
def test_names_keep_off_each_other_and_off_the_points(figures, spread):
    generator = random.Random(0)
    rows = [
        {
            "loss": f"method {i}",
            "clean": generator.gauss(0, spread),
            "union": generator.gauss(0, spread),
        }
        for i in range(15)
    ]
    rows += [{"loss": "far", "clean": 10, "union": 10}]
    chart(rows)
    texts, frame = boxes(figures[0])
    covered = [item.overlap(other) for i, item in enumerate(texts) for other in texts[:i]]
    assert max(covered) == 0
    assert all(item.outside(frame) < 1 for item in texts)
    (axes,) = figures[0].axes
    for row in rows:
        across, up = axes.transData.transform((row["clean"], row["union"]))
        assert not any(box.left < across < box.right and box.bottom < up < box.top for box in texts)


def test_a_name_far_from_its_point_gets_a_line(figures):
    rows = [{"loss": f"the same place {i}", "clean": 1.0, "union": 1.0} for i in range(14)]
    chart(rows)
    texts, _ = boxes(figures[0])
    assert max(item.overlap(other) for i, item in enumerate(texts) for other in texts[:i]) == 0
    (axes,) = figures[0].axes
    lines = axes.get_lines()
    assert 0 < len(lines) < 14
    for line in lines:
        assert line.get_xydata()[0] == pytest.approx([1, 1])
        end = axes.transData.transform(line.get_xydata()[1])
        assert any(
            box.left - 1 <= end[0] <= box.right + 1 and box.bottom - 1 <= end[1] <= box.top + 1
            for box in texts
        )


def test_a_file_is_written(tmp_path):
    path = chart(path=tmp_path / "new" / "f.png", errors={"union": "u"}, group="by")
    assert path.read_bytes().startswith(b"\x89PNG") and [p.name for p in path.parent.iterdir()] == [
        "f.png"
    ]


@pytest.mark.parametrize(
    "rows, options, message",
    [
        (ROWS[3:], {}, "rows: none has both 'clean' and 'union'"),
        ([], {}, "rows: none has both"),
        ([{"clean": 1}], {}, "columns: 'union' is in none"),
        (
            [{"loss": "a", "clean": "b", "union": 1}],
            {},
            "columns: 'clean' holds something other than numbers",
        ),
        (ROWS, {"group": "kind"}, "columns: 'kind' is in none"),
        (ROWS, {"errors": {"clean": "by"}}, "errors: 'by' holds 'paper'"),
        (
            ROWS,
            {"errors": {"loss": "c"}},
            "errors: 'loss' is not drawn. Use keys among: clean, union",
        ),
        ([dict(ROWS[0], c=math.nan)], {"errors": {"clean": "c"}}, "errors: 'c' holds nan"),
    ],
)
def test_bad_arguments(tmp_path, rows, options, message):
    with pytest.raises(InvalidArgumentError, match=message):
        chart(rows, tmp_path / "f.png", **options)
    assert not (tmp_path / "f.png").exists()
