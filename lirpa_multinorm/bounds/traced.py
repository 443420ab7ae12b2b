"""A host module that is traced on first use and otherwise behaves like the model it wraps."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from .. import host
from ..errors import InvalidArgumentError, LirpaMultinormError, UnsupportedModelError
from ..tracing.staleness import Watch
from ..tracing.trace_check import check_trace, takes_batches
from ..utils.memory import is_out_of_memory
from ..utils.modes import evaluating, sheltered, tensor_float_32
from .methods import canonical_name
from .torch_protocol import WrappingModule

# What the host raises where an operator or a mode is not implemented for a graph.
HOST_FAILURES = (
    AssertionError,
    AttributeError,
    IndexError,
    KeyError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    ValueError,
)


def is_ours_or_memory(error: Exception) -> bool:
    """Whether an exception of :data:`HOST_FAILURES` is our own or reports too little memory.

    Others of these types say "not implemented".
    """
    return isinstance(error, LirpaMultinormError) or is_out_of_memory(error)


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Let the host make its constants and tables in our type, not in torch's default type."""
    default = torch.get_default_dtype()
    if dtype == default:
        yield
        return
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(default)


@contextlib.contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Let no gradient reach the model's parameters during the block."""
    tracked = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in tracked:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in tracked:
            parameter.requires_grad_(True)


