"""The tightness benchmarks.

Rows of a small network, containment found and denied, and bounds above an attack named.
"""

import copy

import pytest
import torch
from torch import nn

from benchmarks import networks, pixel_range, tightness, tightness_regions
from benchmarks.networks import Subject
from benchmarks.run import Places
from benchmarks.tightness_bounds import bounds_by_us
from lirpa_multinorm import AttackSettings, PerturbationL2Box, PerturbationLinf, margin_matrix
from lirpa_multinorm.errors import InvalidArgumentError
from lirpa_multinorm.perturbations import Region

SETTINGS = {
    "n": 3,
    "batch": 2,
    "methods": ["IBP", "CROWN"],
    "ratio_inf": 0.4,
    "ratio_2": 0.5,
    "ratio_cure_l2": 0.1,
    "scales": [1.0],
    "networks": [{"digits": "natural", "epochs": 1}],
}


def small():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3, 2, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(27, 6),
        nn.ReLU(),
        nn.Linear(6, 3),
    ).eval()
    x = torch.rand(3, 1, 6, 6)
    return Subject(model, x, model(x).argmax(1), 0.03, 0.1)


@pytest.fixture(scope="module")
def measured():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tightness, "subject", lambda *_: small())
        patch.setattr(tightness_regions, "ATTACK", AttackSettings(steps=10))
        ((key, task),) = tightness.tasks(SETTINGS, Places()).items()
        return {"key": key, **task()}


@pytest.fixture
def row(measured):
    return copy.deepcopy(measured)


def test_every_region_is_bounded_by_every_method(row):
    regions = {item["region"] for item in row["rows"]}
    assert regions == {
        "l_inf set",
        "SABR's small box",
        "l_2 ball and pixel range",
        "l_2 ball",
        "host's l_2 ball",
        "SABR's box at the l_2 radius",
        "small l_2 ball",
        "CURE's l_2 box",
        "union",
    }
    assert (
        len(row["rows"]) == 2 * len(regions)
        and row["n"] == 3
        and len(row["worst margins"]["l_2 ball, IBP"]) == 3
    )
    for item in row["rows"]:
        assert [set(layer) for layer in item["layers"]] == [{"width", "unstable %"}] * (
            2 * (item["region"] != "union")
        )


def test_tighter_sets_and_methods_give_smaller_gaps_and_our_ball_is_the_hosts(row):
    gap = {(item["region"], item["method"]): item["gap to PGD"] for item in row["rows"]}
    for method in ("IBP", "CROWN"):
        assert gap["l_2 ball", method] == pytest.approx(gap["host's l_2 ball", method], abs=1e-4)
        assert gap["l_2 ball and pixel range", method] <= gap["l_2 ball", method] + 1e-6
        assert gap["SABR's box at the l_2 radius", method] > gap["l_2 ball", method] > 0
    assert gap["l_inf set", "CROWN"] < gap["l_inf set", "IBP"]


def test_training_regions_are_no_certificates(row):
    for item in row["rows"]:
        assert (
            (item["certified %"] is None)
            == (item["kind"] == "training region")
            == ("positive %" in item)
        )
    assert set(row["seen"]) == {"SABR's small box", "small l_2 ball", "CURE's l_2 box"}


def test_nothing_is_wrong_here_and_what_is_wrong_is_named(row):
    assert tightness.problems([row]) == []
    row["rows"][0]["above PGD"] = 2
    row["containment"]["small l_2 ball"]["l_2 ball and pixel range"] = 0.1
    result = tightness.problems([row])
    assert (
        len(result) == 2
        and "2 margins of l_inf set by IBP" in result[0]
        and "sticks out" in result[1]
    )


def test_what_the_attack_refutes_of_the_hosts_is_shown_and_no_failure_of_ours(row):
    next(item for item in row["rows"] if item["region"] == tightness_regions.HOST)["above PGD"] = 3
    assert tightness.problems([row]) == []
    table, *_ = tightness.tables([row]).values()
    assert [item["above PGD"] for item in table if item["region"] == tightness_regions.HOST][0] == 3


def test_containment_is_measured():
    """A box of half-width 0.1 around 0.5 holds the ball of radius 0.1.

    It sticks out of it by sqrt(2) - 1 in 2D.
    """
    x = torch.full((1, 2), 0.5)
    cases = {
        name: tightness_regions.Case(Region(x, item), "threat set", "l_2")
        for name, item in (("box", PerturbationLinf(0.1)), ("ball", PerturbationL2Box(0.1)))
    }
    result = tightness_regions.containment(cases)
    assert result["ball"]["box"] == pytest.approx(0, abs=1e-6)
    assert result["box"]["ball"] == pytest.approx(2**0.5 - 1, abs=0.02)


def test_tables_and_figures(row, tmp_path):
    (title, table), (_, inside) = tightness.tables([row]).items()
    assert "l_2 0.1" in title and {"region", "certified %", "layer 2 width"} <= set(table[0])
    assert [item["region"] for item in inside] == list(row["containment"])
    assert all(item[item["region"]] is None for item in inside)  # in itself
    ((name, draw),) = tightness.draw([row], "tight").items()
    assert draw(path=tmp_path / name).read_bytes().startswith(b"\x89PNG")
    assert all(figure.value > 0 for figure in tightness.figures([row]).values())


def test_the_pixel_range_is_compared_with_the_hosts_ball(monkeypatch, tmp_path):
    single = small()
    monkeypatch.setattr(
        pixel_range.certified, "load", lambda *_: (single.model, single.x, single.y)
    )
    tasks = pixel_range.tasks(
        {"batch": 2, "networks": {"toy": {"n": 3, "radii": [0.05, 0.3]}}}, Places()
    )
    rows = [{"key": key, **task()} for key, task in tasks.items()]
    for result in rows:
        low = result["mean lowest margin"]
        assert result["n"] == 3 and low["ball and pixel range"] >= low["our ball"] - 1e-5
        assert low["our ball"] == pytest.approx(low["host's ball"], abs=0.05)
        assert result["certified"]["PGD, ball"] >= result["certified"]["our ball"]
    assert (
        pixel_range.problems(rows) == [] and len(pixel_range.tables(rows)["Certified images"]) == 2
    )
    rows[0]["above PGD"] = 1
    assert "1 margins" in pixel_range.problems(rows)[0]
    ((name, draw),) = pixel_range.draw(rows, "range").items()
    assert draw(path=tmp_path / name).exists()


def test_networks_are_trained_or_named():
    result = networks.subject({"digits": "natural", "epochs": 1}, 4, Places())
    assert (
        len(result.x) == 4
        and (result.model(result.x).argmax(1) == result.y).all()
        and result.eps_2 > result.eps_inf
    )
    with pytest.raises(InvalidArgumentError, match="digits, run and published"):
        networks.subject({"name": "x"}, 1, Places())


def test_layers_are_those_that_the_method_uses():
    """A method of our own does not take the host's intervals, which are by IBP."""
    single = small()
    C = margin_matrix(single.y, 3)
    for ptb in (PerturbationLinf(0.1), PerturbationL2Box(0.3)):
        region = Region(single.x, ptb)
        second = {
            method: bounds_by_us(single.model, region, C, method)[1][1]["width"]
            for method in ("IBP", "Sparse-CROWN", "SDP-CROWN-Optimized")
        }
        assert second["SDP-CROWN-Optimized"] < second["Sparse-CROWN"] < second["IBP"]
