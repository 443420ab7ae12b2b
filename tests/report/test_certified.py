"""The report on recorded certifications says what they say, and what must not be compared."""

from __future__ import annotations

import json
import math
import re

import pytest
import torch

from lirpa_multinorm import Certification, CertifySettings, PerturbationL2Box, PerturbationLinf
from lirpa_multinorm.certification import (
    CERTIFIED,
    ERROR,
    FALSIFIED,
    MISCLASSIFIED,
    NOT_RUN,
    TIMEOUT,
    UNKNOWN,
    record_header,
    record_lines,
    records,
)
from lirpa_multinorm.cli import main
from lirpa_multinorm.errors import InvalidArgumentError, OutputFolderError, RecordsError
from lirpa_multinorm.report import certification_report, certified, comparison, stacked_bars
from lirpa_multinorm.report.margins import margin_figure, margin_statistics, pairs_of_sets
from lirpa_multinorm.report.runs import comparable, load_runs

SETS = [PerturbationLinf(0.1), PerturbationL2Box(0.5)]
C, F, U, M = CERTIFIED, FALSIFIED, UNKNOWN, MISCLASSIFIED
STATUS = [[C, C, F, U, M, C], [C, F, C, U, M, U]]
METHOD = [["IBP", "CROWN", "PGD", "", "clean", "IBP"], ["CROWN", "PGD", "IBP", "", "clean", ""]]
MARGIN = [
    [1.0, 0.5, -math.inf, -0.25, -math.inf, 0.25],
    [0.5, -math.inf, 2.0, -1.0, -math.inf, -math.inf],
]
LABELS = [0, 0, 1, 1, 2, 2]


def write(
    folder,
    status=STATUS,
    method=METHOD,
    margin=MARGIN,
    sets=SETS,
    seed=0,
    settings=CertifySettings(),
    images=0,
    left=(),
    damage="",
):
    """Write records of a certification made by hand, with the model and images that seeds give."""
    n = len(status[0])
    torch.manual_seed(seed)
    model = torch.nn.Linear(4, 3)
    torch.manual_seed(images)
    x = torch.rand(n, 4)
    points = {
        (place, image): x[image]
        for place, row in enumerate(status)
        for image, one in enumerate(row)
        if one == F
    }
    found = Certification(
        sets,
        status,
        method,
        torch.tensor(margin, dtype=torch.float64),
        torch.zeros(n).long(),
        seconds=torch.ones(n, dtype=torch.float64),
        adversarial=points,
        errors={image: "broken" for image, one in enumerate(status[0]) if one == ERROR},
    )
    lines = {i: record_lines.line_of(found, i, i, LABELS[i]) for i in range(n) if i not in left}
    folder.mkdir()
    header = record_header.header_of(model, x, torch.tensor(LABELS[:n]), sets, settings)
    records.write_records(folder / "records.jsonl", header, lines)
    with open(folder / "records.jsonl", "a") as file:
        file.write(damage)
    return folder


@pytest.fixture
def no_figures(monkeypatch):
    monkeypatch.setattr(certified, "_draw", lambda *_: {})


def report_of(tmp_path, *runs):
    text = certification_report(runs, tmp_path / "report")
    return text, json.loads((tmp_path / "report" / "report.json").read_text())


# --- what it says ---------------------------------------------------------------------------------


def test_a_run_by_numbers(tmp_path, no_figures):
    text, content = report_of(tmp_path, write(tmp_path / "one"))
    (run,) = content["runs"]
    assert (run["n"], run["certified"], run["certified_union"]) == (6, [0.5, 1 / 3], 1 / 6)
    assert (run["clean"], run["attacked"], run["attacked_union"]) == (5 / 6, [4 / 6, 4 / 6], 3 / 6)
    assert run["sets"] == [one.title() for one in SETS] and all(one.title() in text for one in SETS)
    assert run["counts"][0] == {C: 3, F: 1, U: 1, M: 1, TIMEOUT: 0, ERROR: 0, NOT_RUN: 0}
    low, high = run["intervals"]["certified_union"]
    assert f"{100 / 6:.2f} ({100 * low:.1f} to {100 * high:.1f})" in text and low < 1 / 6 < high
    assert content["cautions"] == [] and "Read this first" not in text
    header = json.loads((tmp_path / "one" / "records.jsonl").read_text().splitlines()[0])
    assert (
        header["model_sha256"][:12] in text
        and (tmp_path / "report" / "report.md").read_text() == text + "\n"
    )


