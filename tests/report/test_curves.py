"""Curves pass through the numbers they were given, with gaps where there are none."""

from __future__ import annotations

import math

import pytest

from lirpa_multinorm.errors import InvalidArgumentError
from lirpa_multinorm.report import has_curves, learning_curves, line_chart


def drawn(axes):
    """Points of every line by its name, None for a gap."""
    return {
        line.get_label(): [(x, None if math.isnan(y) else y) for x, y in zip(*line.get_data())]
        for line in axes.get_lines()
    }


def run(epochs=30):
    """A log as the trainer writes it.

    No robust loss in the natural epoch, certification now and then.
    """
    lines = []
    for epoch in range(1, epochs + 1):
        line = {
            "epoch": epoch,
            "learning_rate": 5e-4 if epoch < 20 else 1e-4,
            "eps_scale": min(1, (epoch - 1) / 10),
            "natural_loss": 2 / epoch,
            "accuracy": 1 - 0.5 / epoch,
            "seconds": 3.5,
            "projection_seconds": 1.0,
        }
        if epoch > 1:
            line.update(
                robust_loss=100 / epoch**2, alignment=0.1, region_proved_0=0.5, regularizer=0.0
            )
        if epoch % 10 == 0:
            line["validation_accuracy"] = 0.5
        lines.append(line)
    return lines


def test_line_chart_draws_every_series_with_its_gaps(figures):
    series = {"IBP": ([1, 2, 4], [0.9, None, 0.5]), "CROWN": (range(2), (math.inf, 1))}
    assert line_chart(series, "f.png", "Depth", "layers", "share") == "f.png"
    (axes,) = figures[0].axes
    assert drawn(axes) == {"IBP": [(1, 0.9), (2, None), (4, 0.5)], "CROWN": [(0, None), (1, 1)]}
    assert (axes.get_title(loc="left"), axes.get_xlabel(), axes.get_ylabel()) == (
        "Depth",
        "layers",
        "share",
    )
    assert [text.get_text() for text in figures[0].legends[0].get_texts()] == ["IBP", "CROWN"]


def test_lines_of_the_same_colour_differ_in_style(figures):
    line_chart({f"s{i}": ([0, 1], [0, i]) for i in range(20)}, "f.png", "T", "x", "y")
    looks = {(line.get_color(), line.get_linestyle()) for line in figures[0].axes[0].get_lines()}
    assert len(looks) == 20


def test_a_point_alone_between_gaps_is_marked(figures):
    ys = [1.0] * 30 + [None, 2.0, None] + [1.0] * 10
    line_chart({"gaps": (range(43), ys), "whole": (range(43), [0] * 43)}, "f.png", "T", "x", "y")
    gaps, whole = figures[0].axes[0].get_lines()
    assert (gaps.get_marker(), gaps.get_markevery()) == ("o", [31]) and whole.get_marker() == "None"


@pytest.mark.parametrize(
    "series, message",
    [
        ({}, "series: holds no point"),
        ({"a": ([1], [None]), "b": ([], [])}, "series: holds no point"),
        ({"a": ([1, 2], [1])}, "series: 'a' has 2 x and 1 y values"),
        ({"a": ([1], ["2"])}, "series: 'a' holds '2'"),
        ({"a": ([None], [2])}, "series: 'a' holds None"),
    ],
)
def test_bad_series(tmp_path, series, message):
    with pytest.raises(InvalidArgumentError, match=message):
        line_chart(series, tmp_path / "f.png", "T", "x", "y")
    assert not (tmp_path / "f.png").exists()


def test_learning_curves_sort_the_keys_into_panels(figures):
    learning_curves(run(), "f.png", "Max on MNIST")
    losses, shares, schedule, rate = figures[0].axes
    assert list(drawn(losses)) == ["natural loss", "robust loss", "alignment", "regularizer"]
    assert list(drawn(shares)) == ["accuracy", "region proved 0", "validation accuracy"]
    assert list(drawn(schedule)) == ["eps scale"] and len(rate.get_lines()) == 1
    assert rate.get_lines()[0].get_ydata()[[0, -1]] == pytest.approx([5e-4, 1e-4])
    assert figures[0].get_suptitle() == "Max on MNIST" and schedule.get_xlabel() == "epoch"
    assert rate.get_ylabel() == "learning rate"
    texts = [text.get_text() for text in schedule.get_legend().get_texts()]
    assert texts == ["eps scale", "learning rate (right)"]
    # 0 is at the same height on both scales.
    heights = [axes.transData.transform((0, 0))[1] for axes in (schedule, rate)]
    assert heights[0] == pytest.approx(heights[1], abs=0.5)


def test_learning_curves_are_over_epochs_with_gaps(figures):
    lines = run(12)
    lines[5]["natural_loss"], lines[6]["accuracy"] = "NaN", math.inf
    del lines[3:5]  # epochs 4 and 5 are not in the log
    learning_curves(lines, "f.png", "T")
    losses, shares = (drawn(axes) for axes in figures[0].axes[:2])
    epochs = [1, 2, 3, 6, 7, 8, 9, 10, 11, 12]
    assert losses["natural loss"] == [(e, None if e == 6 else pytest.approx(2 / e)) for e in epochs]
    assert losses["robust loss"][:2] == [(1, None), (2, 25.0)]
    assert shares["accuracy"][4] == (7, None)
    assert [point for point in shares["validation accuracy"] if point[1] is not None] == [(10, 0.5)]


def test_other_numbers_get_a_panel_and_text_none(figures):
    lines = [
        {"epoch": e, "natural_loss": 1.0, "gradient_norm": 5.0 * e, "note": "x", "on": True}
        for e in (1, 2)
    ]
    learning_curves(lines, "f.png", "T")
    assert [list(drawn(axes)) for axes in figures[0].axes] == [["natural loss"], ["gradient norm"]]


def test_steep_losses_get_a_logarithmic_scale_that_knows_zero(figures):
    learning_curves(run(), "f.png", "T")
    learning_curves([{"epoch": e, "natural_loss": 2 / e} for e in range(1, 5)], "f.png", "T")
    assert [figure.axes[0].get_yscale() for figure in figures] == ["symlog", "linear"]


def test_learning_rate_alone_can_be_drawn(tmp_path):
    path = learning_curves([{"epoch": 1, "learning_rate": 0.0}], tmp_path / "f.png", "T")
    assert path.read_bytes().startswith(b"\x89PNG")


def test_a_real_file_is_written_once(tmp_path):
    path = learning_curves(run(), tmp_path / "new" / "curves.png", "T")
    assert path.read_bytes().startswith(b"\x89PNG") and [p.name for p in path.parent.iterdir()] == [
        "curves.png"
    ]


def test_bad_logs(tmp_path):
    for lines, message in (
        ([], "0 lines hold no number"),
        ([{"epoch": 1, "seconds": 2.0}], "1 lines hold no number"),
        ([{"epoch": 1, "loss": 1.0}, {"loss": 2.0}], "no number under 'epoch'"),
    ):
        with pytest.raises(InvalidArgumentError, match=f"log_lines: .*{message}"):
            learning_curves(lines, tmp_path / "f.png", "T")
    assert not has_curves([{"epoch": 1, "seconds": 2.0}]) and has_curves(run(1))
