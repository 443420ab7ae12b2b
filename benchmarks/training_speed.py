"""Cost of training steps: every loss beside the natural step, and beside SABR's official code, interleaved.

    python -m benchmarks.run training_speed
    python -m benchmarks.run training_speed_official --official PATH

PATH is a checkout of eth-sri/sabr. Its step is its own ``train_net`` on one batch of its CNN7, with the settings of its
command line for CIFAR-10 but for the parts that other losses lack (no L1 term, no shrinking, no regulariser: these are
for annealing).
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Callable, Dict, List

import torch

from lirpa_multinorm import PerturbationL2Box, PerturbationLinf
from lirpa_multinorm.losses import LOSSES, TRAINING_ATTACK, accepts, build_loss
from lirpa_multinorm.training import Schedule, TrainConfig
from lirpa_multinorm.training.step import TrainingStep

from .common import EPS_2, EPS_INF, TOLERANCE, find_device, interleaved, network_and_batch, ratio, waiting
from .run import Figure, Places, Task

LAMBDA, STEPS = 0.1, 8
OFFICIAL = "official SABR"


def our_step(case: dict, device: torch.device, loss: str, **attack) -> Callable[[], object]:
    """Return our training step, after annealing.

    Args:
        case: Network and batch.
        device: Where to train.
        loss: One of the registry's losses.
        **attack: Fields of the training attack to change.
    """
    model, x, y = network_and_batch(case, device)
    sets = [PerturbationLinf(EPS_INF), PerturbationL2Box(EPS_2)]
    options = {"ratio_inf": LAMBDA, "attack": {"steps": STEPS, **attack}}
    options = {name: value for name, value in options.items() if accepts(loss, name)}
    step = TrainingStep(model, build_loss(loss, sets, **options), sets,
                        TrainConfig(loss=loss, batch_size=len(x), schedule=Schedule(0, 0)))
    step.start_epoch(0)
    return lambda: step(x, y, 1.0)


class _Batch(list):
    """A data loader of one batch, as the official loop takes it."""

    batch_size = 0


class _Constant(float):
    """A schedule that never changes."""

    def getcurrent(self, _) -> float:
        return float(self)


class _SilentBar(list):
    """A data loader with the methods of a progress bar."""

    def set_description(self, *_) -> None:
        """Show nothing."""

    def refresh(self) -> None:
        """Show nothing."""


def official_step(path: Path, case: dict, device: torch.device) -> Callable[[], object]:
    """Return the step of the official code at a path, with its own CNN7 for the case's images."""
    sys.path.insert(0, str(path))
    from src import train
    from src.AIDomains.abstract_layers import Sequential
    from src.networks import Models
    _, x, y = network_and_batch(case, device)
    shape = tuple(case["in_shape"])
    net = Sequential.from_concrete_network(Models["CNN7"]("cifar10", True, True, str(device)), shape)
    net.optimizer = torch.optim.Adam(net.parameters(), lr=5e-4)
    net.set_dim(x)
    net.set_dim = lambda _: None  # it runs the network once per epoch, which is no part of a step
    train.tqdm = SimpleNamespace(tqdm=_SilentBar)
    loader = _Batch([(x, y, torch.arange(len(x)))])
    loader.batch_size = len(x)

    def step() -> None:
        """Take one step of the official loop."""
        with contextlib.redirect_stdout(io.StringIO()):
            train.train_net(net, 1, True, _official_settings(), loader, shape, (0, 1), EPS_INF, False, _Constant(1),
                            _Constant(EPS_INF), kappa_scheduler=_Constant(0))

    return step


def _official_settings() -> SimpleNamespace:
    return SimpleNamespace(
        adv_start_steps=STEPS, adv_end_steps=None, adv_step_size=0.5, adv_step_size_end=None, box_attack="pgd_concrete",
        box_attack_loss_fn="CE", bn_mode_attack="eval", bn=True, adv_bn=False, eps_end=EPS_INF, lambda_ratio=LAMBDA,
        end_lambda_ratio=0.0, start_anneal_lambda=None, start_sound=False, dimwise_scaling=False, loss_fn="CE",
        loss_domain="box", use_shrinking_box=False, cert_reg=None, l1=None, clip_norm=1.0, end_clip_norm=None,
        clip_robust_gradient=False, clip_combined_gradient=None, save=False)


def compare(batch: int, settings: dict, places: Places) -> dict:
    """Time the steps of all losses, of those with other attacks, and of the official code where asked for."""
    device, case = find_device(settings.get("device", "cpu")), {**settings["case"], "batch": batch}
    wanted = {loss: {"loss": loss} for loss in settings.get("losses", LOSSES)}
    steps = {name: our_step(case, device, **one) for name, one in {**wanted, **settings.get("also", {})}.items()}
    if settings.get("official"):
        steps[OFFICIAL] = official_step(places.official, case, device)
    timing = interleaved(steps, settings["repeats"], synchronize=waiting(device))
    found = {f"ratio to {base}": {name: ratio(timing, name, base) for name in timing if name != base}
             for base in ("natural", "joint", OFFICIAL) if base in timing}
    attack = {name: str(value) for name, value in dataclasses.asdict(TRAINING_ATTACK).items()}
    return {**found, "timing": timing, "settings": {**case, "steps": STEPS, "default attack": attack}}


def tasks(settings: dict, places: Places) -> Dict[str, Task]:
    """Return one task per batch size."""
    return {f"batch {batch}": partial(compare, batch, settings, places) for batch in settings["batches"]}


def problems(rows: List[dict]) -> List[str]:
    """Return the steps that take no longer than the natural step, which is a part of them."""
    return [f"{row['key']}, {name}: {found['median']} times the natural step, which is a part of it"
            for row in rows for name, found in row["ratio to natural"].items() if not found["median"] > 1]


def figures(rows: List[dict]) -> Dict[str, Figure]:
    """Return the median ratios to the natural step."""
    return {f"{row['key']}: {name}": Figure(found["median"], TOLERANCE)
            for row in rows for name, found in row["ratio to natural"].items()}
