"""Averaging weights over the last epochs, and BatchNorm statistics of the whole training set."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, update_bn

from ..data import batches

#: What a checkpoint holds where nothing is averaged.
NO_AVERAGE: dict = {"count": 0, "weights": {}}


class WeightAverage:
    """The mean of the weights at the ends of epochs, as a checkpoint holds it.

    Args:
        model: The network that is trained; it is copied.

    Source: Izmailov et al. 2018, "Averaging Weights Leads to Wider Optima and Better
        Generalization"; torch's :class:`AveragedModel`.

    Example:
        >>> layer = nn.Linear(1, 1, bias=False)
        >>> average = WeightAverage(layer)
        >>> for value in (1., 3.):
        ...     _ = nn.init.constant_(layer.weight, value)
        ...     average.add(layer)
        >>> average.state_dict()["weights"]["weight"]
        tensor([[2.]])
    """

    def __init__(self, model: nn.Module) -> None:
        self._averaged = AveragedModel(model)

    def add(self, model: nn.Module) -> None:
        """Include the model's present weights in the mean."""
        self._averaged.update_parameters(model)

    @torch.no_grad()
    def apply_to(self, model: nn.Module) -> None:
        """Give the averaged weights to a model."""
        for value, mean in zip(model.parameters(), self._averaged.module.parameters()):
            value.copy_(mean)

    def state_dict(self) -> dict:
        """Return count and means by name, for a checkpoint."""
        count = int(self._averaged.n_averaged)
        means = self._averaged.module.named_parameters() if count else ()
        return {"count": count, "weights": {name: mean.detach() for name, mean in means}}

    @torch.no_grad()
    def load_state_dict(self, state: dict) -> None:
        """Continue from :meth:`state_dict`."""
        self._averaged.n_averaged.fill_(state["count"])
        if state["count"]:
            for name, mean in self._averaged.module.named_parameters():
                mean.copy_(state["weights"][name])


def recompute_statistics(model: nn.Module, x: Tensor, batch_size: int) -> None:
    """Set BatchNorm's running statistics to those of all images ("precise BatchNorm").

    Args:
        model: The network; other layers are not changed.
        x: Training images (N, C, H, W), without augmentation.
        batch_size: Images per forward pass; a last batch that is not full is left out.
    """
    labels = torch.zeros(len(x), device=x.device)  # nobody looks at them
    images = (x for x, _ in batches(x, labels, min(batch_size, len(x)), drop_last=True))
    update_bn(images, model)
