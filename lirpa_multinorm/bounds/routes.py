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
from ..errors import NaNBoundError, UnsupportedModelError
from ..perturbations import PerturbationStack, Region
from ..tracing.clean_pass import CHANGING
from ..utils.deferred import require
from ..utils.memory import is_out_of_memory
from ..verifier.engine import Verifier
from ..verifier.lipschitz.offered import offers
from ..verifier.relu_network import ReluNetwork
from .checks import check_fixed_weights, check_shape, stacked_specification
from .containment import NAN_REMEDY, check_contained, check_infinite, refuse_nodes
from .host_calls import HOST_FAILURES, is_ours_or_memory
from .intervals import IntervalModule
from .result import Bounds, IntermediateIntervals

#: Calls in training mode between two checks of bounds against the model's own output.
_TRAINING_CHECKS = 32


class RoutedModule(IntervalModule):
    """A module that bounds regions by the host's methods, or by ours where the host fails.

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
            return self._bounds_by_input(regions, C, method, **kwargs)
        self._trace_for((regions[0].center,), rows)
        self._prepare_training([torch.cat([region.center for region in regions])])
        check_shape(regions[0].center, self[self.input_name[0]].value)
        if method == "CROWN-Optimized" and not self.optimizable_activations:
            method = "CROWN"  # nothing to optimise, and the host fails on it
        inner = kwargs.get("final_node_name") is not None
        plain = C is None and method == "CROWN-Optimized" and not inner
        if plain:  # the optimiser needs a specification
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

    def _bounds_by_input(
        self, regions: Sequence[Region], C: None | Tensor | Sequence, method: str, **kwargs
    ) -> list[Bounds]:
        """Bound each input by itself, for a model that takes batches of a single input only."""
        specifications = [C] * len(regions) if C is None or isinstance(C, Tensor) else C
        bounds = []
        for region, specification in zip(regions, specifications):
            rows = []
            for row in torch.arange(len(region.center), device=region.center.device).split(1):
                of_row = None if specification is None else specification[row]
                rows += self._bounds_by_host([region.rows(row)], of_row, method, **kwargs)
            bounds.append(Bounds.joined(rows))
        return bounds

    def _bounds_by_verifier(
        self, regions: Sequence[Region], C: None | Tensor | Sequence, method: str, **kwargs
    ) -> list[Bounds]:
        """Bound by one of our own methods, which need no graph of the host's.

        See :meth:`compute_region_bounds`.
        """
        check_fixed_weights(self.model, method)
        stack, plain = PerturbationStack(regions), C is None
        single = self._takes_single(regions[0].center, method)
        specification = stacked_specification(
            self._identity(regions) if C is None else C, regions, self._output_shape.numel()
        )
        assert specification is not None  # the identity where C is None
        lower, upper = self._verifier_bounds(stack, specification, method, **kwargs)
        self._check_contained([stack.centers()], specification, lower, upper, method, single)
        intermediate = partial(self._verifier_intervals, stack, method)
        return self._by_region(stack, lower, upper, plain, intermediate)

    def _takes_single(self, x: Tensor, method: str) -> bool:
        """Return whether a model that is to be bounded takes single inputs only.

        Lipschitz constants can be those that layers offer, of a model that is not piecewise linear.
        """
        if method == "Lipschitz" and offers(self.model):
            if self._verifier.is_stale(x):
                self.check_model(x[:1])
            if not self._verifier.is_readable(x):
                return False
        return self._verified_network(x).single

    def _verifier_intervals(self, stack: PerturbationStack, method: str) -> IntermediateIntervals:
        """Return the intermediate bounds of one of our own methods, computed anew."""
        hidden = self._verifier.intermediate_bounds(stack.regions, method)
        return IntermediateIntervals(stack.box(), list(zip(hidden.lower, hidden.upper)))

    def _verified_network(self, x: Tensor) -> ReluNetwork:
        """Return the network of our verifier for inputs like x, read anew where it has changed.

        Raises:
            UnsupportedModelError: The model is not piecewise linear.
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
        """Bound by our engine where the host cannot, or raise the host's reason."""
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

        Bounds of the outputs themselves (``plain``) have the output's shape.
        """
        if plain:
            lower, upper = (
                None if bound is None else bound.unflatten(1, self._output_shape)
                for bound in (lower, upper)
            )

        def bounds_of(rows: slice) -> Bounds:
            """Return the bounds of the rows of one region."""
            of_rows = None if intermediate is None else lambda: intermediate().rows(rows)
            return Bounds(
                None if lower is None else lower[rows],
                None if upper is None else upper[rows],
                of_rows,
            )

        return [bounds_of(rows) for rows, _ in stack.slices()]

    def _identity(self, regions: Sequence[Region]) -> list[Tensor]:
        """Return the specification of the outputs themselves for each region, (B, K, K)."""
        size = self._output_shape.numel()
        return [
            torch.eye(size, dtype=region.center.dtype, device=region.center.device).expand(
                len(region.center), -1, -1
            )
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
        """Check bounds against the model's own outputs at the centres; in training now and then.

        Outputs in training mode with BatchNorm, whose graph holds the statistics of the last clean
        pass, or with Dropout are not comparable, and not compared. A ``single`` model takes a
        single input at a time.
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
        for start in range(len(x[0])):
            row = slice(start, start + 1)
            check_contained(
                self.model,
                [x[0][row]],
                None if C is None else C[row],
                None if lower is None else lower[row],
                None if upper is None else upper[row],
                method,
            )

    @contextlib.contextmanager
    def _released_when_full(self) -> Iterator[None]:
        """Drop the graph and the verifier where memory runs out, so that fewer inputs may fit."""
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
    ) -> tuple[Tensor | None, Tensor | None]:
        """Bound the stack by one of our own methods; upper bounds are lower ones of -C."""
        lower = upper = None
        if bound_lower:
            lower = self._verifier.lower_bounds(stack.regions, C, method, enough)
        if bound_upper:
            upper = -self._verifier.lower_bounds(stack.regions, -C, method, enough)
        if any(bool(torch.isnan(bound).any()) for bound in (lower, upper) if bound is not None):
            raise NaNBoundError(f"the bounds by {method} contain NaN{NAN_REMEDY}")
        if lower is not None and upper is not None:
            # Each end is the best of several formulas, whose rounding crosses them at a point.
            lower, upper = torch.minimum(lower, upper), torch.maximum(lower, upper)
        return lower, upper

    def _sound_bounds(
        self, stack: PerturbationStack, C: Tensor | None, method: str, **kwargs
    ) -> tuple[Tensor | None, Tensor | None]:
        """Bound the stack, or raise: never NaN, never the result of a calculation that met one."""
        try:
            inputs = (host.BoundedTensor(stack.centers(), stack),)  # not in a TorchDispatchMode
            lower, upper = self._host_bounds(inputs, None, C, method, **kwargs)[:2]
        except HOST_FAILURES as error:
            if is_ours_or_memory(error):
                raise
            raise UnsupportedModelError(
                f"model: the host auto_LiRPA {host.version} cannot bound it by {method} "
                f"({type(error).__name__}: {error}); try another method"
            ) from error
        bounds = [bound for bound in (lower, upper) if bound is not None]
        if bounds:  # a single cheap pass finds any NaN
            total = torch.stack([bound.detach().sum() for bound in bounds]).sum()
            require(total.isfinite(), partial(check_infinite, self.model, bounds, C, method))
        if method == "IBP":
            self.__dict__["_interval_stack"] = stack
        # Interval arithmetic carries NaN to its result; a relaxation's slopes can swallow one.
        if method != "IBP":
            names, broken = host.nan_nodes(self)
            if broken is not None:
                require(~broken.any(), partial(refuse_nodes, names, broken, method))
        return lower, upper
