"""The paper's column.

What is verified depends on the first operator, and an attack tells which bounds are wrong.
"""

import copy
import re

import pytest
import torch
from torch import nn

from benchmarks import paper, paper_networks
from benchmarks.common import host_bounds
from benchmarks.report import DOCS
from benchmarks.run import RESULTS, Config, Places, names, read
from lirpa_multinorm import PerturbationL2Box, PerturbationLinf, host, margin_matrix
from lirpa_multinorm.errors import InvalidArgumentError
from lirpa_multinorm.training import train
from tests.toy import CONFIG, SPEC, data

SETTINGS = {
    "host": host.version,
    "runs": {"one": "Joint"},
    "data": "toy",
    "n": 12,
    "n_alpha": 2,
    "n_cascade": 6,
    "batch": 4,
    "methods": ["IBP", "CROWN"],
    "iterations": 2,
    "restarts": 0.2,
}
#: The l_2 ball is so large that the attack breaks images.
SETS = [PerturbationLinf(0.02), PerturbationL2Box(0.9)]


#: One process measures for all tests.


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    train(SPEC, data(), SETS, CONFIG, folder / "one", progress=False)
    return folder


@pytest.fixture
def toy_images(monkeypatch):
    monkeypatch.setattr(paper_networks, "load", lambda *_, **__: data())


@pytest.fixture(scope="module")
def measured(runs):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paper_networks, "load", lambda *_, **__: data())
        ((key, task),) = paper.tasks(SETTINGS, Places(runs=runs)).items()
        return {"key": key, **task()}


@pytest.fixture
def row(measured):
    return copy.deepcopy(measured)


def cells_of(row, front, name="plain l_2"):
    return {
        cell["method"]: cell
        for cell in row["host"]
        if cell["front"] == front and cell["set"] == name
    }


def test_behind_a_normalisation_the_host_verifies_what_an_attack_breaks(row):
    wrong, fair = (
        cells_of(row, front)["IBP"]
        for front in (paper_networks.IN_FRONT, paper_networks.AS_TRAINED)
    )
    assert wrong["verified"] == row["right"] and row["broken"]["plain l_2"]
    assert set(fair["verified"]).isdisjoint(row["broken"]["plain l_2"]) and len(
        fair["verified"]
    ) < len(row["right"])
    assert set(row["broken"]["l_2"]) <= set(row["broken"]["plain l_2"])


def test_the_normalised_network_is_the_same_function(runs, toy_images):
    single = paper_networks.subject("one", SETTINGS, Places(runs=runs))
    assert (
        torch.equal(paper_networks.Standardised(single.model, 1)(single.x), single.model(single.x))
        and len(single.x) == 12
    )
    assert {name: ptb.eps for name, ptb in single.sets.items()} == {
        "l_inf": 0.02,
        "l_2": 0.9,
        "plain l_2": 0.9,
    }
    other = paper_networks.subject("one", {**SETTINGS, "eps_2": 0.4}, Places(runs=runs))
    assert {name: ptb.eps for name, ptb in other.sets.items()} == {
        "l_inf": 0.02,
        "l_2": 0.4,
        "plain l_2": 0.4,
    }


def test_behind_a_normalisation_crown_bounds_the_linearisation_alone():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(27, 3)
    ).eval()
    x, C, eps = torch.rand(2, 1, 6, 6), margin_matrix(torch.tensor([0, 2]), 3), 0.7
    margins = torch.func.vmap(
        torch.func.jacrev(lambda image, rows: rows @ model(image.unsqueeze(0))[0])
    )(x, C)
    expected = torch.einsum("bij,bj->bi", C, model(x)) - eps * margins.flatten(2).norm(dim=2)
    result, _ = host_bounds(paper_networks.Standardised(model, 1).eval(), x, 2, eps, C, "CROWN")
    right, _ = host_bounds(model, x, 2, eps, C, "CROWN")
    assert torch.allclose(result, expected, atol=1e-4) and (right < expected - 0.01).any()


def test_ours_holds_and_what_is_falsified_is_a_problem(row):
    assert paper.problems([row]) == [] and row["ours"]["l_inf"] and max(row["ours"]["l_inf"]) < 6
    (lost,) = row["broken"]["l_2"][:1]
    row["ours"]["l_2"] = [lost]
    assert paper.problems([row]) == [f"one, l_2: certified images [{lost}] are falsified"]
    row["ours"]["l_2"] = []
    cells_of(row, paper_networks.AS_TRAINED)["CROWN"]["verified"] = [lost]
    (result,) = paper.problems([row])
    assert "CROWN of the host behind a convolution" in result and f"[{lost}]" in result


def test_the_tables_count_images_by_hand():
    cell = {
        "front": paper_networks.IN_FRONT,
        "set": "plain l_2",
        "method": "CROWN",
        "tried": 3,
        "verified": [0, 1, 2],
        "fails": False,
    }
    row = {
        "key": "one",
        "row": "Max",
        "radii": "(0.1, 0.5)",
        "n": 4,
        "n_cascade": 2,
        "right": [0, 1, 2],
        "broken": {"l_inf": [2], "l_2": [1], "plain l_2": [1, 2]},
        "ours": {"l_inf": [0, 1], "l_2": [0]},
        "host": [
            cell,
            {**cell, "method": paper.ALPHA, "verified": [], "fails": True},
            {**cell, "set": "l_inf", "verified": [0, 1]},
        ],
    }
    columns, reported, sound = paper.tables([row]).values()
    assert [item["verified"] for item in columns] == [3, "fails"]
    assert columns[0]["of these broken"] == 2 and columns[0]["broken within [0, 1]"] == 1
    (first,), (second,) = reported, sound
    assert first["l_2 by"] == "CROWN" and (first["clean"], first["l_inf"], first["l_2"]) == (
        75,
        50,
        75,
    )
    assert (first["union"], first["of the union broken"]) == (50, 25)
    assert (second["l_inf"], second["l_2"], second["union"]) == (
        "100 to 100",
        "50 to 50",
        "50 to 50",
    )


def test_results_of_another_host_are_refused(runs):
    with pytest.raises(
        InvalidArgumentError, match=f"host='0.0': auto_LiRPA {re.escape(host.version)} is loaded"
    ):
        paper.tasks({**SETTINGS, "host": "0.0"}, Places(runs=runs))["one"]()


def test_a_network_that_normalises_already_is_refused(tmp_path, toy_images):
    spec = type(SPEC)(SPEC.name, SPEC.in_shape, SPEC.num_classes, (0.5,), (0.5,), SPEC.options)
    train(spec, data(), SETS, CONFIG, tmp_path / "one", progress=False)
    with pytest.raises(InvalidArgumentError, match="runs: one normalises its input"):
        paper_networks.subject("one", SETTINGS, Places(runs=tmp_path))


def test_the_page_says_what_the_results_say():
    page = (DOCS / "paper.md").read_text(encoding="utf-8")
    lines = {re.sub(r"\s+", " ", line) for line in page.splitlines()}
    result = [name for name in names() if Config.read(name).benchmark == "paper"]
    assert result and all(f"{name}.jsonl" in page for name in result)
    for name in result:
        rows = read(RESULTS / f"{name}.jsonl").rows
        assert paper.problems(rows) == []
        for table in paper.tables(rows).values():
            for item in table:
                assert "| " + " | ".join(map(str, item.values())) + " |" in lines, (name, item)