def test_which_method_decided_what(tmp_path, no_figures):
    _, content = report_of(tmp_path, write(tmp_path / "one"))
    by = {(row["set"], row["status"]): row["by"] for row in content["runs"][0]["deciding"]}
    assert by["l_inf 0.1", C] == {"CROWN": 1, "IBP": 2} and by["l_2 0.5", F] == {"PGD": 1}
    assert sum(sum(row.values()) for row in by.values()) == 12  # every pair once
    rows, parts = certified._bars(load_runs([tmp_path / "one"]))
    assert parts == ["certified by IBP", "certified by CROWN", F, U, M]
    assert rows[0] == {
        "run": "one, l_inf 0.1",
        "certified by IBP": 2,
        "certified by CROWN": 1,
        F: 1,
        U: 1,
        M: 1,
    }


def test_where_the_norms_disagree(tmp_path, no_figures):
    text, content = report_of(tmp_path, write(tmp_path / "one"))
    first, second = content["runs"][0]["disagreement"]
    assert (first["certified"], first["not_certified"], first["images"]) == (
        "l_inf 0.1",
        "l_2 0.5",
        [1, 5],
    )
    assert first["there"] == {F: 1, U: 1} and (second["count"], second["images"]) == (1, [2])
    assert "1 falsified, 1 unknown" in text


def test_margins_by_class(tmp_path):
    (run,) = load_runs([write(tmp_path / "one")])
    linf, l2, difference = margin_statistics(run)
    assert linf["values"] == [1.0, 0.5, None, -0.25, None, 0.25]
    assert difference["values"] == [0.5, None, None, 0.75, None, None] and difference["sets"] == [
        0,
        1,
    ]
    assert linf["per_class"][0] == {
        "n": 2,
        "bounded": 2,
        "negative": 0,
        "min": 0.5,
        "max": 1.0,
        "quartiles": [0.625, 0.75, 0.875],
    }
    assert l2["per_class"][2] == {"n": 2, "bounded": 0, "negative": 0}
    assert (l2["all"]["bounded"], l2["all"]["negative"]) == (3, 1)
    assert l2["per_class"][0]["quartiles"] == [0.5] * 3  # of one image


def test_certified_accuracy_against_the_radius(tmp_path, no_figures):
    sets = [[PerturbationLinf(eps), PerturbationL2Box(4 * eps)] for eps in (0.2, 0.1)]
    large = write(
        tmp_path / "large",
        [[C, F, F, U, M, U], [F, F, F, U, M, U]],
        margin=[[1.0] + [-1.0] * 5, [-math.inf] * 6],
        sets=sets[0],
    )
    text, content = report_of(tmp_path, large, write(tmp_path / "small", sets=sets[1]))
    linf, l2 = content["radius_curves"]
    assert (linf["norm"], linf["runs"]) == ("l_inf", ["large", "small"])
    assert [one["eps"] for one in linf["points"]] == [0.1, 0.2]
    assert [one["certified"] for one in linf["points"]] == [3 / 6, 1 / 6] and linf[
        "name"
    ].startswith("model ")
    assert [one["run"] for one in l2["points"]] == ["small", "large"] and "## Radii" in text


@pytest.mark.parametrize(
    "change",
    [{"seed": 1}, {"images": 1}, {"settings": CertifySettings(methods=["IBP"])}],
    ids=["model", "images", "settings"],
)
def test_curves_do_not_mix(change, tmp_path, no_figures):
    other = write(
        tmp_path / "other", sets=[PerturbationLinf(0.2), PerturbationL2Box(0.7)], **change
    )
    text, content = report_of(tmp_path, write(tmp_path / "one"), other)
    assert [curve["runs"] for curve in content["radius_curves"]] == [
        ["one"],
        ["one"],
        ["other"],
        ["other"],
    ]
    assert "## Radii" not in text


