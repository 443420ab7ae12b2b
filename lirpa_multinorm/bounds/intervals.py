"""Interval arithmetic of a traced module, from exact first layers over any stack of sets."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Callable

from torch import nn

from .. import host
from ..perturbations import PerturbationStack
from ..verifier.first_layer import FirstLayer, first_layer_interval
from .clean_module import CleanModule
from .latent import LatentClassifier
from .result import IntermediateIntervals


class IntervalModule(CleanModule):
    """The host's module with interval arithmetic from exact bounds of the layers at the input.

    Args:
        model: The network.
        arguments: The host's further constructor arguments.
    """

    def __init__(self, model: nn.Module, arguments: dict) -> None:
        super().__init__(model, arguments)
        self.__dict__.update(_interval_stack=None, _shrunk=[])

    @property
    def holds_intervals(self) -> bool:
        """Whether nodes still hold the IBP intervals of the last :meth:`compute_region_bounds`."""
        stack = self._interval_stack
        # Nodes traced anew, or bounded by the host's own call since, do not hold the stack.
        return (
            self._traced
            and stack is not None
            and getattr(self[self.input_name[0]], "perturbation", None) is stack
        )

    def _intermediate(
        self, stack: PerturbationStack, method: str
    ) -> Callable[[], IntermediateIntervals] | None:
        """Return a function of the intermediate bounds that the last call of the host has left."""
        relus = host.relu_input_intervals(self) if method == "IBP" else host.last_relu_bounds(self)
        if relus is None:
            return None
        first = next(iter(self._first_layers.values()), None)
        box = stack.box() if first is None else FirstLayer.of_host(self, first).moved_box(stack)
        return lambda: IntermediateIntervals(box, relus)

    def latent_classifier(self, layers: int) -> LatentClassifier:
        """Return the network's last layers, behind a box of the last call of IBP (TAPS).

        Args:
            layers: Number of their activation layers; see :class:`.latent.LatentClassifier`.
        """
        return LatentClassifier(self, layers)

    @contextlib.contextmanager
    def shrunk_relus(self, factors: Sequence[tuple[slice, float]]) -> Iterator[None]:
        """Multiply crossing neurons' upper bounds in IBP, **unsoundly on purpose**.

        It is a context for training only ("shrinking ReLU" of SABR).

        Args:
            factors: (rows of the stacked regions, factor in (0, 1]) pairs.
        """
        before = self._shrunk
        self.__dict__["_shrunk"] = [(rows, factor) for rows, factor in factors if factor != 1]
        try:
            yield
        finally:
            self.__dict__["_shrunk"] = before

    # --- hooks into the host ----------------------------------------------------------------------

    def IBP_general(self, node=None, C=None, **kwargs):
        """Run the host's interval arithmetic from exact first-layer bounds (host protocol)."""
        layers = self._first_layers
        for layer in [layers[node.name]] if node.name in layers else layers.values():
            first, stack = layer.node, layer.root.perturbation
            if (
                hasattr(first, "interval")
                or not isinstance(stack, PerturbationStack)
                or stack.is_box()
            ):
                continue
            merged = C if first is node and C is not None and not layer.is_conv else None
            interval = first_layer_interval(FirstLayer.of_host(self, layer), stack, merged)
            if interval is None:
                continue
            if merged is not None:
                return interval
            first.lower, first.upper = first.interval = interval
        if self._shrunk and not hasattr(node, "interval"):
            host.shrink_relu(self, node, self._shrunk)
        if C is not None and not hasattr(node, "interval") and host.refuses_specification(node):
            if not hasattr(node.inputs[0], "interval"):
                super().IBP_general(node.inputs[0])
            return host.merge_specification(self, node, C)
        return super().IBP_general(node, C, **kwargs)

    def check_IBP_first_linear(self, node):
        """Bound a first layer directly instead of by a backward pass (host protocol)."""
        if node.name in self._first_layers and node.name not in self.needed_A_dict:
            stack = self._first_layers[node.name].root.perturbation
            if isinstance(stack, PerturbationStack):
                node.lower, node.upper = self.IBP_general(node)
                return True
        return super().check_IBP_first_linear(node)
