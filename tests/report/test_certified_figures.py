"""The figures of a report: one of each kind, with the lengths and names of their rows."""

from __future__ import annotations

import math
import re

import pytest

from lirpa_multinorm import PerturbationL2Box, PerturbationLinf
from lirpa_multinorm.errors import InvalidArgumentError
from lirpa_multinorm.report import stacked_bars
from lirpa_multinorm.report.margins import margin_figure, margin_statistics, pairs_of_sets
from lirpa_multinorm.report.runs import load_runs
from tests.report.records import C, F, U, report_of, write


def test_every_figure_is_drawn_and_shown(tmp_path, figures):
    other = write(tmp_path / "other", sets=[PerturbationLinf(0.2), PerturbationL2Box(0.7)])
    text, _ = report_of(tmp_path, write(tmp_path / "one"), other)
    names = ["deciding.png", "margins_1.png", "margins_2.png", "radius_l_2.png", "radius_l_inf.png"]
    assert sorted(re.findall(r"\]\((.*?)\)", text)) == names and len(figures) == 5


def test_figures_are_files(tmp_path):
    (run,) = load_runs([write(tmp_path / "one")])
    assert (
        margin_figure([run], (1,), tmp_path / "new" / "f.png").read_bytes().startswith(b"\x89PNG")
    )


def test_margins_of_two_models_beside_each_other(tmp_path, figures):
    runs = load_runs(
        [
            write(tmp_path / "one"),
            write(
                tmp_path / "two", seed=1, margin=[[-1.0] * 6, [1.0] * 6], status=[[U] * 6, [C] * 6]
            ),
        ]
    )
    margin_figure(runs, (0, 1), tmp_path / "f.png")
    axes = figures[0].axes
    assert [item.get_title(loc="left") for item in axes] == ["one", "two", "", "", "", ""]
    assert [item.get_ylabel() for item in axes[::2]] == [
        "margin, l_inf 0.1",
        "margin, l_2 0.5",
        "margin l_inf 0.1\n- margin l_2 0.5",
    ]
    assert axes[0].get_ylim() == axes[1].get_ylim()
    assert [[label.get_text() for label in item.texts] for item in axes[::2]] == [
        ["1 of 4 negative; 2 without a bound"],
        ["1 of 3 negative; 3 without a bound"],
        ["0 of 2 negative; 4 without a bound"],
    ]
    assert axes[5].texts[0].get_text() == "6 of 6 negative; 0 without a bound"


def test_margins_that_were_never_bounded(tmp_path):
    run = write(tmp_path / "one", [[F] * 6] * 2, [["PGD"] * 6] * 2, [[-math.inf] * 6] * 2)
    with pytest.raises(InvalidArgumentError, match="no image of them has a margin bound"):
        margin_figure(load_runs([run]), (0, 1), tmp_path / "f.png")
    text, _ = report_of(tmp_path, run)
    assert "margins_1.png" not in text and "margin, l_2 0.5" in text


def test_one_norm_at_two_radii_has_no_difference(tmp_path, figures):
    (run,) = load_runs(
        [write(tmp_path / "one", sets=[PerturbationLinf(0.1), PerturbationLinf(0.2)])]
    )
    assert pairs_of_sets(run) == [] and len(margin_statistics(run)) == 2
    report_of(tmp_path, run.folder)
    (figure,) = [figure for figure in figures if "margin" in figure.axes[0].get_ylabel()]
    assert [axes.get_ylabel() for axes in figure.axes] == ["margin, l_inf 0.1", "margin, l_inf 0.2"]


def test_stacked_bars_have_the_lengths_of_their_parts(figures):
    stacked_bars(
        [{"run": "a", "x": 3, "y": 1}, {"run": "b", "y": 4}],
        "run",
        ["x", "y"],
        "f.png",
        "Title",
        "images",
    )
    (axes,) = figures[0].axes
    assert [(bar.get_x(), bar.get_width()) for bar in axes.patches] == [
        (0, 3),
        (0, 0),
        (3, 1),
        (0, 4),
    ]
    assert [text.get_text() for text in axes.texts] == ["3", "", "1", "4"]


@pytest.mark.parametrize(
    "rows, parts, message",
    [
        ([], ["x"], "0 rows"),
        ([{"run": "a"}], [], "draw no bar"),
        ([{"run": "a", "x": -1}], ["x"], "'x' holds -1"),
        ([{"run": "a", "x": "b"}], ["x"], "other than numbers"),
    ],
)
def test_bars_that_cannot_be_stacked(rows, parts, message):
    with pytest.raises(InvalidArgumentError, match=message):
        stacked_bars(rows, "run", parts, "f.png", "Title", "images")
