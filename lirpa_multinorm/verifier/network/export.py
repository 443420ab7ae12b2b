"""Reading the graph of a model: affine operators and ReLUs, off the model itself."""

from __future__ import annotations

import contextlib
import operator
import warnings
from collections.abc import Iterator
from functools import partial
from typing import Any, Callable

import torch
from torch import Tensor, fx, nn

from ...errors import LirpaMultinormError, UnsupportedModelError
from ...utils.memory import is_out_of_memory
from .activations import ACTIVATIONS
from .affine_operators import AFFINE
from .affine_steps import INSTEAD, AffineOperator, applies
from .builder import Builder
from .extremes import EXTREMES
from .graph import ModelGraph, Step
from .operators import SHAPES_ONLY
from .values import Moving, Results, moving_values, replaced

#: What torch calls operators, where it is not what users do.
_NAMES = {"_native_batch_norm_legit_functional": "batch_norm in training mode"}
_REWRITTEN = {**ACTIVATIONS, **EXTREMES}


def model_graph(model: nn.Module, x: Tensor, live: bool = False) -> ModelGraph:
    """Read the graph of a piecewise-linear model.

    The model is exported by torch for one input, in the mode in which it is, and its operators are
    sorted: what does not depend on the input is a constant, with the value that it has now; what is
    affine in what does stays as it is; other piecewise-linear operators are rewritten
    (:mod:`.activations`, :mod:`.extremes`).

    Args:
        model: Takes one tensor and returns one.
        x: An input, (1, ...).
        live: Whether the steps' values, ``run`` only, follow the model's weights and have gradients
            in them.

    Returns:
        The graph; it holds the values of the model's weights.

    Raises:
        UnsupportedModelError: torch cannot export the model, an operator is not piecewise linear,
            or the graph is to follow a weight that the model computes from another; the message
            names it and its path.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
        >>> graph = model_graph(model, torch.zeros(1, 2))
        >>> [step.operator for step in graph.steps]
        ['input', 'linear', 'relu', 'linear']
    """
    program = _exported(model, x)
    weights: dict[str, Tensor] = {}
    if live:
        weights.update(model.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        return _Reader(program, x, weights).graph()


def _exported(model: nn.Module, x: Tensor) -> torch.export.ExportedProgram:
    try:
        with torch.no_grad(), _precision_kept(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.export(model, (x,), strict=False)
            if any(map(_is_in_place, program.graph.nodes)):
                # Without in-place operators; it takes several times as long.
                program = program.run_decompositions({})
            return program
    except Exception as error:
        if isinstance(error, LirpaMultinormError) or is_out_of_memory(error):
            raise
        message = str(error).strip().split("\n")[0]
        raise UnsupportedModelError(
            f"model: torch.export cannot read it ({type(error).__name__}: {message}); {INSTEAD}"
        ) from error


def _is_in_place(node: fx.Node) -> bool:
    is_mutable = getattr(getattr(node.target, "_schema", None), "is_mutable", False)
    return node.op == "call_function" and is_mutable


@contextlib.contextmanager
def _precision_kept() -> Iterator[None]:
    """Let torch.export switch off cuDNN and oneDNN without touching all their other switches.

    torch.export fails where the switches of float32's precision have been set by new names, and
    changes others.
    """

    def enabled_only(
        setter: Callable[[bool], None], backend: Any, enabled: bool, *_: Any
    ) -> tuple[bool]:
        before = backend.enabled
        setter(enabled)
        return (before,)

    setters: list[tuple[Any, Callable[[bool], None]]] = [
        (torch.backends.cudnn, torch._C._set_cudnn_enabled),
        (torch.backends.mkldnn, torch._C._set_mkldnn_enabled),
    ]
    for backend, setter in setters:
        backend.set_flags = partial(enabled_only, setter, backend)
    try:
        yield
    finally:
        for backend, _ in setters:
            del backend.set_flags


class _Reader:
    """A reader of an exported program, with the values that it has for one input.

    Args:
        program: The program.
        x: The input, (1, ...).
        weights: The weights that the graph follows, by name.
    """

    def __init__(
        self, program: torch.export.ExportedProgram, x: Tensor, weights: dict[str, Tensor]
    ) -> None:
        self._program, self._weights, self._path = program, weights, "the input"
        self._steps: list[Step] = []
        self._excesses: dict[tuple[Moving, Moving], Moving] = {}
        self._values: list[Tensor] = []
        self._input = self._added(Step("input", "the input", (), lambda: x, lambda: x, x.shape), x)

    def graph(self) -> ModelGraph:
        """Return the graph."""
        tensors = self._tensors()
        values: dict[fx.Node, Any] = {}
        output: Any = None
        for node in self._program.graph.nodes:
            self._path = _path_of(node)
            if node.op == "placeholder":
                values[node] = tensors.get(node.name, self._input)
            elif node.op == "output":
                outputs: Any = fx.node.map_arg(node.args[0], values.__getitem__)
                (output,) = outputs
            elif node.users:
                values[node] = self._value(node, values)
        if not isinstance(output, Moving):
            raise UnsupportedModelError(
                "model: its output does not depend on its input; there is nothing to bound"
            )
        return ModelGraph(self._steps, output.step, self._values[0])

    def _tensors(self) -> dict[str, Tensor]:
        """Return parameters, buffers and constants by the names of their placeholders."""
        signature = self._program.graph_signature
        tensors_of: dict[str, Tensor] = {}
        for names, tensors in (
            (signature.inputs_to_parameters, self._program.state_dict),
            (signature.inputs_to_buffers, {**self._program.constants, **self._program.state_dict}),
            (signature.inputs_to_lifted_tensor_constants, self._program.constants),
        ):
            for placeholder, name in names.items():
                tensors_of[placeholder] = self._weights.get(name, tensors[name].detach())
        return tensors_of

    def _value(self, node: fx.Node, values: dict[fx.Node, Any]) -> Any:
        """Return the value of a node: a constant, :class:`Moving` or :class:`Results`."""
        if node.op == "get_attr":
            return getattr(self._program.graph_module, str(node.target))
        arguments: Any
        options: Any
        arguments, options = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
        if node.target is operator.getitem:
            results, index = arguments
            return results.result(index) if isinstance(results, Results) else results[index]
        if not isinstance(node.target, torch._ops.OpOverload):
            raise self.unsupported(getattr(node.target, "__name__", str(node.target)))
        named = {
            argument.name: value
            for argument, value in zip(node.target._schema.arguments, arguments)
        }
        return self.call(node.target, {**named, **options})

    def call(self, function: torch._ops.OpOverload, arguments: dict[str, Any]) -> Any:
        """Add an operator of torch to the graph.

        Args:
            function: The operator.
            arguments: By torch's names; values that move are :class:`Moving`.

        Returns:
            A constant, :class:`Moving`, or :class:`Results` of an operator that returns several.
        """
        name = function._schema.name.split("::")[1].rstrip("_")
        moving = moving_values(arguments)
        if not moving:
            if torch.Tag.nondeterministic_seeded in function.tags:
                raise UnsupportedModelError(
                    f"model: {name} at {self._path} is random; bounds need a function: remove "
                    "it, or put the model in eval mode"
                )
            if any(isinstance(value, nn.Parameter) for value in arguments.values()):
                raise UnsupportedModelError(
                    f"model: {name} at {self._path} computes a weight from another, which a "
                    "graph that follows the weights cannot; use a layer of torch"
                )
            return function(**arguments)
        if name in SHAPES_ONLY:
            return function(**replaced(arguments, [self._values[source.step] for source in moving]))
        if name in _REWRITTEN:
            return _REWRITTEN[name](Builder(self), **arguments)
        rule = AFFINE.get(name)
        if rule is None or not applies(rule, arguments):
            raise self.unsupported(name)
        return self._affine(AffineOperator(name, function, rule, arguments), moving)

    def _affine(self, affine: AffineOperator, moving: list[Moving]) -> Any:
        """Add an affine operator; of one with several results, those that are asked for."""
        inputs = list(map(self.value, moving))
        value = affine.value(inputs)

        def added(index: int | None) -> Moving:
            result = value if index is None else value[index]
            step = affine.step(self._path, moving, inputs[0], result.shape, index)
            return self._added(step, result)

        return added(None) if isinstance(value, Tensor) else Results(added)

    def unsupported(self, name: str) -> UnsupportedModelError:
        """Return the error that names an operator."""
        return UnsupportedModelError(
            f"model: {_NAMES.get(name, name)} at {self._path} is neither affine nor "
            f"piecewise linear in the input; {INSTEAD}"
        )

    def value(self, moving: Moving) -> Tensor:
        """Return a moving value for the input that the graph is read with."""
        return self._values[moving.step]

    def relu(self, moving: Moving) -> Moving:
        """Add a ReLU."""
        value, sources = self.value(moving), (moving.step,)
        step = Step("relu", self._path, sources, torch.relu, lambda radius: radius, value.shape)
        return self._added(step, value.relu())

    def excess(self, first: Moving, second: Moving, build: Builder) -> Moving:
        """Return ``ReLU(first - second)``; a maximum and a minimum of a pair have it in common."""
        if (first, second) not in self._excesses:
            self._excesses[first, second] = self.relu(build.sub(first, second))
        return self._excesses[first, second]

    def chosen(self, moving: Moving, choose: Callable[[Tensor], Tensor]) -> Moving:
        """Add a function that makes a tensor of elements of its argument."""
        value = choose(self.value(moving))
        step = Step("index", self._path, (moving.step,), choose, choose, value.shape)
        return self._added(step, value)

    def _added(self, step: Step, value: Tensor) -> Moving:
        """Add a step, with its value for the input that the graph is read with."""
        if value.dtype != (self._values[0] if self._values else value).dtype:
            raise UnsupportedModelError(
                f"model: {step.operator} at {self._path} makes {value.dtype} of it; keep all "
                "of the network in the type of its input"
            )
        self._steps.append(step)
        self._values.append(value)
        return Moving(len(self._steps) - 1)


def _path_of(node: fx.Node) -> str:
    """Return the path in the model of the module that a node belongs to."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    path = next((path for path, _ in reversed(stack) if path), "")
    return repr(path) if path else "the model's forward"
