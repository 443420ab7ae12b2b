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
from .affine_operators import AFFINE, SHAPES_ONLY, AffineRule
from .builder import Builder
from .extremes import EXTREMES
from .graph import ModelGraph, Step
from .values import Moving, Parts, is_moving, moving_values, replaced

_MAX_MATRIX = 1 << 24  # elements of an operator's matrix where it must be written out
#: What torch calls operators, where it is not what users do.
_NAMES = {"_native_batch_norm_legit_functional": "batch_norm in training mode"}
_REWRITTEN = {**ACTIVATIONS, **EXTREMES}
_INSTEAD = "use IBP, CROWN-IBP, CROWN or CROWN-Optimized"


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
            names it and its place.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
        >>> graph = model_graph(model, torch.zeros(1, 2))
        >>> [step.operator for step in graph.steps]
        ['input', 'linear', 'relu', 'linear']
    """
    program = _exported(model, x)
    weights = dict(model.named_parameters(remove_duplicate=False)) if live else {}
    with torch.no_grad():
        return _Reader(program, x, weights).graph()


def _exported(model: nn.Module, x: Tensor) -> torch.export.ExportedProgram:
    try:
        with torch.no_grad(), _precision_kept(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.export(model, (x,), strict=False)
            if any(
                node.op == "call_function"
                and getattr(getattr(node.target, "_schema", None), "is_mutable", False)
                for node in program.graph.nodes
            ):
                program = program.run_decompositions(
                    {}
                )  # without in-place operators; takes several times as long
            return program
    except Exception as error:
        if isinstance(error, LirpaMultinormError) or is_out_of_memory(error):
            raise
        said = str(error).strip().split("\n")[0]
        raise UnsupportedModelError(
            f"model: torch.export cannot read it ({type(error).__name__}: {said}); {_INSTEAD}"
        ) from error


@contextlib.contextmanager
def _precision_kept() -> Iterator[None]:
    """Let torch.export switch off cuDNN and oneDNN without touching all their other switches.

    It fails where those of float32's precision have been set by new names, and leaves others set
    that were not.
    """

    def enabled_only(setter: Callable[[bool], None], backend, enabled: bool, *_) -> tuple[bool]:
        before = backend.enabled
        setter(enabled)
        return (before,)

    setters = [
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
    """Goes through an exported program, with the values that it has for one input."""

    def __init__(
        self, program: torch.export.ExportedProgram, x: Tensor, weights: dict[str, Tensor]
    ) -> None:
        self._program, self._steps, self._place = program, [], "the input"
        self._weights = weights
        self._values: list[Tensor] = []
        self._input = self._added(Step("input", "the input", (), lambda: x, lambda: x, x.shape), x)

    def graph(self) -> ModelGraph:
        """Return the graph."""
        tensors, known = self._tensors(), {}
        for node in self._program.graph.nodes:
            self._place = _place(node)
            if node.op == "placeholder":
                known[node] = tensors.get(node.name, self._input)
            elif node.op == "output":
                (output,) = fx.node.map_arg(node.args[0], known.__getitem__)
            elif node.users:
                known[node] = self._value(node, known)
        if not isinstance(output, Moving):
            raise UnsupportedModelError(
                "model: its output does not depend on its input; there is nothing to bound"
            )
        return ModelGraph(self._steps, output.place, self._values[0])

    def _tensors(self) -> dict[str, Tensor]:
        """Return parameters, buffers and constants by the names of their placeholders."""
        signature, found = self._program.graph_signature, {}
        for names, tensors in (
            (signature.inputs_to_parameters, self._program.state_dict),
            (signature.inputs_to_buffers, {**self._program.constants, **self._program.state_dict}),
            (signature.inputs_to_lifted_tensor_constants, self._program.constants),
        ):
            found.update(
                {
                    placeholder: self._weights.get(name, tensors[name].detach())
                    for placeholder, name in names.items()
                }
            )
        return found

    def _value(self, node: fx.Node, known: dict[fx.Node, Any]) -> Any:
        """Return the value of a node: a constant, or where it moves."""
        if node.op == "get_attr":
            return getattr(self._program.graph_module, node.target)
        arguments, options = fx.node.map_arg((node.args, node.kwargs), known.__getitem__)
        if node.target is operator.getitem:
            whole, index = arguments
            return whole.part(index) if isinstance(whole, Parts) else whole[index]
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
            A constant, :class:`Moving`, or what ``getitem`` takes the parts of an operator with
            several values from.
        """
        name = function._schema.name.split("::")[1].rstrip("_")
        moving = moving_values(arguments)
        if not moving:
            if torch.Tag.nondeterministic_seeded in function.tags:
                raise UnsupportedModelError(
                    f"model: {name} at {self._place} is random; bounds need a function: remove "
                    "it, or put the model in eval mode"
                )
            if any(isinstance(value, nn.Parameter) for value in arguments.values()):
                raise UnsupportedModelError(
                    f"model: {name} at {self._place} computes a weight from another, which a "
                    "graph that follows the weights cannot; use a layer of torch"
                )
            return function(**arguments)
        if name in SHAPES_ONLY:
            return function(**replaced(arguments, [self._values[one.place] for one in moving]))
        if name in _REWRITTEN:
            return _REWRITTEN[name](Builder(self), **arguments)
        rule = AFFINE.get(name)
        if rule is None or not _applies(rule, arguments):
            raise self.unsupported(name)
        return self._affine(name, function, rule, arguments, moving)

    def unsupported(self, name: str) -> UnsupportedModelError:
        """Return the error that names an operator."""
        return UnsupportedModelError(
            f"model: {_NAMES.get(name, name)} at {self._place} is neither affine nor "
            f"piecewise linear in the input; {_INSTEAD}"
        )

    def value(self, one: Moving) -> Tensor:
        """Return a value for the input that the graph is read with."""
        return self._values[one.place]

    def relu(self, one: Moving) -> Moving:
        """Add a ReLU."""
        value = self.value(one)
        return self._added(
            Step("relu", self._place, (one.place,), torch.relu, lambda r: r, value.shape),
            value.relu(),
        )

    def chosen(self, one: Moving, choose: Callable[[Tensor], Tensor]) -> Moving:
        """Add a function that makes a tensor of elements of its argument."""
        value = choose(self.value(one))
        return self._added(
            Step("index", self._place, (one.place,), choose, choose, value.shape), value
        )

    def _added(self, step: Step, value: Tensor) -> Moving:
        if value.dtype != (self._values[0] if self._values else value).dtype:
            raise UnsupportedModelError(
                f"model: {step.operator} at {self._place} makes {value.dtype} of it; keep all "
                "of the network in the type of its input"
            )
        self._steps.append(step)
        self._values.append(value)
        return Moving(len(self._steps) - 1)

    def _affine(
        self,
        name: str,
        function: Callable,
        rule: AffineRule,
        arguments: dict[str, Any],
        moving: list[Moving],
    ) -> Any:
        """Add an affine operator; one with several values is added part by part."""
        run = rule.run or function
        absolute, squares, spread = _mapped(rule, arguments, abs), None, rule.spread or run
        if rule.products:
            squares = _mapped(rule, arguments, lambda factor: factor**2)
        value = run(**replaced(arguments, list(map(self.value, moving))))
        rising = not rule.signed and all(
            _is_rising(arguments[key]) for key in rule.factors if key in arguments
        )
        constants = {
            key: entry for key, entry in arguments.items() if not moving_values({key: entry})
        }

        def part(index: int | None) -> Moving:
            """Add the operator, or one of its values."""
            taken = (lambda found: found) if index is None else (lambda found: found[index])
            step = Step(
                name,
                self._place,
                tuple(one.place for one in moving),
                lambda *values, **others: taken(run(**{**replaced(arguments, values), **others})),
                lambda *radii: taken(spread(**replaced(absolute, radii))),
                taken(value).shape,
                rising,
                constants,
                squares and (lambda *radii: taken(run(**replaced(squares, radii)))),
            )
            if rule.by_matrix:
                step = step._replace(spread=self._by_matrix(step))
            return self._added(step, taken(value))

        return part(None) if isinstance(value, Tensor) else Parts(part)

    def _by_matrix(self, step: Step) -> Callable[[Tensor], Tensor]:
        """Return how a step of one source carries distances, from its matrix written out."""
        value = self._values[step.sources[0]]
        if step.shape.numel() * value.numel() > _MAX_MATRIX:
            raise UnsupportedModelError(
                f"model: {step} is too large to be written out as a matrix; {_INSTEAD}"
            )
        with torch.enable_grad():
            matrix = torch.autograd.functional.jacobian(
                step.run, torch.zeros_like(value), vectorize=True
            ).abs()
        return lambda radius: torch.tensordot(matrix, radius, value.ndim)


