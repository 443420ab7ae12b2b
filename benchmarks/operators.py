"""Every operator and option that networks of images and rows bring, bounded and attacked.

Sound, or refused by name.

    python -m benchmarks.run operators_host_0.3

Each network of ``lirpa_multinorm.audit.OPERATORS`` is bounded by every method on l_inf, l_2 and l_1
sets, and a gradient attack on the plain model tries to leave the bounds. The results belong to one
version of the host; with another one the tasks refuse to run.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from functools import partial

import torch

from lirpa_multinorm import AttackSettings, PerturbationLpBox, host
from lirpa_multinorm.audit import OPERATORS, audit, build_operator
from lirpa_multinorm.errors import InvalidArgumentError
from lirpa_multinorm.report import markdown_table

from .run import Places, Results, Task

#: The better outcome first; the table shows the worst of several.
OUTCOMES = ("sound", "refused", "raw", "forward differs", "unsound")
MESSAGE_LENGTH = 300


def inputs(shape: tuple, batch: int, seed: int) -> torch.Tensor:
    """Return inputs in [0, 1], several pixels on both ends of it."""
    x = torch.rand(batch, *shape, generator=torch.Generator().manual_seed(seed)) * 1.6 - 0.3
    return x.clamp(0, 1)


def sets(settings: dict, share: float) -> list[PerturbationLpBox]:
    """Return the sets of all norms, with a share of their radii."""
    return [
        PerturbationLpBox(
            float(described["p"]),
            share * described["eps"],
            described["clip"] and tuple(described["clip"]),
        )
        for described in settings["sets"].values()
    ]


def audited(operator: str, settings: dict) -> dict:
    """Attack the bounds of an operator's network by all methods and sets.

    Only the worst draw of each is kept.

    Small sets show wrong bounds that are hidden by the width of those of large ones, and large ones
    reach what small ones do not; so each draw of weights and inputs has a share of the radii.

    Raises:
        InvalidArgumentError: The settings are for another version of the host.
    """
    if host.version != settings["host"]:
        raise InvalidArgumentError(
            f"host={settings['host']!r}: auto_LiRPA {host.version} is loaded; install "
            f"{settings['host']}, or run the configuration operators_host_{host.version}"
        )
    norms = list(settings["sets"]) * len(settings["methods"])
    draws = [drawn(operator, settings, **draw) for draw in settings["draws"]]
    cells = [{"norm": norm, **max(same, key=badness)} for norm, *same in zip(norms, *draws)]
    return {
        "operator": operator,
        "group": OPERATORS[operator].group,
        "n": settings["n"] * len(draws),
        "cells": cells,
    }


def drawn(operator: str, settings: dict, seed: int, share: float) -> list[dict]:
    """Return the cells of one draw."""
    model, x = (
        build_operator(operator, seed),
        inputs(OPERATORS[operator].input_shape, settings["n"], seed),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the host warns of every graph it knows little of
        rows = audit(
            model,
            x,
            sets(settings, share),
            settings["methods"],
            bound_opts=settings["bound_opts"],
            settings=AttackSettings(**settings["attack"]),
            seed=seed,
        )
    return [
        {**row.numbers(), "message": row.message[:MESSAGE_LENGTH], "draw": seed} for row in rows
    ]


def badness(cell: dict) -> tuple:
    """Return what orders outcomes, the worst last."""
    return OUTCOMES.index(cell["outcome"]), (
        float("-inf") if cell["violation"] is None else cell["violation"]
    )


def tasks(settings: dict, places: Places) -> dict[str, Task]:
    """Return one task per operator."""
    return {name: partial(audited, name, settings) for name in OPERATORS}


def wrong(rows: list[dict]) -> list[dict]:
    """Return the cells that are neither sound nor refused, each with its operator."""
    return [
        {"operator": row["operator"], **cell}
        for row in rows
        for cell in row["cells"]
        if cell["outcome"] not in ("sound", "refused")
    ]


def problems(rows: list[dict]) -> list[str]:
    """Return which cells are neither sound nor refused, and why."""
    return [
        f"{cell['operator']}, {cell['method']}, {cell['norm']}:"
        f" {cell['outcome']}"
        f"{'' if cell['violation'] is None else ' by ' + format(float(cell['violation']), '.2e')}"
        f" {cell['message']}"
        for cell in wrong(rows)
    ]


def tables(rows: list[dict]) -> dict[str, list[dict]]:
    """Return how many cells came out how, by method."""
    counted: dict[str, Counter] = {}
    for row in rows:
        for cell in row["cells"]:
            counted.setdefault(cell["method"], Counter())[cell["outcome"]] += 1
    return {
        "Operators, options and norms by outcome": [
            {"method": method, **{outcome: count[outcome] for outcome in OUTCOMES}}
            for method, count in counted.items()
        ]
    }


#: The page of the documentation that is made from the committed results.
PAGE = "operators.md"
INTRODUCTION = """# Operators: sound, or refused by name

