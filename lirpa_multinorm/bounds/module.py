"""The multi-norm ``BoundedModule``."""

from __future__ import annotations

import contextlib
import io
import warnings
from typing import Iterator, List, Optional, Sequence, Tuple, Union

import torch
from torch import Tensor, nn

from .. import host
from ..errors import InvalidArgumentError, LirpaMultinormError, NaNBoundError, UnsupportedModelError
from ..perturbations import PerturbationLpBox, PerturbationStack, Region, as_perturbation, as_perturbations
from .first_layer import first_layer_interval

METHODS = {"ibp": "IBP", "crown-ibp": "CROWN-IBP", "ibp+backward": "CROWN-IBP", "ibp+crown": "CROWN-IBP",
           "crown": "CROWN", "backward": "CROWN", "crown-optimized": "CROWN-Optimized",
           "alpha-crown": "CROWN-Optimized"}
# What the host raises where an operator or a mode is not implemented for a graph.
_HOST_FAILURES = (AssertionError, AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError,
                  ValueError)
Bounds = Tuple[Optional[Tensor], Optional[Tensor]]


class BoundedModule(host.HostModule):
    """A model with bounds that hold on the union of several perturbation sets.

    A subclass of the host's ``BoundedModule``: a plain tensor means "around x, the module's perturbations", a
    ``BoundedTensor`` with its own perturbation means the host's own call. The model is traced on first use (or at
    once if ``global_input`` is given); parameters, buffers and state-dict keys are those of ``model`` at any time.

    Args:
        model: The network; takes one tensor (B, ...) and returns one tensor (B, K).
        global_input: A sample input, as the host asks for; optional.
        bound_opts: The host's bound options.
        device: As the host's; "auto" follows the model.
        verbose: As the host's.
        custom_ops: As the host's.
        perturbations: The sets, any number of ours and of the host's ``PerturbationLpNorm``.

    Raises:
        InvalidArgumentError: An argument cannot be used.
        UnsupportedModelError: An operator or the output of the model is not supported (on tracing).

    Example:
        >>> from lirpa_multinorm import PerturbationLinf, PerturbationL2Box
        >>> model = nn.Sequential(nn.Linear(2, 2, bias=False))
        >>> _ = model[0].weight.data.copy_(torch.tensor([[1., 1.], [1., -1.]]))
        >>> bounded = BoundedModule(model, perturbations=[PerturbationLinf(0.1), PerturbationL2Box(0.1)])
        >>> lb, ub = bounded.compute_bounds(torch.full((1, 2), 0.5), method="IBP")
        >>> lb.detach(), ub.detach()
        (tensor([[ 0.8000, -0.2000]]), tensor([[1.2000, 0.2000]]))
        >>> (lb_inf, _), (lb_2, _) = bounded.compute_norm_bounds(torch.full((1, 2), 0.5), method="IBP")
        >>> lb_2.detach()
        tensor([[ 0.8586, -0.1414]])
    """

    def __init__(self, model: nn.Module, global_input=None, bound_opts: Optional[dict] = None, device="auto",
                 verbose: bool = False, custom_ops: Optional[dict] = None, *,
                 perturbations: Optional[Sequence] = None) -> None:
        if not isinstance(model, nn.Module):
            raise InvalidArgumentError(f"model must be a torch.nn.Module, found {type(model).__name__}")
        nn.Module.__init__(self)
        if isinstance(model, BoundedModule):
            model = model.model
        # Not registered as a submodule: the host takes every submodule for a node of its graph.
        self.__dict__["model"] = model
        self.__dict__["perturbations"] = None if perturbations is None else as_perturbations(perturbations)
        self.__dict__["_host_arguments"] = {"bound_opts": dict(host.DEFAULT_OPTIONS, **(bound_opts or {})), "device": device, "verbose": verbose,
                                            "custom_ops": custom_ops}
        self.__dict__.update(_traced=False, _tracing=False, _running=False, _fixed_batch=None, _first_layers={}, _ways={})
        self.training = model.training
        if global_input is not None:
            self._trace(global_input)

    # --- bounds -----------------------------------------------------------------------------------------------

    def compute_bounds(self, x=None, aux=None, C: Optional[Tensor] = None, method: Optional[str] = "backward",
                       *args, **kwargs):
        """Bound the model's outputs on the union of the module's sets around x.

        ``lb = min over sets, ub = max over sets`` of each set's own sound bounds.

        Args:
            x: Plain inputs (B, ...): the union call. A tuple of the host's ``BoundedTensor``: the host's own call,
                with all its arguments and return values; p < inf is then bounded by our sets, because the host's own
                bounds are unsound unless a Linear or Conv comes first.
            aux: As the host's.
            C: Specification (B, S, K); None bounds the outputs themselves.
            method: "IBP", "CROWN-IBP", "CROWN" or "CROWN-Optimized" (also "alpha-CROWN"), in any case.
            *args: The host's further positional arguments (its own call only).
            **kwargs: ``bound_lower``, ``bound_upper`` and ``final_node_name``, or whatever the host's own call takes.

        Returns:
            (lb, ub), each (B, S), or the output's shape without C.

        Raises:
            InvalidArgumentError: An argument cannot be used.
            NaNBoundError: A bound came out as NaN.
        """
        if self._running:  # the host calling itself
            return super().compute_bounds(x, aux, C, method, *args, **kwargs)
        if self._is_union_call(x):
            per_set = self.compute_norm_bounds(x, C, method, *args, **kwargs)
            lower, upper = zip(*per_set)
            return _fold(torch.minimum, lower), _fold(torch.maximum, upper)
        if x is not None:
            x = x if isinstance(x, (tuple, list)) else (x,)
            self._trace_for(x)
            x = tuple(_guarded(one) for one in x)
        return self._host_bounds(x, aux, C, method, *args, **kwargs)

    def compute_norm_bounds(self, x: Tensor, C: Optional[Tensor] = None, method: str = "backward",
                            **kwargs) -> List[Bounds]:
        """Bound the model's outputs on each of the module's sets around x, in one pass.

        Args:
            x: Inputs, shape (B, ...).
            C: Specification (B, S, K), or None.
            method: As in :meth:`compute_bounds`.
            **kwargs: ``bound_lower``, ``bound_upper``, ``final_node_name``.

        Returns:
            One (lb, ub) per set, in the order of ``perturbations``.
        """
        if not self.perturbations:
            raise InvalidArgumentError("perturbations: the module has none; give them to the constructor, or pass x "
                                       "as a BoundedTensor with its own perturbation")
        x = x[0] if isinstance(x, (tuple, list)) and len(x) == 1 else x
        return self.compute_region_bounds([Region(x, one) for one in self.perturbations], C, method, **kwargs)

    def compute_region_bounds(self, regions: Sequence[Region], C: Union[None, Tensor, Sequence] = None,
                              method: str = "IBP", **kwargs) -> List[Bounds]:
        """Bound the model's outputs on sets with centres of their own, stacked into one batch.

        Args:
            regions: (centre, set) pairs; the centres may differ in batch size.
            C: One specification (B, S, K) for all regions, one per region, or None.
            method: As in :meth:`compute_bounds`.
            **kwargs: ``bound_lower``, ``bound_upper``, ``final_node_name``.

        Returns:
            One (lb, ub) per region.
        """
        regions = [Region(*region) for region in regions]
        if not regions:
            raise InvalidArgumentError("regions is empty; give at least one (centre, set) pair")
        method = _check_method(method)
        unknown = set(kwargs) - {"bound_lower", "bound_upper", "final_node_name"}
        if unknown:
            raise InvalidArgumentError(f"{', '.join(sorted(unknown))}: not supported together with the module's sets; "
                                       "pass x as a BoundedTensor with its own perturbation to reach the host's call")
        for region in regions:
            self._check_input(region.center)
            region.perturbation.check_input(region.center)
        self._trace_for((regions[0].center,), sum(region.center.shape[0] for region in regions))
        self._check_traced_shape(regions)
        if method == "CROWN-Optimized" and not self.optimizable_activations:
            method = "CROWN"  # nothing to optimise, and the host fails on it
        shape = None
        if C is None and method == "CROWN-Optimized" and not kwargs.get("final_node_name"):
            # The host's optimiser wants a specification; bounding the outputs themselves is the identity.
            shape, size = self._output_shape, self._output_shape.numel()
            C = [torch.eye(size).to(r.center).expand(r.center.shape[0], -1, -1) for r in regions]
        C = self._stacked_specification(C, regions, kwargs.get("final_node_name"))
        stack = PerturbationStack(regions)
        inputs = (host.BoundedTensor(stack.centers(), stack),)
        try:
            lower, upper = self._host_bounds(inputs, None, C, method, **kwargs)[:2]
        except _HOST_FAILURES as error:
            if isinstance(error, (LirpaMultinormError, torch.OutOfMemoryError)):
                raise
            raise UnsupportedModelError(f"model: the host auto_LiRPA {host.version} cannot bound it by {method} "
                                        f"({type(error).__name__}: {error}); try another method") from error
        for name, bound in (("lower", lower), ("upper", upper)):
            if bound is not None and bool(torch.isnan(bound).any()):
                raise NaNBoundError(f"the {name} bounds by {method} contain NaN; check the model's weights for NaN or "
                                    "infinite values, or use float64")
        if shape is not None:
            lower, upper = (None if bound is None else bound.unflatten(1, shape) for bound in (lower, upper))
        return [(None if lower is None else lower[index], None if upper is None else upper[index])
                for index, _ in stack.slices()]

    def _host_bounds(self, x, aux, C, method, *args, **kwargs):
        """Call the host; where it fails on a graph try its matrix mode, then CROWN without optimised slopes.

        The first way that works is remembered for the method, so that a failure costs once.
        """
        attempts = self._ways.get(method) or self._possible_ways(method)
        failures = []
        for place, (mode, used) in enumerate(attempts):
            self._use_mode(mode, x)
            try:
                with self._host_call(used):
                    result = super().compute_bounds(x, aux, C, used, *args, **kwargs)
            except _HOST_FAILURES as error:
                if isinstance(error, (LirpaMultinormError, torch.OutOfMemoryError)) or x is None:
                    raise
                failures.append(error)
                continue
            if failures:
                warnings.warn(f"the host cannot bound this model by {method} ({type(failures[0]).__name__}: "
                              f"{failures[0]}); using {used} in its {mode} mode", stacklevel=4)
            self._ways[method] = attempts[place:]
            return result
        self._use_mode(attempts[0][0], x)
        raise failures[0]

    def _possible_ways(self, method) -> list:
        modes = ["patches", "matrix"] if self.conv_mode == "patches" else [self.conv_mode]
        methods = [method, "CROWN"] if METHODS.get(str(method).lower()) == "CROWN-Optimized" else [method]
        return [(mode, used) for used in methods for mode in modes]

    def _use_mode(self, mode: str, x) -> None:
        if mode != self.conv_mode and x is not None:
            self._host_arguments["bound_opts"]["conv_mode"] = mode
            self._forget_trace()
            self._trace_for(x)

    @contextlib.contextmanager
    def _host_call(self, method: Optional[str]) -> Iterator[None]:
        """What every call of the host needs: our dtype, and its optimiser out of the caller's gradients and output."""
        optimised = METHODS.get(str(method).lower()) == "CROWN-Optimized"
        tracked = [p for p in self.model.parameters() if p.requires_grad] if optimised else []
        default = torch.get_default_dtype()
        self.__dict__["_running"] = True
        try:
            torch.set_default_dtype(self._dtype)  # the host makes its constants in the default type
            for parameter in tracked:
                parameter.requires_grad_(False)
            with contextlib.ExitStack() as stack:
                if optimised:
                    stack.enter_context(torch.enable_grad())
                    stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
                yield
        finally:
            torch.set_default_dtype(default)
            for parameter in tracked:
                parameter.requires_grad_(True)
            self.__dict__["_running"] = False

    # --- hooks into the host ----------------------------------------------------------------------------------

    def IBP_general(self, node=None, C=None, **kwargs):
        """Interval arithmetic of the host, started from the exact bounds of the first layers (host protocol)."""
        pending = [node] if node.name in self._first_layers else self._pending_first_layers()
        for first in pending:
            layer = self._first_layers[first.name]
            stack = layer.root.perturbation
            if hasattr(first, "interval") or not isinstance(stack, PerturbationStack) or stack.is_box():
                continue
            merged = C if first is node and C is not None and not layer.is_conv else None
            interval = first_layer_interval(self, layer, stack, merged)
            if interval is None:
                continue
            if merged is not None:
                return interval
            first.lower, first.upper = first.interval = interval
        return super().IBP_general(node, C, **kwargs)

    def check_IBP_first_linear(self, node):
        """Bound a first layer directly instead of by a backward pass (host protocol)."""
        if node.name in self._first_layers and node.name not in self.needed_A_dict:
            stack = self._first_layers[node.name].root.perturbation
            if isinstance(stack, PerturbationStack):
                node.lower, node.upper = self.IBP_general(node)
                return True
        return super().check_IBP_first_linear(node)

    def _pending_first_layers(self) -> list:
        return [layer.node for layer in self._first_layers.values() if not hasattr(layer.node, "interval")]

    # --- tracing ----------------------------------------------------------------------------------------------

    def output_shape(self, x: Tensor) -> torch.Size:
        """Return the shape of one output for inputs like x (traces the model if need be)."""
        self._trace_for((x,))
        return self._output_shape

    def forward(self, *x, **kwargs):
        """Run the network through the host's graph, as the host does (BatchNorm statistics included)."""
        if not self._tracing:
            self._trace_for(x)
        return super().forward(*x, **kwargs)

    def _trace_for(self, x: Sequence, batch: Optional[int] = None) -> None:
        """Trace on first use, and again where the host has baked another batch size into the graph."""
        batch = batch or x[0].shape[0]
        if self._traced and self._fixed_batch in (None, batch):
            return
        samples = tuple(torch.as_tensor(one)[:1].detach() for one in x)
        if not self._traced:
            self._trace(samples)
        if not self._accepts_batch(samples, batch):
            self._trace(tuple(one.expand(batch, *one.shape[1:]).contiguous() for one in samples))
            self.__dict__["_fixed_batch"] = batch

    def _accepts_batch(self, samples: tuple, batch: int) -> bool:
        if self._fixed_batch is not None or samples[0].shape[0] == batch:
            return self._fixed_batch in (None, batch)
        try:
            with torch.no_grad():
                output = super().forward(*[one.expand(batch, *one.shape[1:]) for one in samples])
            return output.shape == (batch, *self._output_shape)
        except (RuntimeError, AssertionError, ValueError):
            return False

    def _trace(self, sample) -> None:
        model, was_training = self.model, self.model.training
        sample = sample if isinstance(sample, tuple) else (sample,)
        self.__dict__.update(_tracing=True, _fixed_batch=None)
        try:
            model.eval()  # a sample must not touch BatchNorm statistics
            self.__dict__["_output_shape"] = self._check_output(sample)
            with host.tracing():
                super().__init__(model, sample if len(sample) > 1 else sample[0], **self._host_arguments)
            host.share_tensors(self, model)
            self.__dict__["_traced"] = True
        finally:
            self.__dict__["_tracing"] = False
            model.train(was_training)
            self.train(was_training)

    def _check_output(self, sample: tuple) -> torch.Size:
        try:
            with torch.no_grad():
                output = self.model(*sample)
        except Exception as error:
            shapes = ", ".join(str(tuple(one.shape)) for one in sample)
            raise InvalidArgumentError(f"x: the model cannot be applied to an input of shape {shapes} "
                                       f"({type(error).__name__}: {error})") from error
        if not isinstance(output, Tensor):
            raise UnsupportedModelError(f"model returns {type(output).__name__}; wrap it so that it returns one tensor")
        return output.shape[1:]

    # --- what users of torch expect ----------------------------------------------------------------------------

    def _named_members(self, *args, **kwargs):
        return self.model._named_members(*args, **kwargs)

    def state_dict(self, *args, **kwargs):
        """Return the model's own state dict."""
        return self.model.state_dict(*args, **kwargs)

    def load_state_dict(self, state_dict, *args, **kwargs):
        """Load a state dict of the plain model."""
        if self._tracing:  # the host's copy; the nodes share the model's tensors instead
            return None
        return self.model.load_state_dict(state_dict, *args, **kwargs)

    def train(self, mode: bool = True) -> "BoundedModule":
        """Set training mode of the model and of its graph; returns self, as in torch."""
        self.model.train(mode)
        self.training = mode
        for node in self._modules.values():
            node.train(mode)
        if self._traced:
            self.__dict__["_first_layers"] = host.first_layers(self)
        return self

    def eval(self) -> "BoundedModule":
        """Set evaluation mode; returns self, as in torch."""
        return self.train(False)

    def to(self, *args, **kwargs) -> "BoundedModule":
        """Move or cast the model; the graph is traced anew on next use."""
        self.model.to(*args, **kwargs)
        return self._forget_trace()

    def _apply(self, fn, *args, **kwargs) -> "BoundedModule":
        if self._tracing:
            return super()._apply(fn, *args, **kwargs)
        self.model._apply(fn, *args, **kwargs)
        return self._forget_trace()

    def _forget_trace(self) -> "BoundedModule":
        self._modules.clear()
        self.__dict__["_traced"] = False
        return self

    def __reduce__(self):
        arguments = dict(self._host_arguments, perturbations=self.perturbations)
        return _rebuild, (self.model, arguments)

    # --- checks -----------------------------------------------------------------------------------------------

    def _weight(self) -> Optional[Tensor]:
        return next((p for p in self.model.parameters() if p.is_floating_point()), None)

    @property
    def _dtype(self) -> torch.dtype:
        weight = self._weight()
        return torch.get_default_dtype() if weight is None else weight.dtype

    def _is_union_call(self, x) -> bool:
        first = x[0] if isinstance(x, (tuple, list)) and len(x) == 1 else x
        return self.perturbations is not None and isinstance(first, Tensor) and not isinstance(
            first, host.BoundedTensor)

    def _check_input(self, x) -> None:
        if not isinstance(x, Tensor) or x.ndim < 2:
            found = f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
            raise InvalidArgumentError(f"x must be a tensor (B, ...) with a batch dimension, found {found}")
        if not x.shape[0]:
            raise InvalidArgumentError("x is an empty batch; give at least one input")
        weight = self._weight()
        dtype, device = (x.dtype, x.device) if weight is None else (weight.dtype, weight.device)
        if x.dtype != dtype or not x.is_floating_point():
            raise InvalidArgumentError(f"x has dtype {x.dtype}, the model {dtype}; convert with x.to({dtype})")
        if x.device != device:
            raise InvalidArgumentError(f"x is on {x.device}, the model on {device}; move it with x.to('{device}')")

    def _check_traced_shape(self, regions: Sequence[Region]) -> None:
        traced = tuple(self[self.input_name[0]].value.shape[1:])
        for region in regions:
            if tuple(region.center.shape[1:]) != traced:
                raise InvalidArgumentError(f"x has shape {tuple(region.center.shape)}; the model was traced for inputs "
                                           f"(B, {', '.join(map(str, traced))})")

    def _stacked_specification(self, C, regions: Sequence[Region], final_node_name) -> Optional[Tensor]:
        if C is None:
            return None
        every = [C] * len(regions) if isinstance(C, Tensor) else list(C)
        if len(every) != len(regions):
            raise InvalidArgumentError(f"C: {len(every)} specifications for {len(regions)} regions")
        for one, region in zip(every, regions):
            self._check_specification(one, region.center, final_node_name)
        return torch.cat(every)

    def _check_specification(self, C, x: Tensor, final_node_name) -> None:
        if not isinstance(C, Tensor) or C.ndim != 3 or C.shape[0] != x.shape[0]:
            found = f"shape {tuple(C.shape)}" if isinstance(C, Tensor) else type(C).__name__
            raise InvalidArgumentError(f"C must be a tensor (B, S, K) with B = {x.shape[0]}, found {found}")
        outputs = self._output_shape.numel()
        if final_node_name is None and C.shape[2] != outputs:
            raise InvalidArgumentError(f"C has K = {C.shape[2]}; the model has {outputs} outputs")
        if C.dtype != x.dtype or C.device != x.device:
            raise InvalidArgumentError(f"C is {C.dtype} on {C.device}, x is {x.dtype} on {x.device}; use "
                                       "C.to(x)")
        if not bool(torch.isfinite(C).all()):
            raise InvalidArgumentError("C contains NaN or infinite values")


def _rebuild(model: nn.Module, arguments: dict) -> BoundedModule:
    return BoundedModule(model, **arguments)


def _check_method(method) -> str:
    try:
        return METHODS[method.lower()]
    except (KeyError, AttributeError):
        raise InvalidArgumentError(f"method={method!r} is unknown; use IBP, CROWN-IBP, CROWN or "
                                   "CROWN-Optimized") from None


def _fold(function, bounds: Sequence[Optional[Tensor]]) -> Optional[Tensor]:
    result = bounds[0]
    for bound in bounds[1:]:
        result = None if bound is None else function(result, bound)
    return result


def _guarded(x):
    """Replace a perturbation that the host's operators would bound unsoundly by a stack of our own set."""
    ptb = getattr(x, "ptb", None)
    if isinstance(ptb, PerturbationStack) or ptb is None:
        return x
    finite = isinstance(ptb, host.PerturbationLpNorm) and ptb.norm != float("inf")
    if not finite and not isinstance(ptb, PerturbationLpBox):
        return x
    plain = x.detach().as_subclass(Tensor)
    perturbation = as_perturbation(ptb)
    perturbation.check_input(plain)
    return host.BoundedTensor(plain, PerturbationStack([Region(plain, perturbation)]))