def _place(node: fx.Node) -> str:
    """Return where in the model a node stands: the path of its module."""
    path = next(
        (path for path, _ in reversed(list(node.meta.get("nn_module_stack", {}).values())) if path),
        "",
    )
    return repr(path) if path else "the model's forward"


def _applies(rule: AffineRule, arguments: dict[str, Any]) -> bool:
    places = [key for key, entry in arguments.items() for _ in moving_values({key: entry})]
    return (
        rule.holds(arguments)
        and set(places) <= set(rule.moving)
        and (rule.joint or len(places) == 1)
    )


def _mapped(
    rule: AffineRule, arguments: dict[str, Any], factor: Callable[[Any], Any]
) -> dict[str, Any]:
    """Return the arguments with a function of each factor, and nothing added."""

    def mapped(entry: Any, function: Callable) -> Any:
        if is_moving(entry) or entry is None:
            return entry
        return (
            [mapped(one, function) for one in entry]
            if isinstance(entry, (list, tuple))
            else function(entry)
        )

    found = dict(arguments)
    for names, function in ((rule.factors, factor), (rule.added, _zero)):
        found.update({key: mapped(arguments[key], function) for key in names if key in arguments})
    return found


def _zero(entry: Any) -> Any:
    return torch.zeros_like(entry) if isinstance(entry, Tensor) else 0


def _is_rising(factor: Any) -> bool:
    """Whether no constant in a factor is negative."""
    if isinstance(factor, (list, tuple)):
        return all(map(_is_rising, factor))
    if isinstance(factor, Moving) or factor is None:
        return True
    return bool((factor >= 0).all()) if isinstance(factor, Tensor) else factor >= 0
