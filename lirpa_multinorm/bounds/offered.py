"""What training asks of distance layers: the exponent p, and the constant that they end with."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from ..errors import InvalidArgumentError, UnsupportedModelError
from ..utils.modes import evaluating
from ..verifier.lipschitz.offered import offered_constant


def distance_layers(model: nn.Module) -> list[Any]:
    """Return the layers of a network whose exponent can be set (``set_p``)."""
    return [layer for layer in model.modules() if callable(getattr(layer, "set_p", None))]


def set_exponents(model: nn.Module, p: float) -> None:
    """Set the exponent of every distance layer."""
    for layer in distance_layers(model):
        layer.set_p(p)


def limit_constant(model: nn.Module) -> float:
    """Return the l_inf Lipschitz constant that a distance network has at p = inf, in eval mode.

    Args:
        model: The network; it stays as it is.

    Raises:
        InvalidArgumentError: The network has no distance layer, another layer with weights, or no
            finite constant.

    Example:
        >>> from lirpa_multinorm.models import build_model
        >>> model = build_model("linf_dist_mlp", (1, 4, 4), 3, std=(0.5,), hidden=[8])
        >>> round(limit_constant(model), 6)
        2.0
    """
    layers = distance_layers(model)
    if not layers:
        raise InvalidArgumentError(
            "model: it has no l_inf-distance layer, of which this loss trains the margins; use"
            " linf_dist_mlp (--model linf_dist_mlp), or another loss"
        )
    of_distances = {id(weight) for layer in layers for weight in layer.parameters()}
    others = [name for name, weight in model.named_parameters() if id(weight) not in of_distances]
    if others:
        raise InvalidArgumentError(
            f"model: {', '.join(others[:3])} belong to no l_inf-distance layer; their Lipschitz"
            " constant changes with training, and the loss takes a constant one: do not mix"
            " families of layers"
        )
    exponents = [layer.p for layer in layers]
    try:
        with evaluating(model):
            set_exponents(model, math.inf)
            constant = offered_constant(model, math.inf)
    except UnsupportedModelError as error:
        raise InvalidArgumentError(f"{error}; the loss needs its constant in l_inf") from error
    finally:
        for layer, p in zip(layers, exponents):
            layer.set_p(p)
    if not constant < math.inf:
        raise InvalidArgumentError(
            "model: its Lipschitz constant in l_inf is infinite, so that no margin certifies"
            " anything; let each layer offer a finite one (lipschitz_bound)"
        )
    return constant
