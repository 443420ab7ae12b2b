"""The training step of SABR's official code, and its attack, on a network and images of ours.

Its step is its own ``train_net`` on one batch, with the settings of its command line but for the
parts that other losses lack (no L1 term, no shrinking, no regulariser: these are for annealing).
"""

from __future__ import annotations

import contextlib
import importlib
import io
import itertools
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Callable

import torch
from torch import Tensor, nn

from .trained_case import Batch


class _Batches(list):
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


class OfficialSabr:
    """The official code at a path.

    Args:
        path: A checkout of eth-sri/sabr.
        steps: Steps of its attack.
        ratio: lambda.
        eps: Radius.
        early: Whether its attack stops once every image is misclassified, as it does by default.
    """

    def __init__(
        self, path: Path, steps: int, ratio: float, eps: float, early: bool = True
    ) -> None:
        if str(path) not in sys.path:
            sys.path.insert(0, str(path))
        self._train, layers = (
            importlib.import_module(f"src.{name}")
            for name in ("train", "AIDomains.abstract_layers")
        )
        self._attack = importlib.import_module("src.adv_attack").adv_whitebox
        self._sequential, self.steps, self.ratio, self.eps, self.early = (
            layers.Sequential,
            steps,
            ratio,
            eps,
            early,
        )

    def step(self, model: nn.Module, batches: Sequence[Batch]) -> Callable[[], object]:
        """Return the step of its loop on a network with our network's layers and weights.

        Batches in turn.
        """
        shape, turns = tuple(batches[0][0].shape[1:]), itertools.cycle(batches)
        network = self._network(model, batches[0][0])
        network.optimizer = torch.optim.Adam(network.parameters(), lr=5e-4)
        network.set_dim = lambda _: (
            None
        )  # it runs the network once per epoch, which is no part of a step
        settings = self._settings(
            any(isinstance(layer, nn.BatchNorm2d) for layer in model.modules())
        )

        def step() -> None:
            """Take one step of the official loop."""
            x, y = next(turns)
            loader = _Batches([(x, y, torch.arange(len(x)))])
            loader.batch_size = len(x)
            self._train.tqdm = SimpleNamespace(tqdm=_SilentBar)
            self._train.adv_whitebox = partial(self._attack, early_stopping=self.early)
            with contextlib.redirect_stdout(io.StringIO()):
                self._train.train_net(
                    network,
                    1,
                    True,
                    settings,
                    loader,
                    shape,
                    (0, 1),
                    self.eps,
                    False,
                    _Constant(1),
                    _Constant(self.eps),
                    kappa_scheduler=_Constant(0),
                )

        return step

    def attacked(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Return the points that its training attack finds."""
        network = self._network(model, x).eval()
        points, _ = self._attack(
            network,
            x,
            y,
            self.ratio * self.eps,
            self.eps,
            n_steps=self.steps,
            step_size=0.5,
            data_range=(0, 1),
            loss_function="CE",
            ODI_num_steps=0,
            restarts=1,
            train=True,
            early_stopping=self.early,
        )
        return points.detach()

    def _network(self, model: nn.Module, x: Tensor):
        network = self._sequential.from_concrete_network(model, tuple(x.shape[1:]))
        network.set_dim(x)
        return network

    def _settings(self, batch_norm: bool) -> SimpleNamespace:
        return SimpleNamespace(
            adv_start_steps=self.steps,
            adv_end_steps=None,
            adv_step_size=0.5,
            adv_step_size_end=None,
            box_attack="pgd_concrete",
            box_attack_loss_fn="CE",
            bn_mode_attack="eval",
            bn=batch_norm,
            adv_bn=False,
            eps_end=self.eps,
            lambda_ratio=self.ratio,
            end_lambda_ratio=0.0,
            start_anneal_lambda=None,
            start_sound=False,
            dimwise_scaling=False,
            loss_fn="CE",
            loss_domain="box",
            use_shrinking_box=False,
            cert_reg=None,
            l1=None,
            clip_norm=1.0,
            end_clip_norm=None,
            clip_robust_gradient=False,
            clip_combined_gradient=None,
            save=False,
        )
