"""Steps of a graph made of affine operators and their arguments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Callable

import torch
from torch import Tensor

from ...errors import UnsupportedModelError
from .affine_operators import AffineRule
from .graph import Step
from .values import Moving, is_moving, moving_values, replaced

_MAX_MATRIX = 1 << 24  # elements of an operator's matrix where it must be written out
INSTEAD = "use IBP, CROWN-IBP, CROWN or CROWN-Optimized"


class AffineOperator:
    """An affine operator of torch with its arguments.

    Args:
        name: torch's name of it.
        function: The operator.
        rule: The rule by which it is affine.
        arguments: The arguments by name; values that move are :class:`.values.Moving`.
    """

    def __init__(
        self, name: str, function: Callable, rule: AffineRule, arguments: dict[str, Any]
    ) -> None:
        self._name, self._rule, self._arguments = name, rule, arguments
        self._run = rule.run or function
        self._spread = rule.spread or self._run
        self._absolute = _mapped(rule, arguments, abs)
        self._squares = None
        if rule.products:
            self._squares = _mapped(rule, arguments, lambda factor: factor**2)

    def value(self, values: Sequence[Tensor], **others: Any) -> Any:
        """Return the operator's result for values in place of those that move.

        Args:
            values: The values, in order. The constants are taken in their type, which may be more
                precise than the model's.
            **others: Constants that replace those of the arguments.
        """
        arguments = _in_type(self._arguments, values[0].dtype)
        return self._run(**{**replaced(arguments, values), **others})

    def step(
        self,
        path: str,
        sources: Sequence[Moving],
        like: Tensor,
        shape: torch.Size,
        index: int | None = None,
    ) -> Step:
        """Return the operator as a step, or one of its results.

        Args:
            path: The path in the model of the module that runs it.
            sources: The values that it takes.
            like: A tensor of the first source's shape and type.
            shape: The shape of the result.
            index: The index of the result; None: the operator has a single one.
        """

        def taken(results: Any) -> Tensor:
            return results if index is None else results[index]

        def run(*values: Tensor, **others: Any) -> Tensor:
            return taken(self.value(values, **others))

        def spread(*radii: Tensor) -> Tensor:
            return taken(self._spread(**replaced(_in_type(self._absolute, radii[0].dtype), radii)))

        def squared(*radii: Tensor) -> Tensor:
            return taken(self._run(**replaced(self._squares, radii)))

        rule, arguments = self._rule, self._arguments
        factors = [arguments[key] for key in rule.factors if key in arguments]
        step = Step(
            self._name,
            path,
            tuple(source.step for source in sources),
            run,
            spread,
            shape,
            not rule.signed and all(map(_is_rising, factors)),
            {key: entry for key, entry in arguments.items() if not moving_values({key: entry})},
            squared if self._squares else None,
        )
        return step._replace(spread=_spread_by_matrix(step, like)) if rule.by_matrix else step


def applies(rule: AffineRule, arguments: dict[str, Any]) -> bool:
    """Return whether an operator is affine by a rule in those of its arguments that move."""
    moving = [key for key, entry in arguments.items() for _ in moving_values({key: entry})]
    return (
        rule.holds(arguments)
        and set(moving) <= set(rule.moving)
        and (rule.joint or len(moving) == 1)
    )


def _spread_by_matrix(step: Step, like: Tensor) -> Callable[[Tensor], Tensor]:
    """Return how a step of one source carries distances, from its matrix written out."""
    if step.shape.numel() * like.numel() > _MAX_MATRIX:
        raise UnsupportedModelError(
            f"model: {step} is too large to be written out as a matrix; {INSTEAD}"
        )
    with torch.enable_grad():
        matrix = torch.autograd.functional.jacobian(
            step.run, torch.zeros_like(like), vectorize=True
        ).abs()
    return lambda radius: torch.tensordot(matrix.to(radius), radius, like.ndim)


def _mapped(
    rule: AffineRule, arguments: dict[str, Any], factor: Callable[[Any], Any]
) -> dict[str, Any]:
    """Return the arguments with a function of each factor, and nothing added."""

    def mapped(entry: Any, function: Callable) -> Any:
        if is_moving(entry) or entry is None:
            return entry
        if isinstance(entry, (list, tuple)):
            return [mapped(item, function) for item in entry]
        return function(entry)

    result = dict(arguments)
    for names, function in ((rule.factors, factor), (rule.added, _zero)):
        result.update({key: mapped(arguments[key], function) for key in names if key in arguments})
    return result


def _in_type(entry: Any, dtype: torch.dtype) -> Any:
    """Return arguments with floating-point constants, and types, of less precision in a type."""
    if isinstance(entry, dict):
        return {key: _in_type(value, dtype) for key, value in entry.items()}
    if isinstance(entry, (list, tuple)) and not is_moving(entry):
        return [_in_type(value, dtype) for value in entry]
    if isinstance(entry, torch.dtype):
        return dtype if _is_wider(dtype, entry) else entry
    is_other = isinstance(entry, Tensor) and _is_wider(dtype, entry.dtype)
    return entry.to(dtype) if is_other else entry


def _is_wider(dtype: torch.dtype, other: torch.dtype) -> bool:
    """Return whether a floating-point type holds all numbers of another one."""
    is_float = dtype.is_floating_point and other.is_floating_point
    return is_float and dtype != other and torch.promote_types(dtype, other) == dtype


def _zero(entry: Any) -> Any:
    return torch.zeros_like(entry) if isinstance(entry, Tensor) else 0


def _is_rising(factor: Any) -> bool:
    """Return whether no constant in a factor is negative."""
    if isinstance(factor, (list, tuple)):
        return all(map(_is_rising, factor))
    if isinstance(factor, Moving) or factor is None:
        return True
    return bool((factor >= 0).all()) if isinstance(factor, Tensor) else factor >= 0
