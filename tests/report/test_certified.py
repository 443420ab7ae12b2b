"""The report on recorded certifications says what they say, and what must not be compared."""

from __future__ import annotations

import json
import math

import pytest
import torch

from lirpa_multinorm import CertifySettings, PerturbationL2Box, PerturbationLinf
from lirpa_multinorm.certification import ERROR, NOT_RUN, TIMEOUT
from lirpa_multinorm.cli import main
from lirpa_multinorm.report import certified, comparison
from lirpa_multinorm.report.margins import margin_statistics
from lirpa_multinorm.report.runs import load_runs
from tests.report.records import MARGIN, METHOD, SETS, STATUS, C, F, M, U, report_of, write


@pytest.fixture
def drawn(monkeypatch):
    """What the report would draw, by the function that draws it; nothing is drawn."""
    calls = {name: [] for name in ("stacked_bars", "line_chart", "margin_figure")}
    for name, arguments in calls.items():
        monkeypatch.setattr(certified, name, lambda *args, seen=arguments: seen.append(args))
    return calls


def test_a_run_by_numbers(tmp_path, drawn):
    text, content = report_of(tmp_path, write(tmp_path / "one"))
    (run,) = content["runs"]
    assert (run["n"], run["certified"], run["certified_union"]) == (6, [0.5, 1 / 3], 1 / 6)
    assert (run["clean"], run["attacked"], run["attacked_union"]) == (5 / 6, [4 / 6, 4 / 6], 3 / 6)
    assert run["sets"] == [item.title() for item in SETS] and all(
        item.title() in text for item in SETS
    )
    assert run["counts"][0] == {C: 3, F: 1, U: 1, M: 1, TIMEOUT: 0, ERROR: 0, NOT_RUN: 0}
    low, high = run["intervals"]["certified_union"]
    assert f"{100 / 6:.2f} ({100 * low:.1f} to {100 * high:.1f})" in text and low < 1 / 6 < high
    assert content["cautions"] == [] and "Read this first" not in text
    header = json.loads((tmp_path / "one" / "records.jsonl").read_text().splitlines()[0])
    assert (
        header["model_sha256"][:12] in text
        and (tmp_path / "report" / "report.md").read_text() == text + "\n"
    )


def test_which_method_decided_what(tmp_path, drawn):
    _, content = report_of(tmp_path, write(tmp_path / "one"))
    by = {(row["set"], row["status"]): row["by"] for row in content["runs"][0]["deciding"]}
    assert by["l_inf 0.1", C] == {"CROWN": 1, "IBP": 2} and by["l_2 0.5", F] == {"PGD": 1}
    assert sum(sum(row.values()) for row in by.values()) == 12  # every pair once
    ((rows, _, parts, *_),) = drawn["stacked_bars"]
    assert parts == ["certified by IBP", "certified by CROWN", F, U, M]
    assert rows[0] == {
        "run": "one, l_inf 0.1",
        "certified by IBP": 2,
        "certified by CROWN": 1,
        F: 1,
        U: 1,
        M: 1,
    }


def test_where_the_norms_disagree(tmp_path, drawn):
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


def test_certified_accuracy_against_the_radius(tmp_path, drawn):
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
    assert [item["eps"] for item in linf["points"]] == [0.1, 0.2]
    assert [item["certified"] for item in linf["points"]] == [3 / 6, 1 / 6] and linf[
        "name"
    ].startswith("model ")
    assert [item["run"] for item in l2["points"]] == ["small", "large"] and "## Radii" in text


@pytest.mark.parametrize(
    "change",
    [{"seed": 1}, {"images": 1}, {"settings": CertifySettings(methods=["IBP"])}],
    ids=["model", "images", "settings"],
)
def test_curves_do_not_mix(change, tmp_path, drawn):
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


def test_a_radius_per_image_has_no_place_on_a_curve(tmp_path, drawn):
    text, content = report_of(
        tmp_path,
        write(tmp_path / "one", sets=[PerturbationLinf(torch.linspace(0.1, 0.6, 6)), SETS[1]]),
    )
    assert [curve["norm"] for curve in content["radius_curves"]] == [
        "l_2"
    ] and "radius 0.1 to 0.6" in text


def test_runs_side_by_side(tmp_path, drawn):
    text, content = report_of(tmp_path, write(tmp_path / "one"), write(tmp_path / "two", seed=1))
    assert content["comparable"] == [["one", "two"]] and not content["cautions"]
    assert text.count("certified union") == 1  # one table of accuracies


@pytest.mark.filterwarnings("ignore:.*damaged line")
def test_images_not_run_are_named_and_never_certified(tmp_path, drawn):
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


def test_one_set_has_no_union(tmp_path, drawn):
    write(tmp_path / "one", STATUS[:1], METHOD[:1], MARGIN[:1], sets=SETS[:1])
    text, _ = report_of(tmp_path, tmp_path / "one")
    assert "certified l_inf" in text and "clean" in text and "certified union" not in text


def test_different_questions_get_tables_of_their_own(tmp_path, drawn):
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


def test_different_settings_are_said(tmp_path, drawn):
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


def test_contradictory_runs_are_shown_up(tmp_path, drawn):
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
    (result,) = comparison.contradictions(load_runs([small, large]))
    assert "CONTRADICTION: large certifies" in result and result.endswith(
        "0.4 within [0, 1]: 0. One of them is wrong; trust neither."
    )
    smaller = write(
        tmp_path / "smaller", [[C] * 6], [["IBP"] * 6], [[1.0] * 6], [PerturbationL2Box(0.3)]
    )
    assert not comparison.contradictions(load_runs([small, smaller]))


def test_the_command(tmp_path, drawn, capsys):
    single, other = write(tmp_path / "one"), write(tmp_path / "other", seed=1)
    assert main(["report", str(single), f"CURE={other}", "--output", str(tmp_path / "report")]) == 0
    printed = capsys.readouterr().out
    assert (
        "| CURE" in printed
        and str(tmp_path / "report") in printed
        and (tmp_path / "report" / "report.md").exists()
    )
    assert (
        main(["report", str(single)]) == 0 and "# Certification report" in capsys.readouterr().out
    )
    assert (
        main(["report", str(single), str(single)]) == 2 and "NAME=FOLDER" in capsys.readouterr().err
    )
