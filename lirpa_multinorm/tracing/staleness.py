"""What a traced graph was made from: it is stale when any of this has changed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy
import torch
from torch import Tensor, nn

_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
#: Attributes that all modules have and no graph depends on (training modes are followed, tensors
#: are shared).
_COMMON = frozenset(nn.Module().__dict__) - set(_HOOKS) | {"_is_full_backward_hook"}

#: Types whose values are their own marks; looked up by type first, since a training step asks some
#: hundred times.
_PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.Size)
_PLAIN_TYPES = frozenset(_PLAIN)

Fingerprint = dict[tuple[int, str], Any]


def fingerprint(layers: Iterable[nn.Module]) -> Fingerprint:
    """Return what a trace of some layers depends on: their tensors, options, constants and hooks.

    Parameters and buffers count by identity, since the graph shares them; plain tensors by their
    version as well, since it copies them.

    Args:
        layers: All modules of a model.

    Returns:
        A value for each (layer's id, attribute).

    Example:
        >>> layer = nn.LeakyReLU(0.1)
        >>> before = fingerprint([layer])
        >>> layer.negative_slope = 0.2
        >>> fingerprint([layer]) == before
        False
    """
    values: Fingerprint = {}
    for layer in layers:
        for name, child in layer._modules.items():
            values[id(layer), name] = id(child)
        for tensors in (layer._parameters, layer._buffers):
            for name, tensor in tensors.items():
                values[id(layer), name] = (
                    tensor if tensor is None else (id(tensor), tensor.dtype, tensor.device)
                )
        for name, value in layer.__dict__.items():
            if name not in _COMMON and (name not in _HOOKS or value):
                values[id(layer), name] = _mark(value)
    return values


class Watch:
    """A watch over what the graph of a model was made from.

    What the model's forward passes change by themselves is no change of the model.

    Args:
        model: The model, before anything runs it.
    """

    def __init__(self, model: nn.Module) -> None:
        self._layers = list(model.modules())
        self._fingerprint = fingerprint(self._layers)
        self._changing: frozenset[tuple[int, str]] = frozenset()

    def settle(self) -> None:
        """Take note of what the forward passes that made the graph have changed."""
        after = fingerprint(self._layers)
        keys = self._fingerprint.keys() | after.keys()
        self._changing = frozenset(
            key for key in keys if self._fingerprint.get(key) != after.get(key)
        )
        self._fingerprint = self._now()

    def is_stale(self) -> bool:
        """Return whether the model has changed since."""
        return self._now() != self._fingerprint

    def _now(self) -> Fingerprint:
        now = fingerprint(self._layers)
        for key in self._changing:
            now.pop(key, None)
        return now


def _mark(value: Any) -> Any:
    """Return a mark that differs where a value has changed in a way a trace would have copied."""
    if type(value) in _PLAIN_TYPES or isinstance(value, _PLAIN):
        return value
    if isinstance(value, Tensor):
        return (
            id(value),
            None if value.is_inference() else value._version,
            value.dtype,
            value.device,
        )
    if isinstance(value, numpy.ndarray):
        return id(value), value.tobytes()
    if isinstance(value, (list, tuple)):
        return tuple(map(_mark, value))
    if isinstance(value, dict):
        return tuple((_mark(key), _mark(entry)) for key, entry in value.items())
    return id(value)
