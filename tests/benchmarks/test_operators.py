"""The operator table.

Its tasks, what it counts as wrong, and the page made of the committed results.
"""

import pytest

from benchmarks import operators
from benchmarks.report import DOCS, pages
from benchmarks.run import RESULTS, Config, Places, Results, names, read
from lirpa_multinorm import host
from lirpa_multinorm.audit import OPERATORS
from lirpa_multinorm.errors import InvalidArgumentError

SETTINGS = Config.read("operators_host_0.3").settings


def cell(outcome, violation=None, method="IBP", norm="l_2", message=""):
    return {
        "method": method,
        "norm": norm,
        "outcome": outcome,
        "violation": violation,
        "looseness": None,
        "message": message,
    }


def row(name, *cells):
    return {"key": name, "operator": name, "group": "reshapes", "n": 2, "cells": list(cells)}


def test_configurations_differ_in_the_host_alone():
    result = [name for name in names() if Config.read(name).benchmark == "operators"]
    assert result == ["operators_host_0.3", "operators_host_0.7.1"]
    first, second = (Config.read(name).settings for name in result)
    assert {**first, "host": None} == {**second, "host": None} and first["host"] != second["host"]
    assert list(operators.tasks(first, Places())) == list(OPERATORS)


def test_a_task_has_a_cell_per_method_and_norm_and_the_worst_of_its_draws():
    methods = ["IBP", "Lipschitz"]
    settings = {
        **SETTINGS,
        "host": host.version,
        "methods": methods,
        "attack": {"steps": 3},
        "draws": [{"seed": 0, "share": 1}, {"seed": 1, "share": 0.2}],
    }
    result = operators.tasks(settings, Places())["Softplus"]()
    assert [(item["method"], item["norm"]) for item in result["cells"]] == [
        (method, norm) for method in methods for norm in ("l_inf", "l_2", "l_1")
    ]
    assert result["n"] == 4 and not operators.problems([result])
    outcomes = [cell("refused"), cell("unsound", 0.1), cell("sound", 0.0), cell("unsound", 0.2)]
    assert max(outcomes, key=operators.badness) == cell("unsound", 0.2)


def test_results_of_another_host_are_refused():
    with pytest.raises(InvalidArgumentError, match=f"host='0.0': .* operators_host_{host.version}"):
        operators.tasks({**SETTINGS, "host": "0.0"}, Places())["ReLU"]()


def test_what_is_neither_sound_nor_refused_is_a_problem():
    rows = [
        row(
            "flip",
            cell("sound", -0.1),
            cell("refused"),
            cell("unsound", 0.25),
            cell("raw", message="KeyError: 1"),
            cell("unsound", "Infinity"),
            cell("forward differs", -0.1),
        )
    ]
    assert operators.problems(rows) == [
        "flip, IBP, l_2: unsound by 2.50e-01 ",
        "flip, IBP, l_2: raw KeyError: 1",
        "flip, IBP, l_2: unsound by inf ",
        "flip, IBP, l_2: forward differs by -1.00e-01 ",
    ]
    (counts,) = operators.tables(rows)["Operators, options and norms by outcome"]
    assert counts == {
        "method": "IBP",
        "sound": 1,
        "refused": 1,
        "raw": 1,
        "forward differs": 1,
        "unsound": 2,
    }


def test_the_page_tells_hosts_and_norms_apart():
    refused = cell("refused", message="no\n|pipes|")
    results = [
        Results({"settings": {"host": name}}, [row("flip", *cells)])
        for name, cells in {
            "0.3": [
                cell("sound", 0.0),
                cell("unsound", 0.25, norm="l_1"),
                cell("sound", 0.0, method="CROWN"),
            ],
            "0.7.1": [refused, cell("refused", norm="l_1"), cell("sound", 0.0, method="CROWN")],
        }.items()
    ]
    page = operators.page(results)
    (line,) = (line for line in page.splitlines() if line.startswith("| `flip`"))
    assert [text.strip() for text in line.strip("|").split("|")] == [
        "`flip`",
        "0.3: l_2 sound; l_1 **unsound** by 2.5e-01, 0.7.1: refused",
        "sound",
    ]
    assert "- `flip`, auto_LiRPA 0.7.1, IBP: no \\|pipes\\|" in page.splitlines()


def test_the_page_is_that_of_the_committed_results(tmp_path):
    """There is a page where there are results.

    Each of the results is of the whole table and the configuration.
    """
    written = {path.name: path.read_text() for path in pages(RESULTS, tmp_path)}
    committed = [DOCS / operators.PAGE] if (DOCS / operators.PAGE).exists() else []
    assert written == {path.name: path.read_text() for path in committed}
    for path in RESULTS.glob("operators_host_*.jsonl"):
        results = read(path)
        assert results.header["settings"] == Config.read(path.stem).settings
        assert [item["operator"] for item in results.rows] == list(OPERATORS)
