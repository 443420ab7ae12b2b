"""The clean pass of training: the model's forward pass, and the statistics of its BatchNorm."""

from __future__ import annotations

import contextlib
import itertools
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
        model: The model; it runs as it is, in the mode that it is in.
        inputs: A batch of each of its inputs.
        update: Whether BatchNorm's running statistics are updated with the batch.
    """

    def __init__(self, model: nn.Module, inputs: Sequence[Tensor], update: bool = True) -> None:
        # Values are kept: a change through .data, or in an array beneath, leaves no other trace.
        self.inputs = tuple(value if value.requires_grad else value.clone() for value in inputs)
        with recorded_statistics(model, update) as self.statistics:
            #: What the model returned.
            self.output = model(*inputs)
        self._values = _fingerprint(model)
        self._marks = _marks(inputs), _marks(_floating(model))
        self._modes, self._tracked = _modes(model), _tracked(model)
        #: Whether the model has changed since, in something else than its values.
        self.is_outdated = False
        spent: list[bool] = []
        self._spent = spent
        calls = itertools.chain.from_iterable(self.statistics.values())
        for tensor in (self.output, *itertools.chain.from_iterable(calls)):
            if tensor.requires_grad:  # its first backward pass frees what a second one would need
                tensor.register_hook(lambda _: spent.append(True))

    def is_of(self, inputs: Sequence[Tensor]) -> bool:
        """Return whether these are the inputs: the same values, and the same tensors if tracked."""
        return (
            not self.is_outdated
            and len(inputs) == len(self.inputs)
            and all(map(_is_same_input, inputs, self.inputs))
        )

    def is_of_values(self, model: nn.Module) -> bool:
        """Return whether the model has the weights and buffers that it had after the pass."""
        now = _fingerprint(model)
        return now.shape == self._values.shape and torch.equal(now, self._values)

    def is_untouched(self, model: nn.Module, inputs: Sequence[Tensor] = ()) -> bool:
        """Return whether model and inputs are the same tensors, which torch has not changed since.

        It does not look at values, and overlooks a change through ``.data``.

        Args:
            model: The model.
            inputs: A batch of each input; none: those of the pass.
        """
        before = self._marks[0] if inputs else []
        return (
            not self.is_outdated
            and _marks(inputs) == before
            and _marks(_floating(model)) == self._marks[1]
        )

    def is_usable(self, model: nn.Module, compare: bool = True) -> bool:
        """Return whether this pass can stand in for a new one.

        A pass now would be the same, and gradients can flow through this pass to all weights that
        need them.

        Args:
            model: The model.
            compare: Whether its values are compared; False: that was done.
        """
        tracked = _tracked(model)
        return (
            not self.is_outdated
            and (not compare or self.is_of_values(model))
            and self._modes == _modes(model)
            and (not any(tracked) or (not self._spent and tracked == self._tracked))
        )


@contextlib.contextmanager
def recorded_statistics(
    model: nn.Module, update: bool = True, together: bool = True
) -> Iterator[Statistics]:
    """Record what BatchNorm layers in training normalise by.

    Layers that override torch's forward method are left alone.

    Args:
        model: The model.
        update: Whether the running statistics of the layers are updated.
        together: Whether several processes of a run share the statistics of their joint batch.
    """
    statistics: Statistics = {}
    for layer in model.modules():
        if isinstance(layer, _BatchNorm) and layer.training and not overrides_forward(layer):
            calls = statistics[layer] = []
            shared = together and distributed.is_active()
            forward = partial(_forward, layer, calls, update, shared)
            layer.forward = forward  # type: ignore[method-assign]  # taken back below
    try:
        yield statistics
    finally:
        for layer in statistics:
            del layer.forward


def overrides_forward(layer: _BatchNorm) -> bool:
    """Return whether a BatchNorm layer, or its class, overrides torch's forward method."""
    torch_forward = (_BatchNorm.forward, nn.SyncBatchNorm.forward)
    return "forward" in layer.__dict__ or type(layer).forward not in torch_forward


def _forward(
    layer: _BatchNorm, calls: list[tuple[Tensor, Tensor]], update: bool, together: bool, x: Tensor
) -> Tensor:
    """Run a BatchNorm layer, and add its batch statistics to its calls."""
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
    """Normalise by the statistics of the joint batch, of which each process has some rows."""
    shape = (1, -1) + (1,) * (x.ndim - 2)
    rows = torch.tensor(float(x.numel() // x.shape[1]), dtype=x.dtype, device=x.device)
    count = distributed.all_sum(rows)
    mean = distributed.all_sum(x.sum(axes)) / count
    centered = x - mean.view(shape)
    variance = distributed.all_sum((centered**2).sum(axes)) / count
    calls.append((mean, variance))
    if update and layer.track_running_stats:
        with torch.no_grad():
            _update_running_statistics(layer, mean, variance * count / (count - 1))
    value = centered / torch.sqrt(variance + layer.eps).view(shape)
    return value * layer.weight.view(shape) + layer.bias.view(shape) if layer.affine else value


def _update_running_statistics(layer: _BatchNorm, mean: Tensor, variance: Tensor) -> None:
    """Move the running statistics of a layer, which has some, towards those of a batch."""
    running_mean, running_var = layer.running_mean, layer.running_var
    count = layer.num_batches_tracked
    assert running_mean is not None and running_var is not None and count is not None
    count.add_(1)
    share = 1 / float(count) if layer.momentum is None else layer.momentum
    running_mean.lerp_(mean, share)
    running_var.lerp_(variance, share)


def _is_same_input(new: Tensor, old: Tensor) -> bool:
    """Return whether inputs are the same tensor; where no gradients are asked, the same values."""
    if new.requires_grad or old.requires_grad:
        return new is old
    return (
        new.shape == old.shape
        and new.dtype == old.dtype
        and new.device == old.device
        and torch.equal(new, old)
    )


def _floating(model: nn.Module) -> list[Tensor]:
    """Return a model's weights and buffers of floating-point numbers."""
    return [value for value in (*model.parameters(), *model.buffers()) if value.is_floating_point()]


def _fingerprint(model: nn.Module) -> Tensor:
    """Return the norms of a model's weights and buffers, which show almost any change of them."""
    tensors = [value.detach() for value in _floating(model)]
    if not tensors:
        return torch.zeros(0, device="cpu")
    with torch.no_grad():
        norms = torch._foreach_norm(tensors)
        return torch.stack([norm.to(tensors[0].device, torch.float64) for norm in norms])


def _marks(tensors: Sequence[Tensor]) -> list[tuple[int, int | None]]:
    """Return which tensors these are, and how often torch has changed each in place."""
    return [(id(tensor), None if tensor.is_inference() else tensor._version) for tensor in tensors]


def _modes(model: nn.Module) -> list[bool]:
    """Return the modules' training modes."""
    return [layer.training for layer in model.modules()]


def _tracked(model: nn.Module) -> list[bool]:
    """Return whether gradients are recorded for each weight."""
    return [weight.requires_grad and torch.is_grad_enabled() for weight in model.parameters()]
