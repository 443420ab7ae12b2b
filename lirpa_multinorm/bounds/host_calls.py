"""Calls of the host's bounds, by another mode or method where it cannot bound a graph."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from .. import host
from ..errors import InvalidArgumentError, LirpaMultinormError, UnsupportedModelError
from ..utils.deferred import is_deferred
from ..utils.memory import is_out_of_memory
from ..utils.modes import tensor_float_32
from .contexts import default_dtype, frozen
from .methods import canonical_name
from .traced import TracedModule

#: What the host raises where an operator or a mode is not implemented for a graph, with examples
#: of operators in both versions.
HOST_FAILURES = (
    # BoundMul, BoundConcat and BoundSlice, for constants, axes and steps that patches cannot take.
    AssertionError,
    # BoundReduceMean and BoundMatMul, for patches where they expect a matrix; in 0.3 also BatchNorm
    # without weights (a BoundConstant) and the layer behind a LayerNorm.
    AttributeError,
    # In 0.3 the selection of unstable neurons of a row, as before Softmax; in 0.7.1 BoundMul of an
    # image and a number per channel in patches.
    IndexError,
    # The lookup of a ``final_node_name`` that is not in the graph.
    KeyError,
    # BoundReduceMax and BoundSoftplus, without a relaxation (NotImplementedError, a RuntimeError);
    # BoundConv, BoundMul and BoundMatMul, where shapes do not fit.
    RuntimeError,
    # BoundConv with different strides, in patches; in 0.3 the slopes of BoundMaxPool, in 0.7.1
    # BoundSplit.
    TypeError,
    # BoundMaxPool whose stride is not its kernel size; in 0.3 BoundMatMul with a constant first.
    ValueError,
)


def is_ours_or_memory(error: Exception) -> bool:
    """Whether an exception of :data:`HOST_FAILURES` is our own or reports too little memory."""
    return isinstance(error, LirpaMultinormError) or is_out_of_memory(error)


class HostCallingModule(TracedModule):
    """A traced module that bounds by the host's methods.

    Args:
        model: The network.
        arguments: The host's further constructor arguments.
    """

    def __init__(self, model: nn.Module, arguments: dict) -> None:
        super().__init__(model, arguments)
        self.__dict__.update(_ways={})

    def _host_bounds(self, x, aux, C, method, *args, **kwargs):
        """Call the host; where a graph fails, try its matrix mode, then CROWN with fixed slopes.

        The first way that works is remembered for the method, so that a failure costs once.
        """
        attempts = self._ways.get(method) or self._possible_ways(method)
        failures: list[Exception] = []
        if x is None and attempts[0][0] != self.conv_mode:
            raise InvalidArgumentError("x: give it again; this method needs the host's matrix mode")
        for index, (mode, used) in enumerate(attempts):
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
            self._ways[method] = attempts[index:]
            return result
        self._use_mode(attempts[0][0], x, fresh=True)
        raise failures[0]

    def _note_change(self) -> None:
        self._ways.clear()

    def _possible_ways(self, method) -> list[tuple[str, str]]:
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
        """Trace the model for a mode of the host, if it is another one or ``fresh``."""
        if (fresh or mode != self.conv_mode) and x is not None:
            self._host_arguments["bound_opts"]["conv_mode"] = mode
            self._forget_trace()
            self._trace_for(x)
            self._prepare_training([value.detach().as_subclass(Tensor) for value in x])

    @contextlib.contextmanager
    def _host_settings(self, method: str | None) -> Iterator[None]:
        """Return a context for a call of the host: our type, a quiet optimiser on fixed weights."""
        self.__dict__["_running"] = True
        try:
            with (
                default_dtype(self._dtype),
                tensor_float_32(False),
                contextlib.ExitStack() as stack,
            ):
                if is_deferred():  # else its warning says where a NaN is
                    stack.enter_context(host.without_nan_search())
                if canonical_name(method) == "CROWN-Optimized":
                    stack.enter_context(frozen(self.model))
                    stack.enter_context(torch.enable_grad())
                    stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
                yield
        finally:
            self.__dict__["_running"] = False
