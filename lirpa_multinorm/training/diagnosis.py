"""Find where a training run became NaN."""

from __future__ import annotations

from typing import Any, Callable

import torch
from torch import Tensor, nn

from ..bounds import BoundedModule
from ..errors import LirpaMultinormError
from ..losses import MultiNormLoss
from ..utils.modes import evaluating

INPUTS = "the inputs are NaN or infinite"
NOWHERE = "no layer by itself: the loss overflows"


def nonfinite_place(bounded: BoundedModule, x: Tensor) -> str:
    """Return the first tensor of a network that has a NaN or infinite number, in words.

    Args:
        bounded: The network; weights and statistics are not changed.
        x: The batch it happened on.
    """
    model = bounded.model
    for name, value in model.state_dict().items():
        if not bool(torch.isfinite(value).all()):
            return f"the weights of {_layer(name)} ({name}) are NaN or infinite"
    if not bool(torch.isfinite(x).all()):
        return INPUTS
    name = _first_output(model, x)
    if name is not None:
        return f"the output of layer {name} is NaN or infinite"
    for name, value in model.named_parameters():
        if value.grad is not None and not bool(torch.isfinite(value.grad).all()):
            return f"the gradient of layer {_layer(name)} ({name}) is NaN or infinite"
    node = _first_bound(bounded)
    if node is not None:
        return f"the bounds of node {node} are NaN or infinite"
    return NOWHERE


def broken_terms(
    bounded: BoundedModule, loss: MultiNormLoss | None, x: Tensor, y: Tensor, scale: float
) -> str:
    """Return the sets for which a loss cannot be computed, or is NaN or infinite, in words.

    "" if there is none.

    Args:
        bounded: The network.
        loss: The certified loss; None for natural training.
        x: The batch it happened on.
        y: Its labels.
        scale: Factor on every radius.
    """
    if loss is None:
        return ""
    names = []
    for term in loss.terms:
        try:
            value = MultiNormLoss([term], attack=loss.attack)(bounded, x, y, eps_scale=scale).value
            broken = not bool(torch.isfinite(value))
        except LirpaMultinormError:  # of a NaN, or of inputs that are NaN themselves
            broken = True
        if broken:
            names.append(term.perturbation.title())
    if not names:
        return ""
    return f"; the loss is not finite for the set{'s' * (len(names) > 1)} {' and '.join(names)}"


def remedy(location: str, images: Tensor) -> str:
    """Return what to change so that a run does not become NaN again.

    Args:
        location: Where a NaN is, in the words of :func:`nonfinite_place`.
        images: All training images (N, ...).
    """
    broken = (~torch.isfinite(images).flatten(1).all(1)).nonzero().flatten().tolist()
    if broken:
        return (
            f"Repair the training data: pixels of {len(broken)} training"
            f" image{'s' * (len(broken) > 1)} are NaN or infinite (x_train[{broken[0]}] is the"
            " first)"
        )
    if INPUTS in location:
        return (
            "Repair what makes the batches: the training images are finite, and the augmented ones"
            " are not"
        )
    return "Lower learning_rate, anneal longer, or set clip_norm"


def _first_bound(bounded: BoundedModule) -> str | None:
    """Return the name of the first node with an interval that is not finite, or None.

    The newer host makes infinity of a NaN.
    """
    for node in bounded._modules.values():
        for bound in (getattr(node, "lower", None), getattr(node, "upper", None)):
            if (
                isinstance(bound, Tensor)
                and bound.is_floating_point()
                and not bool(torch.isfinite(bound).all())
            ):
                return str(getattr(node, "name", ""))
    return None


def _layer(name: str) -> str:
    """Return the name of the layer that a tensor of a network belongs to."""
    return name.rpartition(".")[0] or "the model"


def _first_output(model: nn.Module, x: Tensor) -> str | None:
    """Return the name of the first layer whose output is not finite, or None."""
    names: list[str] = []

    def hook_of(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            if isinstance(output, Tensor) and not bool(torch.isfinite(output).all()):
                names.append(name)

        return hook

    hooks = [
        layer.register_forward_hook(hook_of(name))
        for name, layer in model.named_modules()
        if not any(layer.children())
    ]
    try:
        with torch.no_grad(), evaluating(model):
            model(x)
    finally:
        for hook in hooks:
            hook.remove()
    return names[0] if names else None
