"""Every operator and option that networks of images and rows bring, bounded and attacked: sound, or refused by name.

    python -m benchmarks.run operators_host_0.3

Each network of ``lirpa_multinorm.audit.OPERATORS`` is bounded by every method on l_inf, l_2 and l_1 sets, and a
gradient attack on the plain model tries to leave the bounds. The results belong to one version of the host; with another
one the tasks refuse to run.
"""

from __future__ import annotations

import warnings
from collections import Counter
from functools import partial
from typing import Dict, List

import torch

from lirpa_multinorm import AttackSettings, PerturbationLpBox, host
from lirpa_multinorm.audit import OPERATORS, audit, build_operator
from lirpa_multinorm.errors import InvalidArgumentError

from .run import Places, Task

#: The better outcome first; the table shows the worst of several.
OUTCOMES = ("sound", "refused", "raw", "forward differs", "unsound")
MESSAGE_LENGTH = 300


def inputs(shape: tuple, batch: int, seed: int) -> torch.Tensor:
    """Return inputs in [0, 1], several pixels on both ends of it."""
    x = torch.rand(batch, *shape, generator=torch.Generator().manual_seed(seed)) * 1.6 - 0.3
    return x.clamp(0, 1)


def sets(settings: dict) -> Dict[str, PerturbationLpBox]:
    """Return the sets by the names of their norms."""
    return {name: PerturbationLpBox(float(one["p"]), one["eps"], None if one["clip"] is None else tuple(one["clip"]))
            for name, one in settings["sets"].items()}


def audited(operator: str, settings: dict) -> dict:
    """Attack the bounds of one operator's network by all methods and sets.

    Raises:
        InvalidArgumentError: The settings are for another version of the host.
    """
    if host.version != settings["host"]:
        raise InvalidArgumentError(f"host={settings['host']!r}: auto_LiRPA {host.version} is loaded; install "
                                   f"{settings['host']}, or run the configuration operators_host_{host.version}")
    named = sets(settings)
    model = build_operator(operator, settings["seed"])
    x = inputs(OPERATORS[operator].input_shape, settings["n"], settings["seed"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the host warns of every graph it knows little of
        rows = audit(model, x, list(named.values()), settings["methods"], bound_opts=settings["bound_opts"],
                     settings=AttackSettings(**settings["attack"]), seed=settings["seed"])
    norms = list(named) * len(settings["methods"])
    cells = [{"norm": norm, **row.numbers(), "message": row.message[:MESSAGE_LENGTH]}
             for norm, row in zip(norms, rows)]
    return {"operator": operator, "group": OPERATORS[operator].group, "n": len(x), "cells": cells}


def tasks(settings: dict, places: Places) -> Dict[str, Task]:
    """Return one task per operator."""
    return {name: partial(audited, name, settings) for name in OPERATORS}


def wrong(rows: List[dict]) -> List[dict]:
    """Return the cells that are neither sound nor refused, each with its operator."""
    return [{"operator": row["operator"], **cell} for row in rows for cell in row["cells"]
            if cell["outcome"] not in ("sound", "refused")]


def problems(rows: List[dict]) -> List[str]:
    """Return which cells are neither sound nor refused, and why."""
    return [f"{cell['operator']}, {cell['method']}, {cell['norm']}: {cell['outcome']}"
            f"{'' if cell['violation'] is None else ' by ' + format(float(cell['violation']), '.2e')} {cell['message']}"
            for cell in wrong(rows)]


def tables(rows: List[dict]) -> Dict[str, List[dict]]:
    """Return how many cells came out how, by method."""
    counted: Dict[str, Counter] = {}
    for row in rows:
        for cell in row["cells"]:
            counted.setdefault(cell["method"], Counter())[cell["outcome"]] += 1
    return {"Operators, options and norms by outcome": [
        {"method": method, **{outcome: count[outcome] for outcome in OUTCOMES}} for method, count in counted.items()]}