Made by `python -m benchmarks.report` from the results files of \
`benchmarks/configs/operators_host_*.json` beside
`benchmarks/results/REPORT.md`, and from nothing else.

Each operator stands in a small network, between affine layers \
(`lirpa_multinorm.audit.build_operator(name)` returns
it), which every method bounds on l_inf, l_2 and l_1 sets. A gradient attack on the plain model \
then tries to leave the
bounds. An attack can show that a bound is wrong, never that it is right.

- **sound**: nothing was reached outside the bounds, on any of the sets.
- **refused**: an error of this package says what it does not bound; no bound comes out.
- anything else is **wrong** and set in bold: bounds that the attack leaves (**unsound**, with the \
excess relative to
  1 + the bound's size), a bounded network that computes another function than the model \
(**forward differs**), an
  exception that is none of this package's (**raw**).

Where the hosts differ, the cell says both. To audit a network of your own: \
`lirpa_multinorm.audit.audit(model, x,
sets)`.
"""


def page(results: Sequence[Results]) -> str:
    """Return the page of the documentation for the results of all hosts."""
    hosts = {result.header["settings"]["host"]: result.rows for result in results}
    parts = [INTRODUCTION, "## Counts\n", markdown_table(*_counts(hosts)), ""]
    rows = {version: {row["operator"]: row for row in rows} for version, rows in hosts.items()}
    first = next(iter(hosts.values()))
    methods = list(dict.fromkeys(cell["method"] for cell in first[0]["cells"]))
    for group in dict.fromkeys(row["group"] for row in first):
        names = [row["operator"] for row in first if row["group"] == group]
        table = [
            {
                "operator": f"`{name}`",
                **_line({version: row[name] for version, row in rows.items()}, methods),
            }
            for name in names
        ]
        parts.extend(
            [f"## {group.capitalize()}\n", markdown_table(table, ["operator", *methods], {}), ""]
        )
    parts.extend(
        ["## What the refusals say\n", "The first one of each operator.\n", *_refusals(hosts)]
    )
    return "\n".join(parts) + "\n"


def _line(rows: dict[str, dict], methods: Sequence[str]) -> dict[str, str]:
    return {method: _cell(rows, method) for method in methods}


def _counts(hosts: dict[str, list[dict]]) -> tuple:
    table = [
        {"auto_LiRPA": version, **row}
        for version, rows in hosts.items()
        for row in next(iter(tables(rows).values()))
    ]
    return table, list(table[0]), {}


def _cell(rows: dict[str, dict], method: str) -> str:
    """Return what came out for a method on each host: once, if it is the same."""
    said = {
        version: _outcome([cell for cell in row["cells"] if cell["method"] == method])
        for version, row in rows.items()
    }
    if len(set(said.values())) == 1:
        return next(iter(said.values()))
    return ", ".join(f"{version}: {outcome}" for version, outcome in said.items())


def _outcome(cells: list[dict]) -> str:
    """Return the outcome of all norms, or each norm's."""
    words = {cell["norm"]: _word(cell) for cell in cells}
    if len(set(words.values())) == 1:
        return next(iter(words.values()))
    return "; ".join(f"{norm} {word}" for norm, word in words.items())


def _word(cell: dict) -> str:
    if cell["outcome"] in ("sound", "refused"):
        return cell["outcome"]
    return f"**{cell['outcome']}**" + (
        f" by {float(cell['violation']):.1e}" if cell["outcome"] == "unsound" else ""
    )


def _refusals(hosts: dict[str, list[dict]]) -> list[str]:
    """Return a line per operator and host with its first refusal."""
    lines: dict[str, dict[str, str]] = {}
    for version, rows in hosts.items():
        for row in rows:
            refused = [cell for cell in row["cells"] if cell["outcome"] == "refused"]
            if refused:
                said = f"{refused[0]['method']}: " + " ".join(
                    refused[0]["message"].split()
                ).replace("|", "\\|")
                lines.setdefault(row["operator"], {})[version] = said
    return [
        f"- `{name}`, auto_LiRPA {version}, {said}"
        for name, by_host in lines.items()
        for version, said in by_host.items()
    ]
