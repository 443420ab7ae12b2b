"""A host module that is traced on first use and otherwise behaves like the model it wraps."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .. import host
from ..errors import InvalidArgumentError, UnsupportedModelError
from ..tracing.staleness import Watch
from ..tracing.trace_check import check_trace, takes_batches
from ..utils.memory import is_out_of_memory
from ..utils.modes import evaluating, sheltered, tensor_float_32
from .checks import check_batch, check_usable_weights
from .contexts import default_dtype
from .torch_protocol import WrappingModule


class TracedModule(WrappingModule):
    """The host's module, traced on first use and again where the model or a batch needs it.

    Parameters and state dict are those of the model.

    Args:
        model: The network.
        arguments: The host's further constructor arguments.
    """

    def __init__(self, model: nn.Module, arguments: dict) -> None:
        nn.Module.__init__(self)
        arguments = dict(
            arguments,
            bound_opts=dict(host.DEFAULT_OPTIONS, **(arguments["bound_opts"] or {})),
            custom_ops={**host.OPERATORS, **(arguments["custom_ops"] or {})},
        )
        # Not registered as a submodule: the host takes every submodule for a node of its graph.
        self.__dict__.update(
            model=model,
            _host_arguments=arguments,
            _traced=False,
            _tracing=False,
            _running=False,
            _fixed_batch=None,
            _first_layers={},
            _mode_owners=[],
            _watch=None,
            _last_inputs=None,
            _single=False,
            _checked_modes=None,
        )
        self.training = model.training

    @property
    def iterations(self) -> int | None:
        """How many steps the bound options ask optimisers for; None where they do not say."""
        return self._host_arguments["bound_opts"].get("optimize_bound_args", {}).get("iteration")

    @sheltered
    def output_shape(self, x: Tensor) -> torch.Size:
        """Return the shape of an output for inputs like x, by a trace or a run of the model."""
        try:
            self._trace_for((x,), self._fixed_batch)
            return self._output_shape
        except UnsupportedModelError as error:  # the host cannot trace it
            if is_out_of_memory(error):
                raise
        with evaluating(self.model):
            return self._output((x[:1],)).shape[1:]

    def _note_change(self) -> None:
        """Note that the model has changed."""

    def _prepare_training(self, x: Sequence[Tensor]) -> None:
        """Make the graph match the model in training mode; nothing to do in eval mode."""

    @sheltered
    def _trace_for(self, x: Sequence, batch: int | None = None) -> None:
        """Trace on first use, and again where the graph has another batch size baked in."""
        check_batch(x)
        batch = batch or x[0].shape[0]
        if self._traced and self._watch.is_stale():
            self._forget_trace()
            self._note_change()
        if self._traced and self._fixed_batch in (None, batch):
            self._follow_modes()
            return
        samples = [torch.as_tensor(tensor)[:1].detach() for tensor in x]
        if not self._traced:
            self._trace_first(samples)
        if self._fixed_batch not in (None, batch):
            if self._fixed_batch > 1:
                warnings.warn(
                    "model: its graph holds the number of inputs (x.size(0) or len(x) in its"
                    " forward?), and is made anew for every other one, which costs time; use -1 or"
                    " flatten(1) instead",
                    stacklevel=5,
                )
            repeated = [sample.expand(batch, *sample.shape[1:]).contiguous() for sample in samples]
            output = self._trace(repeated)
            self.__dict__["_fixed_batch"] = batch
            self._check_trace(repeated, output, batched=False)
        self._follow_modes()

    def _trace_first(self, samples: Sequence[Tensor]) -> None:
        """Trace the model on samples of a single input, and note which batches the graph takes."""
        watch = Watch(self.model)
        output = self._trace(samples)
        self.__dict__["_fixed_batch"] = None if self._check_trace(samples, output) else 1
        self.__dict__["_single"] = (
            self._fixed_batch is not None and len(samples) == 1 and not self._takes_two(*samples)
        )
        watch.settle()
        self.__dict__["_watch"] = watch

    def _check_trace(self, samples: Sequence, output: Tensor, batched: bool | None = None) -> bool:
        """Give up the trace and raise UnsupportedModelError unless graph and model agree.

        Both are compared in eval mode. Returns whether the graph takes batches of any size.
        """
        try:
            with evaluating(self.model):
                self._follow_modes()
                return check_trace(self.model, super().forward, samples, output, batched)
        except UnsupportedModelError:
            self._forget_trace()
            raise

    def _takes_two(self, sample: Tensor) -> bool:
        """Whether the model takes a batch of two inputs."""
        with torch.no_grad(), evaluating(self.model):
            return takes_batches(self.model, sample)

    def _trace(self, sample: Sequence) -> Tensor:
        """Make the graph of the model on a sample, and return the model's output there."""
        check_usable_weights(self.model)
        training = self.training
        gradients = [(parameter, parameter.requires_grad) for parameter in self.model.parameters()]
        self.__dict__.update(_tracing=True, _fixed_batch=None)
        try:
            with evaluating(self.model):  # a sample must not touch BatchNorm statistics
                output = self._output(sample)
                self.__dict__["_output_shape"] = output.shape[1:]
                with host.tracing(), default_dtype(self._dtype):
                    super().__init__(
                        self.model,
                        tuple(sample) if len(sample) > 1 else sample[0],
                        **self._host_arguments,
                    )
            host.share_tensors(self, self.model)
            host.hold_batch_statistics(self)
            self.__dict__.update(
                _traced=True,
                _first_layers=host.first_layers(self),
                _mode_owners=host.mode_owners(self, self.model),
            )
        finally:
            self.__dict__["_tracing"] = False
            self.training = training
            # The host's first forward pass sets requires_grad of all parameters.
            for parameter, required in gradients:
                parameter.requires_grad_(required)
        return output

    def _follow_modes(self) -> None:
        """Let the nodes follow the model's layers, which the user may have switched one by one."""
        self.training = self.model.training
        if host.follow_modes(self._mode_owners):
            self.__dict__["_first_layers"] = host.first_layers(self)

    def check_model(self, sample: Tensor) -> None:
        """Raise unless the model maps ``sample`` (1, ...) to a tensor, with usable weights."""
        check_usable_weights(self.model)
        with evaluating(self.model):
            self.__dict__["_output_shape"] = self._output((sample,)).shape[1:]

    def _output(self, sample: Sequence) -> Tensor:
        """Return the model's output at a sample, which must be a tensor."""
        try:
            with torch.no_grad(), tensor_float_32(False):
                output = self.model(*sample)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            if "more than 1 value per channel" in str(error):
                raise UnsupportedModelError(
                    f"model: BatchNorm without running statistics ({error}) makes the output of "
                    "an input depend on the others of its batch, and bounds are of single "
                    "inputs: use statistics that are fixed in eval mode"
                ) from error
            shapes = ", ".join(str(tuple(tensor.shape)) for tensor in sample)
            raise InvalidArgumentError(
                f"x: the model cannot be applied to an input of shape {shapes} "
                f"({type(error).__name__}: {error})"
            ) from error
        if not isinstance(output, Tensor):
            raise UnsupportedModelError(
                f"model returns {type(output).__name__}; wrap it so that it returns one tensor"
            )
        return output

    def _weight(self) -> Tensor | None:
        """Return the first weight, whose type and device inputs must have, or None."""
        weights = (weight for weight in self.model.parameters() if weight.is_floating_point())
        return next(weights, None)

    @property
    def _dtype(self) -> torch.dtype:
        weight = self._weight()
        return torch.get_default_dtype() if weight is None else weight.dtype

    def _forget_trace(self) -> TracedModule:
        """Drop the graph, so that the next use traces it anew; returns self."""
        self._modules.clear()
        self.__dict__.update(_traced=False, _mode_owners=[], _checked_modes=None)
        return self
