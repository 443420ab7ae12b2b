"""Bounds of regions by the host or by our own engine, checked: sound, or an error."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Callable

import torch
from torch import Tensor, nn

from .. import host
from ..errors import InvalidArgumentError, NaNBoundError, UnsupportedModelError
from ..perturbations import PerturbationStack, Region
from ..tracing.clean_pass import CHANGING
from ..utils.memory import is_out_of_memory
from ..verifier.engine import Verifier
from ..verifier.relu_network import ReluNetwork
from .checks import check_shape, stacked_specification
from .containment import check_contained
from .intervals import IntervalModule
from .result import Bounds, IntermediateIntervals
from .traced import HOST_FAILURES, is_ours_or_memory

_TRAINING_CHECKS = (
    32  # calls in training mode between two checks of a bound against the model's own output
)
_NAN_REMEDY = "; check the model's weights for NaN or infinite values, or use float64"


class RoutedModule(IntervalModule):
    """A module that bounds regions by a method of the host.

    A method of this package steps in where the host has none or fails.

    Args:
        model: The network.
        arguments: The host's further constructor arguments.
    """

    def __init__(self, model: nn.Module, arguments: dict) -> None:
        super().__init__(model, arguments)
        self.__dict__.update(_verifier=Verifier(model, self.iterations), _calls=0)

    def _bounds_by_host(
        self, regions: Sequence[Region], C: None | Tensor | Sequence, method: str, **kwargs
    ) -> list[Bounds]:
        """Bound by a method of the host; see :meth:`compute_region_bounds`."""
        rows = sum(len(region.center) for region in regions)
        if not self._traced:
            self._trace_for((regions[0].center,), 1)
        if self._single and rows > 1:
            return self._one_by_one(regions, C, method, **kwargs)
        self._trace_for((regions[0].center,), rows)
        self._prepare_training([torch.cat([region.center for region in regions])])
        check_shape(regions[0].center, self[self.input_name[0]].value)
        if method == "CROWN-Optimized" and not self.optimizable_activations:
            method = "CROWN"  # nothing to optimise, and the host fails on it
        inner = kwargs.get("final_node_name") is not None
        plain = C is None and method == "CROWN-Optimized" and not inner
        if (
            plain
        ):  # the optimiser wants a specification; bounding the outputs themselves is the identity
            C = self._identity(regions)
        C = stacked_specification(C, regions, None if inner else self._output_shape.numel())
        stack = PerturbationStack(regions)
        lower, upper = self._sound_bounds(stack, C, method, **kwargs)
        if not inner:
            self._check_contained(
                [stack.centers()], C, lower, upper, method, self._fixed_batch is not None
            )
        intermediate = None if inner else self._intermediate(stack, method)
        return self._by_region(stack, lower, upper, plain, intermediate)

    def _one_by_one(
        self, regions: Sequence[Region], C: None | Tensor | Sequence, method: str, **kwargs
    ) -> list[Bounds]:
        """Bound each input by itself, of a model that takes no other batch than one."""
        every = [C] * len(regions) if C is None or isinstance(C, Tensor) else C
        found = []
        for region, own in zip(regions, every):
            rows = [
                self._bounds_by_host(
                    [region.rows(row)], None if own is None else own[row], method, **kwargs
                )[0]
                for row in torch.arange(len(region.center), device=region.center.device).split(1)
            ]
            found.append(Bounds.joined(rows))
        return found

    def _bounds_by_verifier(
        self, regions: Sequence[Region], C: None | Tensor | Sequence, method: str, **kwargs
    ) -> list[Bounds]:
        """Bound by one of our own methods, which need no graph of the host's.

        See :meth:`compute_region_bounds`.
        """
        self._check_fixed_weights(method)
        stack, plain = PerturbationStack(regions), C is None
        single = self._verified_network(regions[0].center).single
        C = stacked_specification(
            self._identity(regions) if plain else C, regions, self._output_shape.numel()
        )
        lower, upper = self._verifier_bounds(stack, C, method, **kwargs)
        self._check_contained([stack.centers()], C, lower, upper, method, single)
        intermediate = partial(self._verifier_intervals, stack, method)
        return self._by_region(stack, lower, upper, plain, intermediate)

    def _verifier_intervals(self, stack: PerturbationStack, method: str) -> IntermediateIntervals:
        """Return the intermediate bounds of one of our own methods, found anew."""
        known = self._verifier.intermediate_bounds(stack.regions, method)
        return IntermediateIntervals(stack.box(), list(zip(known.lower, known.upper)))

    def _verified_network(self, x: Tensor) -> ReluNetwork:
        """Return the network our verifier bounds for inputs like x, read anew where it changed.

        Raises:
            UnsupportedModelError: It is not piecewise linear.
        """
        if self._verifier.is_stale(x):
            self.check_model(x[:1])
        return self._verifier.network(x)

    def _bounds_instead(
        self,
        reason: UnsupportedModelError,
        regions: Sequence[Region],
        C: None | Tensor | Sequence,
        method: str,
        **kwargs,
    ) -> list[Bounds]:
        """Bound by our engine what the host cannot, or raise the host's reason."""
        used = "IBP" if method == "IBP" else "Sparse-CROWN"
        try:
            bounds = self._bounds_by_verifier(regions, C, used, **kwargs)
        except UnsupportedModelError:
            raise reason from None
        warnings.warn(
            f"{reason}; using {used} of this package instead of {method}, without gradients",
            stacklevel=4,
        )
        return bounds

    def _by_region(
        self,
        stack: PerturbationStack,
        lower: Tensor | None,
        upper: Tensor | None,
        plain: bool,
        intermediate: Callable[[], IntermediateIntervals] | None,
    ) -> list[Bounds]:
        """Return the bounds of each region.

        They are in the output's shape if they are ``plain``, of the outputs themselves.
        """
        if plain:
            lower, upper = (
                None if bound is None else bound.unflatten(1, self._output_shape)
                for bound in (lower, upper)
            )

        def of(rows: slice) -> Bounds:
            ends = (None if bound is None else bound[rows] for bound in (lower, upper))
            return Bounds(
                *ends, None if intermediate is None else lambda: intermediate().rows(rows)
            )

        return [of(rows) for rows, _ in stack.slices()]

    def _identity(self, regions: Sequence[Region]) -> list[Tensor]:
        """Return the specification of the outputs themselves for each region, (B, K, K)."""
        size = self._output_shape.numel()
        return [
            torch.eye(size).to(region.center).expand(len(region.center), -1, -1)
            for region in regions
        ]

    def _check_contained(
        self,
        x: Sequence[Tensor],
        C: Tensor | None,
        lower: Tensor | None,
        upper: Tensor | None,
        method: str,
        single: bool,
    ) -> None:
        """Check bounds against the model's own outputs at the centres.

        Always in eval mode, in training now and then.

        Not where an output says nothing: in training mode with BatchNorm, whose graph holds the
        statistics of the last clean pass, or with Dropout. A ``single`` model takes one input at a
        time.
        """
        if self._shrunk or any(
            layer.training and isinstance(layer, CHANGING) for layer in self.model.modules()
        ):
            return
        if self.model.training:
            self.__dict__["_calls"] += 1
            if self._calls % _TRAINING_CHECKS != 1:
                return
        if not single or len(x) > 1:
            check_contained(self.model, x, C, lower, upper, method)
            return
        for row in range(len(x[0])):  # a model may take no other batch than one
            ends = [None if bound is None else bound[row : row + 1] for bound in (lower, upper)]
            check_contained(
                self.model,
                [x[0][row : row + 1]],
                None if C is None else C[row : row + 1],
                *ends,
                method,
            )

    @contextlib.contextmanager
    def _released_when_full(self) -> Iterator[None]:
        """Where memory runs out, let go of the graph and of what is known of the network.

        Fewer inputs may then fit.
        """
        try:
            yield
        except Exception as error:
            if is_out_of_memory(error):
                self._forget_trace()
                self.__dict__["_verifier"] = Verifier(self.model, self.iterations)
            raise

    def _verifier_bounds(
        self,
        stack: PerturbationStack,
        C: Tensor,
        method: str,
        bound_lower: bool = True,
        bound_upper: bool = True,
        enough: float = math.inf,
    ) -> Bounds:
        """Bound the stack by one of our own methods.

        An upper bound is a lower one of the negative.
        """
        lower = (
            self._verifier.lower_bounds(stack.regions, C, method, enough) if bound_lower else None
        )
        upper = (
            -self._verifier.lower_bounds(stack.regions, -C, method, enough) if bound_upper else None
        )
        if any(bool(torch.isnan(bound).any()) for bound in (lower, upper) if bound is not None):
            raise NaNBoundError(f"the bounds by {method} contain NaN{_NAN_REMEDY}")
        return lower, upper

    def _check_fixed_weights(self, method: str) -> None:
        if any(
            getattr(parameter, "ptb", None) is not None for parameter in self.model.parameters()
        ):
            raise UnsupportedModelError(
                f"model: {method} takes the weights for fixed, and some are perturbed "
                "(BoundedParameter); use IBP, CROWN-IBP or CROWN"
            )

    def _sound_bounds(
        self, stack: PerturbationStack, C: Tensor | None, method: str, **kwargs
    ) -> Bounds:
        """Bound the stack, or raise: never NaN, never the result of a calculation that met one."""
        try:
            inputs = (
                host.BoundedTensor(stack.centers(), stack),
            )  # fails inside a TorchDispatchMode
            lower, upper = self._host_bounds(inputs, None, C, method, **kwargs)[:2]
        except HOST_FAILURES as error:
            if is_ours_or_memory(error):
                raise
            raise UnsupportedModelError(
                f"model: the host auto_LiRPA {host.version} cannot bound it by {method} "
                f"({type(error).__name__}: {error}); try another method"
            ) from error
        ends = [bound for bound in (lower, upper) if bound is not None]
        if not math.isfinite(
            sum(float(bound.detach().sum()) for bound in ends)
        ):  # one cheap pass finds any NaN
            self._explain_infinite(ends, C, method)
        if method == "IBP":
            self.__dict__["_interval_stack"] = stack
        # Interval arithmetic carries NaN to its result; a relaxation's slopes can swallow one.
        node = None if method == "IBP" else host.nan_node(self)
        if node is not None:
            raise NaNBoundError(f"the bounds of node {node} by {method} contain NaN{_NAN_REMEDY}")
        return lower, upper

    def _explain_infinite(self, ends: Sequence[Tensor], C: Tensor | None, method: str) -> None:
        """Raise where bounds are NaN, or infinite because the newer host has replaced a NaN."""
        if C is not None and not bool(torch.isfinite(C).all()):
            raise InvalidArgumentError("C contains NaN or infinite values; clean it first")
        broken = any(
            bool(torch.isnan(value).any())
            for value in self.model.state_dict().values()
            if isinstance(value, Tensor)
        )
        infinite = any(not bool(torch.isfinite(bound).all()) for bound in ends)
        if infinite and (broken or any(bool(torch.isnan(bound).any()) for bound in ends)):
            raise NaNBoundError(f"the bounds by {method} contain NaN{_NAN_REMEDY}")
