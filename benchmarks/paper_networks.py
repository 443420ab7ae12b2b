"""The networks of the paper's rows, with their images, their sets and their two forms.

A network is bounded as it was trained, with a convolution as its first operator, or behind a
normalisation that changes nothing, as the paper's exported networks are.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lirpa_multinorm import PerturbationLinf, PerturbationLpBox
from lirpa_multinorm.data import load, to_unit
from lirpa_multinorm.errors import InvalidArgumentError
from lirpa_multinorm.models import Normalize
from lirpa_multinorm.training import load_checkpoint

from .run import Places

INF = float("inf")
AS_TRAINED, IN_FRONT = "convolution", "normalisation"


class Subject(NamedTuple):
    """A network of the paper's rows with the images it gets right.

    Args:
        model: The network, in eval mode, without a normalisation.
        x: Images in [0, 1].
        y: Labels.
        right: Positions of those images of x that the network gets right.
        sets: By name, what is certified: "l_inf" and "l_2" are cut with the pixel range, "plain
            l_2" is not.
    """

    model: nn.Module
    x: Tensor
    y: Tensor
    right: Tensor
    sets: dict[str, PerturbationLpBox]


def subject(run: str, settings: dict[str, Any], places: Places) -> Subject:
    """Return a trained network with test images and the sets it was trained for.

    Where the settings give another l_2 radius, the l_2 set has that one.

    Raises:
        InvalidArgumentError: The network normalises its input already, so that it cannot be bounded
            without.
    """
    checkpoint = load_checkpoint(places.runs / run / "checkpoint.pt")
    model = checkpoint.model.eval()
    if any(isinstance(layer, Normalize) for layer in model.modules()):
        raise InvalidArgumentError(
            f"runs: {run} normalises its input; give one that starts with an affine layer"
        )
    data = load(settings["data"], data_dir=places.data_dir, download=False)
    x, y = to_unit(data.x_test[: settings["n"]]), data.y_test[: settings["n"]].long()
    with torch.no_grad():
        right = (model(x).argmax(1) == y).nonzero().squeeze(1)
    eps = {ptb.norm: ptb.eps for ptb in checkpoint.perturbations}
    eps[2.0] = settings.get("eps_2", eps[2.0])
    return Subject(
        model,
        x,
        y,
        right,
        {
            "l_inf": PerturbationLinf(eps[INF]),
            "l_2": PerturbationLpBox(2, eps[2.0]),
            "plain l_2": PerturbationLpBox(2, eps[2.0], clip=None),
        },
    )


class Standardised(nn.Module):
    """A network behind ``(x - 0) / 1``.

    The same function, with the first operators of the paper's exported networks.

    Args:
        model: The network.
        channels: Of its images. The constants have four dimensions, as there.
    """

    def __init__(self, model: nn.Module, channels: int) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.zeros(1, channels, 1, 1))
        self.register_buffer("std", torch.ones(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        return self.model((x - self.mean) / self.std)
