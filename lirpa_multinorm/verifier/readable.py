"""Models that are not piecewise linear: read once, and bounded by what their layers offer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Callable, TypeVar

import torch
from torch import Tensor, nn

from ..errors import UnsupportedModelError
from ..perturbations import Region
from ..tracing.staleness import Watch
from ..utils.memory import is_out_of_memory
from .lipschitz.offered import offered_output_bounds, offers
from .lipschitz.output_bounds import lipschitz_output_bounds
from .network_state import NetworkState

Result = TypeVar("Result")


class Reading:
    """What came of reading a model as a piecewise-linear network; a failure is remembered.

    Args:
        model: The model.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._failed: Watch | None = None

    def result(self, read: Callable[[], Result]) -> Result | None:
        """Return what a function that reads the model returns; None where the model is refused."""
        if self._failed is not None and not self._failed.is_stale():
            return None
        watch = Watch(self._model)
        try:
            return read()
        except UnsupportedModelError as error:
            if is_out_of_memory(error):
                raise
            watch.settle()
            self._failed = watch
            return None


def lipschitz_lower_bounds(
    model: nn.Module,
    regions: Sequence[Region],
    v: Tensor,
    state_of: Callable[[Tensor], NetworkState],
    reading: Reading,
) -> Tensor:
    """Bound linear forms of outputs by Lipschitz constants, of affine maps or offered by layers.

    Args:
        model: The model.
        regions: (centre, set) pairs, together B examples.
        v: Linear forms of the output, (B, S, K).
        state_of: Reads the model for inputs.
        reading: Knows whether that fails.

    Returns:
        The larger of both bounds where there are both, (B, S).

    Raises:
        UnsupportedModelError: There is neither.
    """
    x, offered, refusal = torch.cat([region.center for region in regions]), None, None
    if offers(model):
        try:
            offered = offered_output_bounds(model, regions, v)
        except UnsupportedModelError as error:  # constants of some layers only
            if is_out_of_memory(error):
                raise
            refusal = error
    try:
        state = state_of(x) if offered is None else reading.result(lambda: state_of(x))
    except UnsupportedModelError as error:
        if refusal is None or is_out_of_memory(error):
            raise
        reason = str(error).replace("model: ", "", 1)
        raise UnsupportedModelError(f"{refusal}; nor is it piecewise linear: {reason}") from error
    if state is None:
        assert offered is not None  # otherwise state_of has raised
        return offered
    bounds = lipschitz_output_bounds(state.network, state.constants(x), regions, v)
    return bounds if offered is None else torch.maximum(bounds, offered)
