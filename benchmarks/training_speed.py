"""Cost of training steps on a trained network and its own images.

Beside the natural step and SABR's official code.

    python -m benchmarks.run training_speed --data-dir DATA
    python -m benchmarks.run training_speed_official --official PATH --data-dir DATA

PATH is a checkout of eth-sri/sabr. An untrained network, or labels drawn at random, would time
something else: images that are misclassified from the start end the official attack at once. Beside
the times stands the cross-entropy that each attack reaches. Steps of one thread are timed in CPU
time, which other jobs of the machine do not add to.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from functools import partial
from typing import Callable

import torch
import torch.nn.functional as F

from lirpa_multinorm.losses import LOSSES, TRAINING_ATTACK, accepts, build_loss
from lirpa_multinorm.losses.regions import find_regions
from lirpa_multinorm.training import Schedule, TrainConfig
from lirpa_multinorm.training.step import TrainingStep

from .common import TOLERANCE, find_device, interleaved, ratio, waiting
from .official_sabr import OfficialSabr
from .run import Figure, Places, Task
from .trained_case import TrainedCase, trained_case

BATCHES, WARM_UP = 8, 5
OFFICIAL_STEPS = 8
OFFICIAL = "official SABR"
TRAINED = 0.6  # share of its own images that a trained network gets right at least
#: The official attack by whether it stops early.
OFFICIALS = {True: OFFICIAL, False: f"{OFFICIAL}, no early stop"}


def loss_of(case: TrainedCase, chosen: dict, ratio_inf: float):
    """Return a loss for a case's sets.

    Args:
        case: The network.
        chosen: "loss", one of the registry's; maybe "attack" and further options of it.
        ratio_inf: lambda.
    """
    options = {"ratio_inf": ratio_inf, **chosen, "attack": chosen.get("attack", {})}
    loss = options.pop("loss")
    return build_loss(
        loss, case.sets, **{name: value for name, value in options.items() if accepts(loss, name)}
    )


def our_step(
    case: TrainedCase, batch: int, device: torch.device, chosen: dict, ratio_inf: float
) -> Callable[[], object]:
    """Return our training step after annealing, on the case's batches in turn.

    See :func:`loss_of`.
    """
    config = TrainConfig(loss=chosen["loss"], batch_size=batch, schedule=Schedule(0, 0))
    step = TrainingStep(case.network(device), loss_of(case, chosen, ratio_inf), case.sets, config)
    step.start_epoch(0)
    turns = itertools.cycle(case.batches(batch, BATCHES, device))
    return lambda: step(*next(turns), 1.0)


def attacked_losses(
    case: TrainedCase,
    wanted: dict[str, dict],
    officials: dict[str, OfficialSabr],
    ratio_inf: float,
    device: torch.device,
) -> dict[str, dict]:
    """Return the mean cross-entropy at the points that the attacks of the steps find.

    The points are around up to 1024 training images.
    """
    model, (x, y) = case.network(device).eval(), case.batches(min(len(case.x), 1024), 1, device)[0]
    with torch.no_grad():
        reached = {"no attack": {"inputs": float(F.cross_entropy(model(x), y))}}
    for name, chosen in wanted.items():
        loss = loss_of(case, chosen, ratio_inf)
        terms = [] if loss is None else [term for term in loss.terms if term.needs_attack]
        if not terms:
            continue
        mixed = [
            dataclasses.replace(term, mix="mtl", bounding="IBP") for term in terms
        ]  # so that points are known
        generator = torch.Generator().manual_seed(0)
        points = find_regions(model, [(x, y)] * len(mixed), mixed, loss.attack, generator).points
        with torch.no_grad():
            reached[name] = {
                term.perturbation.title(): float(F.cross_entropy(model(point.center), y))
                for term, point in zip(terms, points)
            }
    for name, official in officials.items():
        torch.manual_seed(0)
        with torch.no_grad():
            reached[name] = {
                "l_inf": float(F.cross_entropy(model(official.attacked(model, x, y)), y))
            }
    return reached


def compare(batch: int, settings: dict, places: Places) -> dict:
    """Time the steps of all losses, also with other options, and of official code if asked for."""
    device = find_device(settings.get("device", "cpu"))
    case = trained_case(settings["case"], places)
    lam = settings.get("ratio_inf", 0.4)
    wanted = {
        **{loss: {"loss": loss} for loss in settings.get("losses", LOSSES) if loss != "linf_dist"},
        **settings.get("also", {}),
    }
    officials = {
        OFFICIALS[early]: OfficialSabr(
            places.official, OFFICIAL_STEPS, lam, case.sets[0].eps, early
        )
        for early in settings.get("official", ())
    }
    reached = attacked_losses(case, wanted, officials, lam, device)
    steps = {name: our_step(case, batch, device, chosen, lam) for name, chosen in wanted.items()}
    for name, official in officials.items():
        steps[name] = official.step(case.network(device), case.batches(batch, BATCHES, device))
    clock, warmup = step_clock(device), settings.get("warmup", WARM_UP)
    timing = interleaved(steps, settings["repeats"], warmup, waiting(device), clock)
    attack = {name: str(value) for name, value in dataclasses.asdict(TRAINING_ATTACK).items()}
    return {
        **ratios(timing),
        "attacked loss": reached,
        "timing": timing,
        "clock": clock.__name__,
        "network": case.history,
        "settings": {
            **settings["case"],
            "batch": batch,
            "official steps": OFFICIAL_STEPS,
            "ratio_inf": lam,
            "default attack": attack,
        },
    }


def step_clock(device: torch.device) -> Callable[[], float]:
    """Return the clock of the steps: CPU time of a single thread, or else the time of day."""
    alone = device.type == "cpu" and torch.get_num_threads() == 1
    return time.process_time if alone else time.perf_counter


def ratios(timing: dict[str, dict]) -> dict[str, dict]:
    """Return the ratios of all steps to each of those that they are compared with."""
    return {
        f"ratio to {base}": {name: ratio(timing, name, base) for name in timing if name != base}
        for base in ("natural", "joint", *OFFICIALS.values())
        if base in timing
    }


def tasks(settings: dict, places: Places) -> dict[str, Task]:
    """Return one task per batch size."""
    return {
        f"batch {batch}": partial(compare, batch, settings, places) for batch in settings["batches"]
    }


def problems(rows: list[dict]) -> list[str]:
    """Return steps that take no longer than the natural step, and networks without training.

    The natural step is a part of each of them.
    """
    quick = [
        f"{row['key']}, {name}: {times['median']} times the natural step, which is a part of it"
        for row in rows
        for name, times in row["ratio to natural"].items()
        if not times["median"] > 1
    ]
    raw = [
        f"{row['key']}: the network is right on {row['network']['accuracy on training images']} of"
        " its own images; train it longer"
        for row in rows
        if not row["network"]["accuracy on training images"] > TRAINED
    ]
    return quick + raw


def figures(rows: list[dict]) -> dict[str, Figure]:
    """Return the median ratios to the natural step."""
    return {
        f"{row['key']}: {name}": Figure(times["median"], TOLERANCE)
        for row in rows
        for name, times in row["ratio to natural"].items()
    }