def test_a_radius_per_image_has_no_place_on_a_curve(tmp_path, no_figures):
    text, content = report_of(
        tmp_path,
        write(tmp_path / "one", sets=[PerturbationLinf(torch.linspace(0.1, 0.6, 6)), SETS[1]]),
    )
    assert [curve["norm"] for curve in content["radius_curves"]] == [
        "l_2"
    ] and "radius 0.1 to 0.6" in text


def test_runs_side_by_side(tmp_path, no_figures):
    text, content = report_of(tmp_path, write(tmp_path / "one"), write(tmp_path / "two", seed=1))
    assert content["comparable"] == [["one", "two"]] and not content["cautions"]
    assert text.count("certified union") == 1  # one table of accuracies


# --- what a reader must know ----------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*damaged line")
def test_images_not_run_are_named_and_never_certified(tmp_path, no_figures):
    status = [[C, NOT_RUN, C, C, C, ERROR], [C, NOT_RUN, NOT_RUN, C, C, ERROR]]
    method = [["IBP"] * 6] * 2
    text, content = report_of(
        tmp_path,
        write(tmp_path / "one", status, method, [[1.0] * 6] * 2, left=[3], damage='{"index": 3\n'),
    )
    (run,) = content["runs"]
    assert (
        run["not_run"] == [1, 2, 3]
        and run["certified_union"] == 2 / 6
        and run["damaged_lines"] == 1
    )
    assert (
        'one: 3 of 6 images are "not run" for some set and count as not certified there: 1, 2, 3.'
        in text
    )
    assert (
        'one: 1 of 6 images are "error"' in text
        and "1 damaged line of its records left out" in text
    )


def test_one_set_has_no_union(tmp_path, no_figures):
    write(tmp_path / "one", STATUS[:1], METHOD[:1], MARGIN[:1], sets=SETS[:1])
    text, _ = report_of(tmp_path, tmp_path / "one")
    assert "certified l_inf" in text and "clean" in text and "certified union" not in text


def test_different_questions_get_tables_of_their_own(tmp_path, no_figures):
    write(tmp_path / "one")
    write(tmp_path / "images", images=1)
    write(tmp_path / "fewer", *[[row[:5] for row in rows] for rows in (STATUS, METHOD, MARGIN)])
    write(tmp_path / "sets", sets=[PerturbationLinf(0.1, clip=None), SETS[1]])
    text, content = report_of(
        tmp_path, *[tmp_path / name for name in ("one", "images", "fewer", "sets")]
    )
    assert (
        content["comparable"] == [["one"], ["images"], ["fewer"], ["sets"]]
        and text.count("certified union") == 4
    )
    (caution,) = content["cautions"]
    for word in (
        "must not be compared",
        "Different images (data digest)",
        "Different n: 6 (one, images, sets), 5 (fewer)",
        "Different sets",
        "plain l_inf ball of radius 0.1",
    ):
        assert word in caution


def test_different_settings_are_said(tmp_path, no_figures):
    other = write(tmp_path / "ibp", settings=CertifySettings(methods=["IBP"], attack=None))
    _, content = report_of(tmp_path, write(tmp_path / "one"), other)
    assert content["cautions"] == [
        "ibp: nothing was attacked, so the attacked accuracy is the clean one.",
        (
            "one, ibp: certified with different settings (methods, attacks or limits); their "
            "accuracies differ for that reason too."
        ),
    ]
    same = write(tmp_path / "batch", settings=CertifySettings(batch_size=7))
    assert not comparison.cautions(load_runs([tmp_path / "one", same]))


