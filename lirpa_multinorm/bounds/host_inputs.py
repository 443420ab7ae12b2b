"""Inputs of the host's own call: checked, with sets that bounds of any operator can use."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from .. import host
from ..errors import InvalidArgumentError
from ..perturbations import PerturbationLpBox, PerturbationStack, Region, as_perturbation


def check_perturbed(x: Sequence, model: nn.Module, remedy: str) -> None:
    """Raise InvalidArgumentError unless inputs are tensors, and one or a weight is perturbed.

    The host would bound a network without perturbations by intervals of width 0.

    Args:
        x: The inputs.
        model: The network.
        remedy: The message where nothing is perturbed.
    """
    for tensor in x:
        if not isinstance(tensor, Tensor):
            raise InvalidArgumentError(
                f"x must be a tensor or a tuple of tensors, found {type(tensor).__name__}"
            )
    if not any(getattr(tensor, "ptb", None) is not None for tensor in [*x, *model.parameters()]):
        raise InvalidArgumentError(remedy)


def guarded(x: Tensor) -> Tensor:
    """Replace a set that the host's operators would bound unsoundly by a stack of our own set."""
    ptb = getattr(x, "ptb", None)
    if isinstance(ptb, PerturbationStack) or ptb is None:
        return x
    finite = isinstance(ptb, host.PerturbationLpNorm) and ptb.norm != float("inf")
    if not finite and not isinstance(ptb, PerturbationLpBox):
        return x
    center = x.detach().as_subclass(Tensor)
    perturbation = as_perturbation(ptb)
    perturbation.check_input(center)
    return host.BoundedTensor(center, PerturbationStack([Region(center, perturbation)]))
