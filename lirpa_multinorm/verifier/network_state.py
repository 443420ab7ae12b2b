"""What is worked out once for a network's weights, and whether the weights are still those."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..errors import UnsupportedModelError
from ..tracing.clean_pass import CHANGING
from ..tracing.staleness import Watch
from .affine_matrices import AffineMatrices
from .lipschitz.constants import LipschitzConstants
from .patches.reach import Reaches
from .receptive_fields import ReceptiveFields
from .relu_network import ReluNetwork


class NetworkState:
    """A network as affine maps, with its matrices, receptive fields and Lipschitz constants.

    Args:
        model: The model; eval mode.
        x: Inputs it is to be bounded at, (B, ...).

    Raises:
        UnsupportedModelError: The model is not piecewise linear, or a layer is in training mode.
    """

    def __init__(self, model: nn.Module, x: Tensor) -> None:
        for name, layer in model.named_modules():
            if layer.training and isinstance(layer, CHANGING):
                raise UnsupportedModelError(
                    f"model: {layer} at {name!r} is in training mode, which this package's own "
                    "methods do not bound; call eval() on it, or use IBP, CROWN-IBP or CROWN"
                )
        self._watch = Watch(model)
        self.network = ReluNetwork(model, x)
        self._watch.settle()
        self.matrices = AffineMatrices(self.network)
        self.receptive_fields = ReceptiveFields(self.matrices)
        self.reaches = Reaches(self.matrices)
        self._tensors = _copied_tensors(model)
        self._modes = [layer.training for layer in model.modules()]
        self._constants: LipschitzConstants | None = None

    def is_of(self, model: nn.Module, x: Tensor) -> bool:
        """Return whether the model is as it was, and inputs like x can be bounded."""
        tensors = [*model.parameters(), *model.buffers()]
        return (
            self.network.input_shape == x.shape[1:]
            and not self._watch.is_stale()
            and self._modes == [layer.training for layer in model.modules()]
            and len(tensors) == len(self._tensors)
            and all(map(_is_same, self._tensors, tensors))
        )

    def constants(self, like: Tensor) -> LipschitzConstants:
        """Return the network's Lipschitz constants."""
        if self._constants is None:
            self._constants = LipschitzConstants(self.network, like)
        return self._constants


def _copied_tensors(model: nn.Module) -> list[Tensor]:
    return [value.detach().clone() for value in (*model.parameters(), *model.buffers())]


def _is_same(first: Tensor, second: Tensor) -> bool:
    return (
        first.device == second.device and first.dtype == second.dtype and torch.equal(first, second)
    )
