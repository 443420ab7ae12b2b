"""Averaging weights over the last epochs, and BatchNorm statistics of the whole training set."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from ..data import batches


class WeightAverage:
    """The mean of the weights at the ends of epochs (stochastic weight averaging).

    Source: Izmailov et al. 2018, "Averaging Weights Leads to Wider Optima and Better
        Generalization".

    Example:
        >>> layer, average = nn.Linear(1, 1, bias=False), WeightAverage()
        >>> for value in (1., 3.):
        ...     _ = nn.init.constant_(layer.weight, value)
        ...     average.add(layer)
        >>> average.weights["weight"]
        tensor([[2.]])
    """

    def __init__(self) -> None:
        self.count = 0
        self.weights: dict[str, Tensor] = {}

    def add(self, model: nn.Module) -> None:
        """Include the model's present weights in the mean."""
        self.count += 1
        for name, parameter in model.named_parameters():
            value = parameter.detach()
            # A checkpoint's means come back on the CPU.
            mean = self.weights[name] = self.weights.get(name, value.clone()).to(value.device)
            mean += (value - mean) / self.count

    @torch.no_grad()
    def apply_to(self, model: nn.Module) -> None:
        """Give the averaged weights to a model."""
        for name, value in model.named_parameters():
            value.copy_(self.weights[name])

    def state_dict(self) -> dict:
        """Return count and means, for a checkpoint."""
        return {"count": self.count, "weights": self.weights}

    def load_state_dict(self, state: dict) -> None:
        """Continue from :meth:`state_dict`."""
        self.count, self.weights = state["count"], state["weights"]


def recompute_statistics(model: nn.Module, x: Tensor, batch_size: int) -> None:
    """Set BatchNorm's running statistics to those of all images ("precise BatchNorm").

    Args:
        model: The network; other layers are not changed.
        x: Training images (N, C, H, W), without augmentation.
        batch_size: Images per forward pass; a last batch that is not full is left out.
    """
    images = (
        x for x, _ in batches(x, torch.zeros(len(x)), min(batch_size, len(x)), drop_last=True)
    )
    update_bn(images, model)
