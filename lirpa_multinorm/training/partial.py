"""The state of an unfinished epoch, from which a run can go on in the middle of it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor, nn

State = dict[str, Tensor]


class EpochLog:
    """Means over one epoch, weighted by batch size; a value may be missing in some batches."""

    def __init__(self) -> None:
        self.sums: dict[str, Any] = {}
        self.counts: dict[str, int] = {}

    def add(self, size: int, values: Mapping[str, Tensor]) -> None:
        """Add a batch's means; they stay on their device, so that nothing waits for them."""
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + size * value.detach()
            self.counts[name] = self.counts.get(name, 0) + size

    def means(self) -> dict[str, float]:
        """Return the means so far."""
        return {name: float(total) / self.counts[name] for name, total in self.sums.items()}


@dataclass
class PartialEpoch:
    """An epoch between two steps.

    With gradient projection it has a certified phase and then a natural one.

    Args:
        order: State of the generator of order and augmentation at the beginning of the phase; the
            batches that are done are drawn again from there.
        start: Weights at the beginning of the epoch; None where no gradients are projected.
        moments: The certified optimiser's state then, where the natural phase starts from it.
        steps: Steps done in this phase.
        log: Sums of this phase.
        certified: Weights at the end of the certified phase; None while that is going on.
        line: Means of the certified phase, once it is over.
        seconds: Time spent before this process went on.
        natural_seconds: The natural phase's share of it.
    """

    order: Tensor
    start: State | None = None
    moments: dict | None = None
    steps: int = 0
    log: EpochLog = field(default_factory=EpochLog)
    certified: State | None = None
    line: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    natural_seconds: float = 0.0

    def __post_init__(self) -> None:
        self._since = time.perf_counter()

    @property
    def natural(self) -> bool:
        """Whether the natural phase has begun."""
        return self.certified is not None

    def begin_natural(self, line: dict[str, float], order: Tensor, certified: State) -> None:
        """Go over to the natural phase, with the certified phase's means and weights."""
        self.count_time()
        self.log, self.steps = EpochLog(), 0
        self.line, self.order, self.certified = line, order, certified

    def count_time(self) -> None:
        """Add the time since the last call."""
        now = time.perf_counter()
        self.seconds += now - self._since
        self.natural_seconds += now - self._since if self.natural else 0.0
        self._since = now

    def state_dict(self) -> dict:
        """Return the epoch's state, for a checkpoint."""
        self.count_time()
        names = [entry.name for entry in fields(self) if entry.name != "log"]
        state = {name: getattr(self, name) for name in names}
        return {**state, "sums": dict(self.log.sums), "counts": dict(self.log.counts)}

    @classmethod
    def from_state(cls, state: Mapping, device: str) -> PartialEpoch:
        """Return the epoch that :meth:`state_dict` described, its tensors on a device."""
        state = dict(state)
        log = EpochLog()
        log.sums, log.counts = _moved(state.pop("sums"), device), dict(state.pop("counts"))
        for name in ("start", "certified"):
            state[name] = None if state[name] is None else _moved(state[name], device)
        return cls(**{**state, "order": state["order"].cpu()}, log=log)


def _moved(state: State, device: str) -> State:
    """Return tensors on a device."""
    return {name: value.to(device) for name, value in state.items()}


def snapshot(model: nn.Module) -> State:
    """Return a copy of a network's state."""
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


@torch.no_grad()
def put_back(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Put values back in place, so that optimisers and traces keep their tensors."""
    for name, value in model.state_dict().items():
        value.copy_(state[name])
