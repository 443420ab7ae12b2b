"""Objectives that attacks on classifiers maximise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..bounds.margins import check_labels
from ..utils.deferred import deferred_checks


def margin_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return max over k != y of ``z_k - z_y``, shape (B,): positive where misclassified."""
    true = logits.gather(1, labels.unsqueeze(1))
    others = logits.scatter(1, labels.unsqueeze(1), float("-inf"))
    return others.max(dim=1).values - true.squeeze(1)


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels, reduction="none")


#: The losses of attacks by name; each maps outputs (B, K) and labels (B,) to values (B,).
LOSSES = {"margin": margin_loss, "ce": _cross_entropy}


class ClassifierObjective:
    """The loss of a classifier at stacked inputs, and which of the inputs it gets wrong.

    Args:
        run: The classifier.
        centers: Inputs of each region.
        labels: True classes of each region's inputs; checked when the first outputs say how many
            there are.
        loss: Maps outputs and labels to one value each.
    """

    def __init__(
        self,
        run: Callable[[Tensor], Tensor],
        centers: Sequence[Tensor],
        labels: Sequence[Tensor],
        loss: Callable[[Tensor, Tensor], Tensor],
    ) -> None:
        self._run, self._centers, self._labels, self._loss = run, centers, labels, loss
        self._target: Tensor | None = None
        self._outputs: Tensor | None = None

    def __call__(self, inputs: Tensor) -> Tensor:
        """Return the losses, (B,)."""
        outputs = self._run(inputs)
        if self._target is None:
            with deferred_checks():  # the same labels are looked at once
                for center, labels in zip(self._centers, self._labels):
                    check_labels(labels, outputs.shape[1], len(center), center.device)
            self._target = torch.cat(list(self._labels)).long()
        self._outputs = outputs.detach()
        return self._loss(outputs, self._target)

    def is_wrong(self) -> Tensor:
        """Return which inputs of the last call were misclassified, (B,)."""
        assert self._outputs is not None  # of the call before
        assert self._target is not None
        return margin_loss(self._outputs, self._target) > 0