def test_contradictory_runs_are_shown_up(tmp_path, no_figures):
    small = write(
        tmp_path / "small",
        [[F, C, C, C, C, C]],
        [["IBP"] * 6],
        [[1.0] * 6],
        [PerturbationL2Box(0.4)],
    )
    large = write(
        tmp_path / "large", [[C] * 6], [["IBP"] * 6], [[1.0] * 6], [PerturbationL2Box(0.5)]
    )
    (found,) = comparison.contradictions(load_runs([small, large]))
    assert "CONTRADICTION: large certifies" in found and found.endswith(
        "0.4 within [0, 1]: 0. One of them is wrong; trust neither."
    )
    smaller = write(
        tmp_path / "smaller", [[C] * 6], [["IBP"] * 6], [[1.0] * 6], [PerturbationL2Box(0.3)]
    )
    assert not comparison.contradictions(load_runs([small, smaller]))


# --- figures --------------------------------------------------------------------------------------


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
    assert [one.get_title(loc="left") for one in axes] == ["one", "two", "", "", "", ""]
    assert [one.get_ylabel() for one in axes[::2]] == [
        "margin, l_inf 0.1",
        "margin, l_2 0.5",
        "margin l_inf 0.1\n- margin l_2 0.5",
    ]
    assert axes[0].get_ylim() == axes[1].get_ylim()
    assert [[label.get_text() for label in one.texts] for one in axes[::2]] == [
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
    ((group, sets),) = certified._panels([run])
    assert sets == (0, 1) and comparable([run]) == [group]
    margin_figure(group, sets, tmp_path / "f.png")
    assert len(figures[0].axes) == 2


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


# --- what goes wrong ------------------------------------------------------------------------------


def test_no_runs():
    with pytest.raises(InvalidArgumentError, match="runs: none given"):
        certification_report([])
    with pytest.raises(InvalidArgumentError, match="must be a list"):
        certification_report("one")


def test_two_runs_of_one_name(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    one, other = write(tmp_path / "a" / "max"), write(tmp_path / "b" / "max", seed=1)
    with pytest.raises(InvalidArgumentError, match="2 of them have the name 'max' .*NAME=FOLDER"):
        certification_report([one, other])
    assert [run.name for run in load_runs([("a", one), other])] == ["a", "max"]


def test_folders_without_records(tmp_path):
    with pytest.raises(RecordsError, match="holds no records.jsonl; give a folder"):
        certification_report([tmp_path])
    (tmp_path / "records.0-of-2.jsonl").write_text("")
    with pytest.raises(RecordsError, match="those of shards: merge them"):
        certification_report([tmp_path])
    (tmp_path / "records.jsonl").write_text("no header\n")
    with (
        pytest.warns(UserWarning, match="damaged"),
        pytest.raises(RecordsError, match="does not start with"),
    ):
        certification_report([tmp_path])


def test_a_run_without_images(tmp_path):
    with pytest.raises(RecordsError, match=r"no record of any image \(of 6.*--resume"):
        certification_report([write(tmp_path / "one", left=range(6))])
    header = record_header.header_of(
        torch.nn.Linear(1, 1), torch.rand(0, 1), torch.zeros(0), SETS, CertifySettings()
    )
    (tmp_path / "none").mkdir()
    records.write_records(tmp_path / "none" / "records.jsonl", header, {})
    with pytest.raises(RecordsError, match=r"no record of any image \(of 0"):
        certification_report([tmp_path / "none"])


def test_an_output_that_cannot_be_written(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(OutputFolderError, match="taken"):
        certification_report([write(tmp_path / "one")], tmp_path / "taken" / "report")


# --- command line ---------------------------------------------------------------------------------


def test_the_command(tmp_path, no_figures, capsys):
    one, other = write(tmp_path / "one"), write(tmp_path / "other", seed=1)
    assert main(["report", str(one), f"CURE={other}", "--output", str(tmp_path / "report")]) == 0
    printed = capsys.readouterr().out
    assert (
        "| CURE" in printed
        and str(tmp_path / "report") in printed
        and (tmp_path / "report" / "report.md").exists()
    )
    assert main(["report", str(one)]) == 0 and "# Certification report" in capsys.readouterr().out
    assert main(["report", str(one), str(one)]) == 2 and "NAME=FOLDER" in capsys.readouterr().err
