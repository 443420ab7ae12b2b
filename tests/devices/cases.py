"""Calls of every floor as functions of a device, whose results are those of a CPU."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial
from typing import Callable

import torch
from torch import Tensor, nn

from lirpa_multinorm import (
    BoundedModule,
    CertifySettings,
    LossTerm,
    MultiNormLoss,
    PerturbationGeometric,
    PerturbationL1Box,
    PerturbationL2Box,
    PerturbationLinf,
    PerturbationPatch,
    build_loss,
    certify,
    margin_matrix,
)
from lirpa_multinorm.attacks import AttackSettings, pgd
from lirpa_multinorm.bounds.methods import METHODS
from lirpa_multinorm.certification.settings import METHODS as DEFAULT_STAGES
from lirpa_multinorm.losses import LOSSES
from lirpa_multinorm.training import Schedule, TrainConfig
from lirpa_multinorm.training.step import TrainingStep
from lirpa_multinorm.utils.randomness import generators_kept
from tests.networks import pixels

CLASSES, SHAPE = 3, (1, 6, 6)
SETS = [PerturbationLinf(0.02), PerturbationL2Box(0.1), PerturbationL1Box(0.2)]
BRIEF = AttackSettings(steps=3)
Case = Callable[[torch.device], Sequence[Tensor]]


def network(device: torch.device, normed: bool = False) -> nn.Module:
    """A small convolutional network, the same on every device."""
    with generators_kept("cpu"):
        torch.manual_seed(0)
        norm = [nn.BatchNorm2d(4)] if normed else []
        model = nn.Sequential(
            nn.Conv2d(1, 4, 3, stride=2, padding=1),
            *norm,
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(36, 12),
            nn.ReLU(),
            nn.Linear(12, CLASSES),
        )
    return model.eval().to(device)


def batch(device: torch.device, count: int = 4) -> tuple[Tensor, Tensor]:
    """Images, and the classes that the network gives them."""
    x = pixels(count, *SHAPE)
    return x.to(device), network(torch.device("cpu"))(x).argmax(1).to(device)


def bounded_by(method: str, device: torch.device) -> list[Tensor]:
    """Lower margin bounds by a method, and their gradient where there is one."""
    model, (x, y) = network(device), batch(device)
    options = {"optimize_bound_args": {"iteration": 3}}
    bounded = BoundedModule(model, bound_opts=options, perturbations=SETS)
    C = margin_matrix(y, CLASSES)
    bounds = bounded.compute_norm_bounds(x, C=C, method=method, bound_upper=False)
    lower = torch.stack([bound.lower for bound in bounds])
    if not lower.requires_grad:
        return [lower]
    lower.sum().backward()
    return [lower.detach(), *[p.grad for p in model.parameters() if p.grad is not None]]


def outputs_bounded(device: torch.device) -> list[Tensor]:
    """Bounds of the outputs themselves by an optimised method, whatever the specification."""
    x, _ = batch(device)
    options = {"optimize_bound_args": {"iteration": 3}}
    bounded = BoundedModule(network(device), bound_opts=options, perturbations=SETS)
    return [bound.detach() for bound in bounded.compute_bounds(x, method="CROWN-Optimized")]


def released(device: torch.device) -> list[Tensor]:
    """A loss on the points of CURE's released attack."""
    x, y = batch(device)
    loss = MultiNormLoss([LossTerm(SETS[1], "released", 0.1)])
    start = torch.Generator().manual_seed(0)
    return [loss(BoundedModule(network(device)), x, y, generator=start).value.detach()]


def attacked(loss: str, stop_early: bool, device: torch.device) -> list[Tensor]:
    """Adversarial points in all sets, from random starts."""
    x, y = batch(device)
    settings = AttackSettings(
        steps=3,
        restarts=2,
        loss=loss,
        channels_last=True,
        stop_early=stop_early,
        try_center=not stop_early,
    )
    return pgd(network(device), x, y, SETS, settings, torch.Generator().manual_seed(0))


def trained_by(loss: str, device: torch.device) -> list[Tensor]:
    """Weights after two steps of training, with BatchNorm and regularisers."""
    model, (x, y) = network(device, normed=True), batch(device, 8)
    schedule = Schedule(0, 1)
    config = TrainConfig(loss=loss, batch_size=8, schedule=schedule, regularizer=0.5)
    step = TrainingStep(model, build_loss(loss, SETS[:2]), SETS[:2], config)
    step.start_epoch(0)
    values = [step(x, y, now) for now in (0.5, 1.0)]
    return [values[0]["natural_loss"], *[p.detach() for p in model.parameters()]]


def certified(
    sets: Sequence, methods: Sequence[str], attack: AttackSettings | None, device: torch.device
) -> list[Tensor]:
    """Which pairs are certified, and which broken."""
    x, y = batch(device)
    settings = CertifySettings(methods=methods, attack=attack, time_limit=20)
    result = certify(network(device), x, y, sets, settings)
    assert not result.errors, result.errors
    return [result.is_status("certified").float(), result.is_status("falsified").float()]


def constants(device: torch.device) -> list[Tensor]:
    """Estimates of Lipschitz constants, for both norms that have one."""
    x, _ = batch(device)
    return BoundedModule(network(device)).class_falls(x, (2, 1))


def copied(device: torch.device) -> list[Tensor]:
    """Outputs of a module and its copy, bounded and unbounded."""
    x, _ = batch(device)
    bounded = BoundedModule(network(device), perturbations=SETS)
    return [bounded(x).detach(), *copy.deepcopy(bounded).compute_bounds(x, method="IBP")]


CASES: dict[str, Case] = {
    **{f"bounds by {method}": partial(bounded_by, method) for method in METHODS if method != "BaB"},
    "bounds of the outputs": outputs_bounded,
    "a loss on the released attack": released,
    "attack on margins": partial(attacked, "margin", False),
    "attack on cross-entropies until wrong": partial(attacked, "ce", True),
    **{f"training by {loss}": partial(trained_by, loss) for loss in LOSSES if loss != "linf_dist"},
    "certification by the default stages": partial(certified, SETS, DEFAULT_STAGES, BRIEF),
    "branch and bound": partial(certified, [PerturbationLinf(0.08)], ["BaB"], None),
    "certification of transforms": partial(
        certified, [PerturbationGeometric(rotation=5, scale=0.02)], ["Splitting"], BRIEF
    ),
    "certification of patches": partial(certified, [PerturbationPatch(2, 2)], ["Patches"], None),
    "Lipschitz estimates": constants,
    "a copy": copied,
}
TOLERANCE = {"rtol": 1e-3, "atol": 1e-4}
