"""The linear maps between the ReLUs of a graph that follows its model's weights, with gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ...host import Statistics
from .. import network
from ..network.operators import CONVOLUTIONS, COPIES, DROPOUTS, RESHAPES, SUMS

_CHUNK = 256  # columns that are calculated at once
_BIASED = ("linear", *CONVOLUTIONS)
_SUMS_OF_TWO = ("add", "sub", "rsub")  # a constant is added where there is one source only
_WITHOUT_CONSTANTS = (
    *RESHAPES,
    *COPIES,
    *SUMS,
    *DROPOUTS,
    "neg",
    "mul",
    "div",
    "index",
    "relu",
    "pair",
)

#: Constants that steps take instead of theirs, by the step's index and the constant's name.
Options = dict[int, dict[str, Any]]


class LinearMaps:
    """The linear maps from the input and each ReLU to the layers behind them.

    Args:
        graph: The graph of the model, read live.
        model: The model.
    """

    def __init__(self, graph: network.ModelGraph, model: nn.Module) -> None:
        self.graph = graph
        #: The indices of the input and of the ReLUs.
        self.sources = [0, *graph.relus]
        self._batch_norms = _batch_norm_layers(graph, model)

    def sees(self, target: int, source: int) -> bool:
        """Return whether a step depends on a source other than through another source."""
        if source == target:
            return True
        seen_by_target = {
            step
            for index in self.graph.needed([target], self.sources)
            for step in self.graph.steps[index].sources
        }
        return source in seen_by_target

    def value(self, target: int, source: int, value: Tensor, options: Options) -> Tensor:
        """Return a step's value where a source has the given one and the others are zero."""
        values = {
            index: value if index == source else value.new_zeros(self.graph.steps[index].shape)
            for index in self.sources
        }
        for index in self.graph.needed([target], values):
            step = self.graph.steps[index]
            inputs = [values[before] for before in step.sources]
            values[index] = step.run(*inputs, **options.get(index, {}))
        return values[target]

    def shift(self, target: int, source: int, options: Options) -> Any:
        """Return a step's value where all sources are zero; 0.0 if no step adds a constant."""
        between = self.graph.needed([target], self.sources)
        if not any(_adds_constant(self.graph.steps[index]) for index in between):
            return 0.0
        zero = self.graph.like.new_zeros(self.graph.steps[source].shape)
        return self.value(target, source, zero, options)

    def columns(self, target: int, index: Tensor, options: Options) -> Tensor:
        """Return columns of the linear map from the input to a layer, (p, n)."""
        like, shift = self.graph.like, self.shift(target, 0, options)
        one_hot = torch.zeros(len(index), like.numel(), dtype=like.dtype, device=like.device)
        one_hot[torch.arange(len(index), device=index.device), index] = 1

        def column(vector: Tensor) -> Tensor:
            return (self.value(target, 0, vector, options) - shift).flatten()

        chunks = one_hot.view(-1, *like.shape).split(_CHUNK)
        return torch.cat([torch.vmap(column)(chunk) for chunk in chunks])

    def rows(self, source: int, options: Options) -> Tensor:
        """Return the linear map from a source to the output as a matrix (K, n)."""
        create = torch.is_grad_enabled()
        moving = self.graph.like.new_zeros(self.graph.steps[source].shape).requires_grad_()
        with torch.enable_grad():
            output = self.value(self.graph.output, source, moving, options).flatten()
            (rows,) = torch.autograd.grad(
                output,
                moving,
                torch.eye(len(output), dtype=output.dtype, device=output.device),
                create_graph=create,
                is_grads_batched=True,
            )
        return rows.flatten(1)

    def options(self, statistics: Statistics) -> Options:
        """Return the constants that make the steps linear: nothing is added.

        Args:
            statistics: The variances that BatchNorm layers normalise by, instead of their running
                ones.
        """
        used: dict[nn.Module, int] = {}
        options: Options = {
            index: {"bias": None}
            for index, step in enumerate(self.graph.steps)
            if step.operator in _BIASED
        }
        for index, step in enumerate(self.graph.steps):
            if step.operator == "batch_norm":
                running_mean = torch.zeros_like(step.arguments["running_mean"])
                options[index] = {"bias": None, "running_mean": running_mean}
        for index, layer in self._batch_norms.items():
            call = used.get(layer, 0)
            if call < len(statistics.get(layer, [])):
                options[index]["running_var"], used[layer] = statistics[layer][call][1], call + 1
        return options


def detached(options: Options) -> Options:
    """Return the constants without gradients."""
    return {
        index: {
            name: value if value is None else value.detach() for name, value in constants.items()
        }
        for index, constants in options.items()
    }


def _batch_norm_layers(graph: network.ModelGraph, model: nn.Module) -> dict[int, nn.Module]:
    """Return the layer of each BatchNorm step of a graph, by the step's index."""
    layers = {
        layer.running_var.data_ptr(): layer
        for layer in model.modules()
        if isinstance(layer, _BatchNorm) and layer.running_var is not None
    }
    return {
        index: layers[step.arguments["running_var"].data_ptr()]
        for index, step in enumerate(graph.steps)
        if step.operator == "batch_norm" and step.arguments["running_var"].data_ptr() in layers
    }


def _adds_constant(step: network.Step) -> bool:
    """Return whether a step adds a constant that :meth:`LinearMaps.options` cannot leave out."""
    if step.operator in _SUMS_OF_TWO:
        return len(step.sources) < 2
    return step.operator not in (*_WITHOUT_CONSTANTS, *_BIASED, "batch_norm")