class TracedModule(WrappingModule):
    """The host's module, traced lazily and again where needed.

    Parameters and state dict are the model's own.

    Args:
        model: The network.
        arguments: The host's further constructor arguments.
    """

    def __init__(self, model: nn.Module, arguments: dict) -> None:
        nn.Module.__init__(self)
        arguments = dict(
            arguments, bound_opts=dict(host.DEFAULT_OPTIONS, **(arguments["bound_opts"] or {}))
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
            _ways={},
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

    # --- calling the host -------------------------------------------------------------------------

    def _host_bounds(self, x, aux, C, method, *args, **kwargs):
        """Call the host; where a graph fails, try its matrix mode, then CROWN with fixed slopes.

        The first way that works is remembered for the method, so that a failure costs once.
        """
        attempts = self._ways.get(method) or self._possible_ways(method)
        failures = []
        if x is None and attempts[0][0] != self.conv_mode:
            raise InvalidArgumentError("x: give it again; this method needs the host's matrix mode")
        for place, (mode, used) in enumerate(attempts):
            # A call that failed half-way leaves its state on the nodes, so the next way starts from
            # a fresh trace.
            self._use_mode(mode, x, fresh=bool(failures))
            try:
                with self._host_settings(used):
                    result = super().compute_bounds(x, aux, C, used, *args, **kwargs)
            except HOST_FAILURES as error:
                if is_ours_or_memory(error) or x is None:
                    raise
                failures.append(error)
                continue
            if failures:
                warnings.warn(
                    f"the host cannot bound this model by {method} ({type(failures[0]).__name__}: "
                    f"{failures[0]}); using {used} in its {mode} mode",
                    stacklevel=4,
                )
            self._ways[method] = attempts[place:]
            return result
        self._use_mode(attempts[0][0], x, fresh=True)
        raise failures[0]

    def _possible_ways(self, method) -> list:
        """Return (mode, method) pairs to try, except where the host bounds an operator wrongly."""
        modes = ["patches", "matrix"] if self.conv_mode == "patches" else [self.conv_mode]
        methods = [method, "CROWN"] if canonical_name(method) == "CROWN-Optimized" else [method]
        if modes[0] == "patches" and host.host_fault(self, "CROWN", "patches"):
            modes = ["matrix"]  # for every method, so that calls in turn do not trace anew
        faults = {
            (mode, used): host.host_fault(self, canonical_name(used), mode)
            for used in methods
            for mode in modes
        }
        ways = [way for way, fault in faults.items() if fault is None]
        if not ways:
            raise UnsupportedModelError(
                f"model: the host auto_LiRPA {host.version} bounds {next(iter(faults.values()))} "
                f"wrongly by {method}; use IBP, or for networks of affine operators and ReLUs "
                "Sparse-CROWN or SDP-CROWN"
            )
        return ways

    def _use_mode(self, mode: str, x, fresh: bool) -> None:
        if (fresh or mode != self.conv_mode) and x is not None:
            self._host_arguments["bound_opts"]["conv_mode"] = mode
            self._forget_trace()
            self._trace_for(x)
            self._prepare_training([value.detach().as_subclass(Tensor) for value in x])

    @contextlib.contextmanager
    def _host_settings(self, method: str | None) -> Iterator[None]:
        """What every call of the host needs.

        Our dtype, and its optimiser out of the caller's gradients and output.
        """
        self.__dict__["_running"] = True
        try:
            with (
                default_dtype(self._dtype),
                tensor_float_32(False),
                contextlib.ExitStack() as stack,
            ):
                if canonical_name(method) == "CROWN-Optimized":
                    stack.enter_context(frozen(self.model))
                    stack.enter_context(torch.enable_grad())
                    stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
                yield
        finally:
            self.__dict__["_running"] = False

    # --- tracing ----------------------------------------------------------------------------------

    @sheltered
    def output_shape(self, x: Tensor) -> torch.Size:
        """Return the shape of one output for inputs like x.

        Traces the model if need be, or runs it once.
        """
        try:
            self._trace_for((x,), self._fixed_batch)
            return self._output_shape
        except UnsupportedModelError as error:  # by the host
            if is_out_of_memory(error):
                raise
        with evaluating(self.model):
            return self._output((x[:1],)).shape[1:]

    def _note_change(self) -> None:
        """Take note that the model has become another one."""

    def _prepare_training(self, x: Sequence[Tensor]) -> None:
        """Make the graph that of the model in training mode, if it is in it."""

    @sheltered
    def _trace_for(self, x: Sequence, batch: int | None = None) -> None:
        """Trace on first use, and again where the graph has another batch size baked in."""
        sizes = [torch.as_tensor(one).shape[:1] for one in x]
        if len(set(sizes)) > 1:
            shapes = ", ".join(str(tuple(torch.as_tensor(one).shape)) for one in x)
            raise InvalidArgumentError(
                f"x: inputs of shapes {shapes} are no batch; give every input the same batch "
                "dimension in front, for example by expand"
            )
        batch = batch or x[0].shape[0]
        if self._traced and self._watch.is_stale():
            self._forget_trace()
            self._ways.clear()
            self._note_change()
        if self._traced and self._fixed_batch in (None, batch):
            self._follow_modes()
            return
        samples = [torch.as_tensor(one)[:1].detach() for one in x]
        if not self._traced:
            watch = Watch(self.model)
            output = self._trace(samples)
            self.__dict__["_fixed_batch"] = None if self._check_trace(samples, output) else 1
            self.__dict__["_single"] = (
                self._fixed_batch is not None
                and len(samples) == 1
                and not self._takes_two(*samples)
            )
            watch.settle()
            self.__dict__["_watch"] = watch
        if self._fixed_batch not in (None, batch):
            if self._fixed_batch > 1:
                warnings.warn(
                    "model: its graph holds the number of inputs (x.size(0) or len(x) in its"
                    " forward?), and is made anew for every other one, which costs time; use -1 or"
                    " flatten(1) instead",
                    stacklevel=5,
                )
            repeated = [one.expand(batch, *one.shape[1:]).contiguous() for one in samples]
            output = self._trace(repeated)
            self.__dict__["_fixed_batch"] = batch
            self._check_trace(repeated, output, batched=False)
        self._follow_modes()

    def _check_trace(self, samples: Sequence, output: Tensor, batched: bool | None = None) -> bool:
        """Raise UnsupportedModelError unless graph and model agree, both in eval mode.

        The trace is given up then.
        """
        try:
            with evaluating(self.model):
                self._follow_modes()
                return check_trace(self.model, super().forward, samples, output, batched)
        except UnsupportedModelError:
            self._forget_trace()
            raise

    def _takes_two(self, sample: Tensor) -> bool:
        """Whether the model itself takes two inputs at once."""
        with torch.no_grad(), evaluating(self.model):
            return takes_batches(self.model, sample)

    def _trace(self, sample: Sequence) -> Tensor:
        """Make the graph of the model on a sample, and return the model's output there."""
        self._check_weights()
        training, gradients = self.training, [(p, p.requires_grad) for p in self.model.parameters()]
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
            for (
                parameter,
                required,
            ) in gradients:  # the host's first forward pass sets it for all of them
                parameter.requires_grad_(required)
        return output

    def _follow_modes(self) -> None:
        """Let the nodes follow the model's layers, which the user may have switched one by one."""
        self.training = self.model.training
        if host.follow_modes(self._mode_owners):
            self.__dict__["_first_layers"] = host.first_layers(self)

    def check_model(self, sample: Tensor) -> None:
        """Raise unless the model maps ``sample`` (1, ...) to a tensor and has usable weights.

        Usable weights are those that can be bounded.
        """
        self._check_weights()
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
            shapes = ", ".join(str(tuple(one.shape)) for one in sample)
            raise InvalidArgumentError(
                f"x: the model cannot be applied to an input of shape {shapes} "
                f"({type(error).__name__}: {error})"
            ) from error
        if not isinstance(output, Tensor):
            raise UnsupportedModelError(
                f"model returns {type(output).__name__}; wrap it so that it returns one tensor"
            )
        return output

    def _check_weights(self) -> None:
        """Raise UnsupportedModelError where the weights cannot give useful bounds.

        Either bounds of the weights' type mean little, or the weights cannot be worked with.
        """
        half = next(
            (
                p.dtype
                for p in self.model.parameters()
                if p.dtype in (torch.float16, torch.bfloat16)
            ),
            None,
        )
        if half is not None:
            raise UnsupportedModelError(
                f"model has weights of {half}, whose rounding bounds do not cover; bound "
                "model.float() or model.double()"
            )
        if any(
            tensor.is_inference()
            for tensor in (*self.model.parameters(), *self.model.buffers())
            if not nn.parameter.is_lazy(tensor)
        ):
            raise UnsupportedModelError(
                "model has weights that were made in torch.inference_mode, which nothing can be "
                "traced with; make the model outside of it, or copy.deepcopy it there"
            )

    def _weight(self) -> Tensor | None:
        return next((p for p in self.model.parameters() if p.is_floating_point()), None)

    @property
    def _dtype(self) -> torch.dtype:
        weight = self._weight()
        return torch.get_default_dtype() if weight is None else weight.dtype

    def _forget_trace(self) -> TracedModule:
        self._modules.clear()
        self.__dict__.update(_traced=False, _mode_owners=[], _checked_modes=None)
        return self
