"""The plan of a comparison: radius, kappa and learning rate of every epoch, and the time."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import time
from pathlib import Path

import torch

from ..data import ImageData
from ..errors import NaNBoundError
from ..losses import build_loss
from ..perturbations.described import has_radius
from ..report import markdown_table
from ..training import TrainConfig
from ..training.step import TrainingStep
from ..utils.randomness import generators_kept, seed_generators
from ..utils.words import duration
from .comparison import Experiment
from .rows import Job, Rows
from .table import set_names

#: How many steps of a row are timed, and the seconds after which no further one begins.
STEPS, SECONDS = 10, 30.0


def plan(experiment: Experiment, rows: Rows, output: str | Path) -> str:
    """Check a comparison as a run does, and return what it will do; nothing is written.

    Args:
        experiment: The comparison.
        rows: Its rows.
        output: The folder that a run would write to; only the disk that it lies on is looked at.

    Returns:
        For each row a Markdown table with the state at the end of every epoch, and the time that
        its training will take, estimated from a few steps of a separate network; then the sets.

    Raises:
        InvalidArgumentError: As :meth:`Experiment.run`, before the first step.
    """
    jobs = experiment.checked_jobs(Path(output).expanduser(), rows)
    sections, total = [], 0.0
    for name in dict.fromkeys(job.name for job in jobs):
        same = [job for job in jobs if job.name == name]
        timed, seconds = _seconds(experiment, same[0])
        total += seconds * len(same)
        table = epochs_of_run(experiment, same[0].config)
        runs = f" for each of {len(same)} seeds" if len(same) > 1 else ""
        sections.append(
            f"{name} ({same[0].config.loss}), about {duration(seconds)} of training{runs} (from"
            f" {timed} steps)\n\n{markdown_table(table, list(table[0]))}"
        )
    titles = ", ".join(perturbation.title() for perturbation in experiment.perturbations)
    sections.append(
        f"sets: {titles}\n"
        f"in all about {duration(total)} of training, certification apart; nothing was written"
    )
    return "\n\n".join(sections)


def epochs_of_run(experiment: Experiment, config: TrainConfig) -> list[dict]:
    """Return a row per epoch: radii and kappa at its end, and its learning rate.

    Args:
        experiment: For its sets.
        config: Training settings; shares of the run are allowed.
    """
    config, table = config.in_epochs(), []
    natural = config.loss == "natural"
    for epoch in range(config.epochs):
        scale = 0.0 if natural else config.schedule.eps_scale(epoch + 1)
        radii = {}
        for name, perturbation in zip(
            set_names(experiment.perturbations), experiment.perturbations
        ):
            if not has_radius(perturbation):
                continue  # the share says how far it is grown
            factor = config.loss_options.get(f"eps_factor_{perturbation.norm:g}", 1.0)
            radii[f"{name} radius"] = f"{perturbation.eps * scale * factor:.4g}"
        kappa = 1.0 if natural else config.schedule.kappa(epoch + 1)
        table.append(
            {
                "epoch": epoch + 1,
                "share of the radius": f"{100 * scale:.3g} %",
                **radii,
                "kappa": f"{kappa:.3g}",
                "learning rate": f"{config.learning_rate_at(epoch):.3g}",
            }
        )
    return table


def _seconds(experiment: Experiment, job: Job) -> tuple[int, float]:
    """Return how many steps were timed, and the seconds that a whole run takes at their pace."""
    data, config = experiment.data, job.config.in_epochs()
    with generators_kept(experiment.device):
        seed_generators(config.seed, experiment.device)
        model = experiment.spec.build().to(experiment.device)
        loss = build_loss(config.loss, experiment.perturbations, **config.loss_options)
        step = TrainingStep(model, loss, experiment.perturbations, config)
        step.start_epoch(0)
        natural_epochs, anneal_epochs = config.schedule.lengths()
        full_at = config.schedule.full_at()
        first, timed, robust = pace(step, data, full_at, experiment.device)
        natural = pace(step, data, -1.0, experiment.device)[2] if loss is not None else robust
        middle = natural_epochs + anneal_epochs / 2
        changes = loss is not None and any(term.bounding == "CROWN-IBP" for term in loss.terms)
        annealing = pace(step, data, middle, experiment.device)[2] if changes else robust
    epochs = min(natural_epochs, config.epochs) if loss is not None else config.epochs
    annealed = max(0.0, min(full_at, config.epochs) - epochs)
    projects = config.projection is not None and loss is not None
    projected = max(0.0, config.epochs - full_at) if projects else 0.0
    steps = step.steps_per_epoch(data)
    return timed, first + steps * (
        natural * (epochs + projected)
        + annealing * annealed
        + robust * (config.epochs - epochs - annealed)
    )


def pace(step: TrainingStep, data: ImageData, now: float, device: str) -> tuple[float, int, float]:
    """Return the first step's seconds, how many more were timed, and their mean.

    The first step traces the network.
    """
    started, spent = time.perf_counter(), []
    images = (STEPS + 1) * step.config.batch_size
    subset = dataclasses.replace(data, x_train=data.x_train[:images], y_train=data.y_train[:images])
    for x, y in itertools.islice(itertools.cycle(step.batches(subset)), STEPS + 1):
        before = time.perf_counter()
        # An untrained network may overflow at the full radius; the time is the same.
        with contextlib.suppress(NaNBoundError):
            step(x.to(device), y.to(device), now)
        if torch.device(device).type == "cuda":
            torch.cuda.synchronize()
        spent.append(time.perf_counter() - before)
        if time.perf_counter() - started > SECONDS:
            break
    later = spent[1:] or spent
    return spent[0], len(later), sum(later) / len(later)
