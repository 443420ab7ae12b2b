"""Cost of training steps on the CNN7 of SABR: ours beside each other and beside SABR's official code, interleaved.

    python -m benchmarks.training_speed                        # our steps, as ratios to our natural step
    python -m benchmarks.training_speed --official PATH        # also the step of a checkout of eth-sri/sabr

The official step is its own ``train_net`` on one batch, with the settings of its command line for CIFAR-10 but for the
parts that other losses lack (no L1 term, no shrinking, no regulariser: these are for annealing).
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import sys
from types import SimpleNamespace
from typing import Callable, Dict, Optional

import torch

from lirpa_multinorm import PerturbationL2Box, PerturbationLinf
from lirpa_multinorm.losses import LOSSES, build_loss
from lirpa_multinorm.losses.branches import TRAINING_ATTACK
from lirpa_multinorm.models import build_model
from lirpa_multinorm.training import Schedule, TrainConfig
from lirpa_multinorm.training.step import TrainingStep

from .common import interleaved, ratio, write_result

SHAPE, MEAN, STD = (3, 32, 32), (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
EPS_INF, EPS_2, LAMBDA, STEPS = 2 / 255, 0.25, 0.1, 8
NAMES = ("sabr", "joint", "max", "cure")
#: Attacks to compare by the ending of a step's name: the default one, and at the other precision.
_OTHER = "bfloat16" if TRAINING_ATTACK.precision == "float32" else "float32"
ATTACKS = {"": {}, f" {_OTHER}": {"precision": _OTHER}}


def our_step(name: str, x: torch.Tensor, y: torch.Tensor, attack: dict) -> Callable[[], object]:
    """Return our training step with a loss by name, after annealing; "natural" has no attack."""
    torch.manual_seed(0)
    model = build_model("cnn7", SHAPE, 10, mean=MEAN, std=STD)
    sets = [PerturbationLinf(EPS_INF), PerturbationL2Box(EPS_2)]
    options = {} if name == "natural" else {"ratio_inf": LAMBDA, "attack": dict(attack, steps=STEPS)}
    step = TrainingStep(model, build_loss(name, sets, **options), sets,
                        TrainConfig(loss=name, batch_size=len(x), schedule=Schedule(0, 0)))
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


def official_step(path: str, x: torch.Tensor, y: torch.Tensor) -> Callable[[], object]:
    """Return the step of the official code at a path, on this machine's processor."""
    sys.path.insert(0, path)
    from src import train
    from src.AIDomains.abstract_layers import Sequential
    from src.networks import Models
    torch.manual_seed(0)
    net = Sequential.from_concrete_network(Models["CNN7"]("cifar10", True, True, "cpu"), SHAPE)
    net.optimizer = torch.optim.Adam(net.parameters(), lr=5e-4)
    net.set_dim(x)
    net.set_dim = lambda _: None  # it runs the network once per epoch, which is no part of a step
    train.tqdm = SimpleNamespace(tqdm=_SilentBar)
    loader = _Batch([(x, y, torch.arange(len(x)))])
    loader.batch_size = len(x)

    def step() -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            train.train_net(net, 1, True, _official_settings(), loader, SHAPE, (0, 1), EPS_INF, False, _Constant(1),
                            _Constant(EPS_INF), kappa_scheduler=_Constant(0))

    return step


def _official_settings() -> SimpleNamespace:
    return SimpleNamespace(
        adv_start_steps=STEPS, adv_end_steps=None, adv_step_size=0.5, adv_step_size_end=None, box_attack="pgd_concrete",
        box_attack_loss_fn="CE", bn_mode_attack="eval", bn=True, adv_bn=False, eps_end=EPS_INF, lambda_ratio=LAMBDA,
        end_lambda_ratio=0.0, start_anneal_lambda=None, start_sound=False, dimwise_scaling=False, loss_fn="CE",
        loss_domain="box", use_shrinking_box=False, cert_reg=None, l1=None, clip_norm=1.0, end_clip_norm=None,
        clip_robust_gradient=False, clip_combined_gradient=None, save=False)


def steps(x: torch.Tensor, y: torch.Tensor, official: Optional[str] = None) -> Dict[str, Callable[[], object]]:
    """Return what to time, by name."""
    found = {"natural": our_step("natural", x, y, {})}
    for name in NAMES:
        for ending, attack in ATTACKS.items():
            if name in LOSSES and (name in ("sabr", "joint") or not ending):
                found[name + ending] = our_step(name, x, y, attack)
    if official:
        found["official SABR"] = official_step(official, x, y)
    return found


def main() -> None:
    """Time the steps and write benchmarks/results/training_speed.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--official", help="checkout of SABR's official code")
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--batch", type=int, default=32)
    args = parser.parse_args()
    torch.manual_seed(0)
    x, y = torch.rand(args.batch, *SHAPE), torch.randint(0, 10, (args.batch,))
    timing = interleaved(steps(x, y, args.official), args.repeats)
    result = {"timing": timing}
    for base in ("natural", "official SABR") if args.official else ("natural",):
        result[f"ratio to {base}"] = {name: ratio(timing, name, base) for name in timing if name != base}
        for name, found in result[f"ratio to {base}"].items():
            print(f"{name} / {base}: {found['median']:.3f} {found['quartiles']}")
    for name in ("max", "cure"):
        result[f"{name} to joint"] = ratio(timing, name, "joint")
    attack = {name: str(value) for name, value in dataclasses.asdict(TRAINING_ATTACK).items()}
    write_result("training_speed", {"network": "cnn7", "shape": list(SHAPE), "batch": args.batch, "steps": STEPS,
                                    "eps_inf": EPS_INF, "eps_2": EPS_2, "repeats": args.repeats,
                                    "default_attack": attack}, result)


if __name__ == "__main__":
    main()
