"""The clean pass of training.

The model's own forward pass, and the statistics its BatchNorm layers normalise by.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..host import Statistics
from ..utils import distributed

#: Layers that do something else in training mode than in eval mode.
CHANGING = (nn.modules.batchnorm._NormBase, nn.modules.dropout._DropoutNd)


class CleanPass:
    """A forward pass of a model in training, which bounds can use as long as nothing has changed.

    Args:
        model: The model; it runs as it is, so what it does in training is its own.
        inputs: A batch of each of its inputs.
        update: Whether BatchNorm's running statistics take note of the batch.
    """

    def __init__(self, model: nn.Module, inputs: Sequence[Tensor], update: bool = True) -> None:
        # Values are kept: what is changed through .data, or in an array beneath, tells no tensor.
        self.inputs = tuple(value if value.requires_grad else value.clone() for value in inputs)
        with recorded_statistics(model, update) as self.statistics:
            #: What the model returned.
            self.output = model(*inputs)
        self._values, self._modes, self._tracked = (
            _fingerprint(model),
            _modes(model),
            _tracked(model),
        )
        #: Whether the model has become another one since, in something else than its values.
        self.is_outdated = False
        self._spent: list[bool] = []
        for tensor in (
            self.output,
            *(part for calls in self.statistics.values() for call in calls for part in call),
        ):
            if tensor.requires_grad:  # its first backward pass frees what a second one would need
                tensor.register_hook(lambda _, spent=self._spent: spent.append(True))

    def is_of(self, inputs: Sequence[Tensor]) -> bool:
        """Whether these are the inputs.

        Of the same values, and where gradients in them are asked for the same.
        """
        return (
            not self.is_outdated
            and len(inputs) == len(self.inputs)
            and all(
                (
                    new is old
                    if new.requires_grad or old.requires_grad
                    else new.shape == old.shape
                    and new.dtype == old.dtype
                    and new.device == old.device
                    and torch.equal(new, old)
                )
                for new, old in zip(inputs, self.inputs)
            )
        )

    def is_of_values(self, model: nn.Module) -> bool:
        """Whether the model has the weights and buffers that it had after the pass."""
        now = _fingerprint(model)
        return len(now) == len(self._values) and all(map(torch.equal, now, self._values))

    def is_usable(self, model: nn.Module) -> bool:
        """Whether this pass can stand in for a new one.

        A pass now would be the same, and gradients can flow through this one wherever they are
        asked for.
        """
        tracked = _tracked(model)
        return (
            not self.is_outdated
            and self.is_of_values(model)
            and self._modes == _modes(model)
            and (not any(tracked) or (not self._spent and tracked == self._tracked))
        )


@contextlib.contextmanager
def recorded_statistics(
    model: nn.Module, update: bool = True, together: bool = True
) -> Iterator[Statistics]:
    """Record what BatchNorm layers in training normalise by.

    Those with a forward of their own are left alone.

    Args:
        model: The model.
        update: Whether their running statistics take note.
        together: Whether several processes of a run share the statistics of their whole batch.
    """
    statistics: Statistics = {}
    for layer in model.modules():
        if isinstance(layer, _BatchNorm) and layer.training and not has_own_forward(layer):
            calls = statistics[layer] = []
            layer.forward = partial(
                _forward, layer, calls, update, together and distributed.is_active()
            )
    try:
        yield statistics
    finally:
        for layer in statistics:
            del layer.forward


def has_own_forward(layer: _BatchNorm) -> bool:
    """Whether a BatchNorm layer computes something else than torch's.

    By its class, or by itself.
    """
    return "forward" in layer.__dict__ or type(layer).forward not in (
        _BatchNorm.forward,
        nn.SyncBatchNorm.forward,
    )


def _forward(
    layer: _BatchNorm, calls: list[tuple[Tensor, Tensor]], update: bool, together: bool, x: Tensor
) -> Tensor:
    axes = [axis for axis in range(x.ndim) if axis != 1]
    if together:
        return _shared_forward(layer, calls, update, x, axes)
    calls.append((x.mean(axes), x.var(axes, unbiased=False)))
    if update:
        return type(layer).forward(layer, x)
    return F.batch_norm(x, None, None, layer.weight, layer.bias, True, 0.0, layer.eps)


def _shared_forward(
    layer: _BatchNorm, calls: list[tuple[Tensor, Tensor]], update: bool, x: Tensor, axes: list[int]
) -> Tensor:
    """Normalise by the statistics of the whole batch, of which every process has some rows."""
    shape = (1, -1) + (1,) * (x.ndim - 2)
    count = distributed.all_sum(
        torch.tensor(float(x.numel() // x.shape[1]), dtype=x.dtype, device=x.device)
    )
    mean = distributed.all_sum(x.sum(axes)) / count
    centered = x - mean.view(shape)
    variance = distributed.all_sum((centered**2).sum(axes)) / count
    calls.append((mean, variance))
    if update and layer.track_running_stats:
        with torch.no_grad():
            layer.num_batches_tracked.add_(1)
            share = (
                1 / float(layer.num_batches_tracked) if layer.momentum is None else layer.momentum
            )
            layer.running_mean.lerp_(mean, share)
            layer.running_var.lerp_(variance * count / (count - 1), share)
    value = centered / torch.sqrt(variance + layer.eps).view(shape)
    return value * layer.weight.view(shape) + layer.bias.view(shape) if layer.affine else value


def _fingerprint(model: nn.Module) -> list[Tensor]:
    """Return the norms of a model's weights and buffers, which show almost any change of them."""
    tensors = [
        value.detach()
        for value in (*model.parameters(), *model.buffers())
        if value.is_floating_point()
    ]
    with torch.no_grad():
        return list(torch._foreach_norm(tensors)) if tensors else []


def _modes(model: nn.Module) -> list[bool]:
    return [layer.training for layer in model.modules()]


def _tracked(model: nn.Module) -> list[bool]:
    """Return which weights gradients are asked for."""
    return [weight.requires_grad and torch.is_grad_enabled() for weight in model.parameters()]
