"""One optimisation step, and the natural steps that gradient projection needs."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, Callable, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..bounds import BoundedModule, IntermediateIntervals
from ..data import ImageData, augmentation, batches
from ..errors import InvalidArgumentError, NaNBoundError
from ..losses import AnyTerm, MultiNormLoss, shi_regularizer
from ..perturbations import PerturbationLinf, Region
from ..perturbations.described import AnySet, balls_of
from ..utils import distributed
from ..utils.deferred import deferred_checks, read_deferred
from .config import TrainConfig
from .diagnosis import NOWHERE, nonfinite_place
from .optimizer import set_learning_rate
from .projection import Projection

Result = TypeVar("Result")

_POINT = 1e-6  # half-width of the box that Shi's regularisers look at before there is a radius


class TrainingStep:
    """Steps of training: clean forward, regions, bounds, loss, update; and their state.

    Args:
        model: The network.
        loss: A certified loss, or None for natural training.
        perturbations: The sets.
        config: Settings.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: MultiNormLoss | None,
        perturbations: Sequence[AnySet],
        config: TrainConfig,
    ) -> None:
        self.model, self.loss, self.config = model, loss, config.in_epochs()
        self.bounded = BoundedModule(model, perturbations=balls_of(perturbations))
        self.optimizer = self._adam()
        self.natural_optimizer: torch.optim.Optimizer | None = None
        if config.projection is not None:
            self.natural_optimizer = self._adam()
        self.order = torch.Generator().manual_seed(config.seed)
        self.starts = distributed.SharedGenerator(config.seed + 1)

    def _adam(self) -> torch.optim.Optimizer:
        """Return a new optimiser of the weights."""
        return self.config.adam.optimizer(self.model, self.config.learning_rate)

    # --- data and time ----------------------------------------------------------------------------

    def steps_per_epoch(self, data: ImageData) -> int:
        """Return the number of full batches in the training set."""
        return len(data.x_train) // self.config.batch_size

    def _augment(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """Return augmented images."""
        change = augmentation(self.config.augment)
        return x if change is None else change(x, generator)

    def batches(self, data: ImageData, skip: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield this process's rows of shuffled full batches of the training set.

        The first ``skip`` batches are drawn and not yielded.
        """
        drawn = batches(
            data.x_train,
            data.y_train,
            self.config.batch_size,
            generator=self.order,
            augment=self._augment,
            drop_last=True,
        )
        for x, y in itertools.islice(drawn, skip, None):
            yield distributed.own_rows(x), distributed.own_rows(y)

    def start_epoch(self, epoch: int) -> None:
        """Set the learning rate and training mode."""
        learning_rate = self.config.learning_rate_at(epoch)
        for optimizer in (self.optimizer, self.natural_optimizer):
            if optimizer is not None:
                set_learning_rate(optimizer, learning_rate)
        self.bounded.train()

    def state(self, now: float) -> dict:
        """Return learning rate, radius factor and kappa for the log; ``now`` is in epochs."""
        scale, kappa = 0.0, 1.0
        if self.loss is not None:
            scale, kappa = self.config.schedule.eps_scale(now), self.config.schedule.kappa(now)
        return {
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "eps_scale": scale,
            "kappa": kappa,
        }

    # --- steps ------------------------------------------------------------------------------------

    def __call__(self, x: Tensor, y: Tensor, now: float) -> dict[str, Tensor]:
        """Take one step and return its means; ``now`` is the time in epochs.

        Values are checked together, before the weights are updated.

        Raises:
            NaNBoundError: Something became NaN or infinite; the message says where. No weight has
                been changed.
        """
        with self.bounded.trusting_marks(), deferred_checks():
            values = self._certified_step(x, y, now)
        return {name: value.detach() for name, value in values.items()}

    def _certified_step(self, x: Tensor, y: Tensor, now: float) -> dict[str, Tensor]:
        """Take one step and return its means, with gradients."""
        loss = self.loss
        if loss is not None:
            loss.advance(self.model, now / self.config.epochs)
        if self.config.adam.cosine:
            set_learning_rate(self.optimizer, self.config.learning_rate_at(now))
        natural, values = self._natural(x, y)
        kappa = 1.0 if loss is None else self.config.schedule.kappa(now)
        scale = self.config.schedule.eps_scale(now)
        # Without a share the natural loss is only logged: a factor of 0 would still cost its
        # backward pass.
        total, hidden = kappa * natural if kappa else natural.new_zeros(()), None
        if loss is not None and kappa < 1:
            robust = self._explained(
                x, lambda: loss(self.bounded, x, y, eps_scale=scale, generator=self.starts)
            )
            total, hidden = total + (1 - kappa) * robust.value, robust.hidden
            values.update(
                robust_loss=robust.value, **robust.parts, **_proved(loss.terms, robust.margins)
            )
        if self.config.regularizer and loss is not None and scale < 1:
            clip = loss.terms[0].perturbation.clip if loss.terms else None
            hidden = hidden or self._explained(x, lambda: point_intervals(self.bounded, x, clip))
            values["regularizer"] = shi_regularizer(hidden)
            total = total + self.config.regularizer * (1 - scale) * values["regularizer"]
        if self.config.l1:
            total = total + self.config.l1 * sum(p.abs().sum() for p in self.model.parameters())
        self.update(total, x)
        return values

    def moments(self) -> dict | None:
        """Return a copy of the certified optimiser's state if the natural epoch starts from it."""
        copied = self._projection.optimizer == "copy"
        return copy.deepcopy(self.optimizer.state_dict()) if copied else None

    def start_natural(self, moments: dict | None) -> None:
        """Begin an epoch on the natural loss alone, as gradient projection needs it.

        Args:
            moments: What :meth:`moments` returned at the weights that this epoch starts from.
        """
        if moments is not None and self.natural_optimizer is not None:
            self.natural_optimizer.load_state_dict(moments)
        self.model.zero_grad(set_to_none=True)

    def natural_step(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Take a step of that epoch and return its means.

        Raises:
            NaNBoundError: Something became NaN or infinite; the message says where. No weight has
                been changed.
        """
        loss, values = self._natural(x, y)
        self.update(loss, x, self.natural_optimizer, clear=not self._projection.accumulate)
        return {name: value.detach() for name, value in values.items()}

    def end_natural(self) -> None:
        """Leave no gradients behind."""
        self.model.zero_grad(set_to_none=True)

    @property
    def _projection(self) -> Projection:
        """The settings of gradient projection, which every natural epoch belongs to."""
        assert self.config.projection is not None
        return self.config.projection

    @property
    def _device(self) -> torch.device:
        return next(self.model.parameters()).device

    def _natural(self, x: Tensor, y: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the natural loss, and it and the accuracy for the log."""
        logits = self.bounded(x)  # also sets the BatchNorm statistics that the bounds use
        loss = distributed.mean(F.cross_entropy(logits, y, reduction="none"))
        return loss, {
            "natural_loss": loss,
            "accuracy": distributed.mean((logits.argmax(1) == y).float()),
        }

    def update(
        self,
        loss: Tensor,
        x: Tensor,
        optimizer: torch.optim.Optimizer | None = None,
        clear: bool = True,
    ) -> None:
        """Compute the gradients and update the weights, unless a gradient is not finite."""
        if clear:
            self.model.zero_grad(set_to_none=True)
        loss.backward()
        distributed.average_gradients(self.model.parameters())
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        norm = torch.stack(list(torch._foreach_norm(gradients))).norm()
        finite = torch.isfinite(norm + loss.detach())
        if not self._explained(x, lambda: read_deferred(finite))[0]:
            raise NaNBoundError(
                f"the loss is {float(loss.detach())} and the gradient's norm {float(norm)}: "
                f"{nonfinite_place(self.bounded, x)}"
            )
        if self.config.clip_norm is not None and optimizer is None:
            torch._foreach_mul_(gradients, (self.config.clip_norm / norm).clamp(max=1))
        (optimizer or self.optimizer).step()

    def _explained(self, x: Tensor, compute: Callable[[], Result]) -> Result:
        """Return what a function computes, with errors of a NaN saying where it is."""
        try:
            return compute()
        # InvalidArgumentError: the inputs themselves have a NaN.
        except (NaNBoundError, InvalidArgumentError) as error:
            self.model.zero_grad(set_to_none=True)  # of what should have been refused
            location = nonfinite_place(self.bounded, x)
            if isinstance(error, InvalidArgumentError) and location == NOWHERE:
                raise
            raise NaNBoundError(f"{error}: {location}") from error

    # --- the state between steps ------------------------------------------------------------------

    def state_dict(self) -> dict:
        """Return optimisers, sources of randomness and accumulated gradients, for a checkpoint."""
        natural, projection = self.natural_optimizer, self.config.projection
        accumulates = projection is not None and projection.accumulate
        parameters = self.model.named_parameters() if accumulates else ()
        return {
            "optimizer": self.optimizer.state_dict(),
            "order": self.order.get_state(),
            "natural_optimizer": None if natural is None else natural.state_dict(),
            "gradients": {name: p.grad for name, p in parameters if p.grad is not None},
            "starts": self.starts.get_state(),
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if self._device.type == "cuda" else [],
            "lipschitz": dict(self.bounded.lipschitz_vectors),
        }

    def load_state_dict(self, state: dict) -> None:
        """Continue from :meth:`state_dict`."""
        self.optimizer.load_state_dict(state["optimizer"])
        if self.natural_optimizer is not None:
            self.natural_optimizer.load_state_dict(state["natural_optimizer"])
        # Checkpoints of older versions have no gradients and no vectors.
        for name, gradient in state.get("gradients", {}).items():
            self.model.get_parameter(name).grad = gradient.to(self._device)
        self.bounded.lipschitz_vectors.update(state.get("lipschitz", {}))
        self.order.set_state(state["order"].cpu())
        self.starts.set_state(state["starts"].cpu())
        torch.set_rng_state(state["torch"].cpu())
        if state["cuda"] and self._device.type == "cuda":
            torch.cuda.set_rng_state_all([saved.cpu() for saved in state["cuda"]])


def point_intervals(bounded: BoundedModule, x: Tensor, clip: Any) -> IntermediateIntervals:
    """Return the intermediate bounds over a tiny box around each input, for Shi's regularisers."""
    region = Region(x, PerturbationLinf(_POINT, clip))
    intervals = bounded.compute_region_bounds([region], None, "IBP")[0].intermediate
    assert intervals is not None  # IBP always has them
    return intervals


def _proved(terms: Sequence[AnyTerm], margins: list[Tensor]) -> dict:
    """Return the share of each term's examples with a proved region or a positive estimate.

    IBP proves the training region of such an example, or its estimated margins are positive;
    neither is a certificate of the set.
    """
    names = ["estimated_margin_positive" if term.is_estimate else "region_proved" for term in terms]
    return {
        f"{name}_{i}": distributed.mean((lower.detach() > 0).all(1).float())
        for i, (name, lower) in enumerate(zip(names, margins))
    }
