"""A piecewise-linear network as a list of affine operators and ReLUs."""

from __future__ import annotations

import math
from collections.abc import Container, Sequence
from typing import Any, Callable, NamedTuple

import torch
from torch import Tensor

_BARRIERS = ("relu", "minmax")  # the operators that are not affine


class Step(NamedTuple):
    """One operator of a network, as it acts on one example (a batch of one).

    Args:
        operator: torch's name of it, such as "conv2d"; "input" and "relu" beside the affine ones,
            and in a :class:`.minmax.PairedGraph` "minmax".
        path: The path in the model of the module that runs it, for messages.
        sources: The indices of the steps whose values it takes.
        run: Its value as a function of theirs; constants given by name replace those of the model.
        spread: How far its value moves where the values of the sources move by given distances:
            ``|W| r`` of ``W a + b``.
        shape: The shape of its value.
        monotone: Whether no coefficient is negative, so that the operator maps the bounds of an
            interval to bounds.
        arguments: The other arguments by name, as torch calls them.
        squared: Like ``spread``, with the squares of the coefficients; None where they are not
            available.
    """

    operator: str
    path: str
    sources: tuple[int, ...]
    run: Callable[..., Tensor]
    spread: Callable[..., Tensor]
    shape: torch.Size
    monotone: bool = True
    arguments: dict[str, Any] = {}
    squared: Callable[..., Tensor] | None = None

    @property
    def example_shape(self) -> torch.Size:
        """The shape without the batch of one in front, if it stands there."""
        return self.shape[1:] if len(self.shape) > 1 and self.shape[0] == 1 else self.shape

    def __str__(self) -> str:
        return f"{self.operator} at {self.path}"


class ModelGraph:
    """A network of one input as steps, each behind the steps that it depends on.

    A step is referred to by its index.

    Args:
        steps: The steps; the first is the input.
        output: The index of the output.
        like: Tensor of the type and on the device of its values.
    """

    def __init__(self, steps: Sequence[Step], output: int, like: Tensor) -> None:
        self.steps, self.output, self.like = list(steps), output, like
        #: The indices of the ReLUs that the output depends on, and of MinMax steps.
        self.relus = [
            index for index in self.needed([output], [0]) if steps[index].operator in _BARRIERS
        ]

    @property
    def layers(self) -> list[int]:
        """The indices of the steps whose values the ReLUs take, and of the output."""
        return [*[self.steps[relu].sources[0] for relu in self.relus], self.output]

    def batched(
        self,
        function: Callable[..., Sequence[Tensor]],
        wanted: Sequence[int],
        *given: dict[int, Tensor],
    ) -> list[Tensor]:
        """Apply a function of values of single examples to those of a batch.

        Args:
            function: Takes dictionaries of values by index, each of the step's shape.
            wanted: The indices of the steps whose shapes its results have.
            *given: Values of a batch by index, (B, ...) each.

        Returns:
            The results, (B, *example_shape) each.
        """
        keys = [list(values) for values in given]

        def single(*tensors: Tensor) -> tuple[Tensor, ...]:
            """Apply the function to one example of the batch, in the shapes of a batch of one."""
            values = iter(tensors)
            arguments = [
                {index: next(values).reshape(self.steps[index].shape) for index in indices}
                for indices in keys
            ]
            results = function(*arguments)
            return tuple(
                value.reshape(self.steps[index].example_shape)
                for index, value in zip(wanted, results)
            )

        return list(torch.vmap(single)(*[value for values in given for value in values.values()]))

    def values(self, wanted: Sequence[int], given: dict[int, Tensor]) -> list[Tensor]:
        """Return the values of some steps for a batch, from those of other steps.

        Args:
            wanted: The indices of the steps.
            given: Values by index, (B, ...) each; steps that only they depend on are left out.
        """
        return self.batched(lambda values: self.single_values(wanted, values), wanted, given)

    def single_values(self, wanted: Sequence[int], given: dict[int, Tensor]) -> list[Tensor]:
        """Return the values of some steps for one example; see :meth:`values`."""
        values = dict(given)
        for index in self.needed(wanted, given):
            step = self.steps[index]
            values[index] = step.run(*[values[source] for source in step.sources])
        return [values[index] for index in wanted]

    def single_moves(self, wanted: Sequence[int], given: dict[int, Tensor]) -> list[Tensor]:
        """Return how far some steps move for one example, from how far other steps move."""
        moves = dict(given)
        for index in self.needed(wanted, given):
            step = self.steps[index]
            moves[index] = step.spread(*[moves[source] for source in step.sources])
        return [moves[index] for index in wanted]

    def interval(
        self, wanted: Sequence[int], lower: dict[int, Tensor], upper: dict[int, Tensor]
    ) -> list[tuple[Tensor, Tensor]]:
        """Bound the values of some steps for a batch by interval arithmetic.

        Args:
            wanted: The indices of the steps.
            lower: Lower bounds of the given intervals by index, (B, ...) each.
            upper: Upper bounds of the given intervals by index, (B, ...) each.

        Returns:
            (lower, upper) of each step.
        """

        def single_intervals(
            lower: dict[int, Tensor], upper: dict[int, Tensor]
        ) -> Sequence[Tensor]:
            return self._single_intervals(wanted, lower, upper)

        twice = [index for index in wanted for _ in range(2)]
        bounds = self.batched(single_intervals, twice, lower, upper)
        return list(zip(bounds[::2], bounds[1::2]))

    def _single_intervals(
        self, wanted: Sequence[int], lower: dict[int, Tensor], upper: dict[int, Tensor]
    ) -> list[Tensor]:
        """Return the lower and the upper bound of each step in turn, for one example."""
        intervals = {index: (lower[index], upper[index]) for index in lower}
        for index in self.needed(wanted, lower):
            step = self.steps[index]
            inputs = [intervals[source] for source in step.sources]
            if step.monotone:
                lowest = step.run(*[interval[0] for interval in inputs])
                intervals[index] = lowest, step.run(*[interval[1] for interval in inputs])
            else:
                middle = step.run(*[(below + above) / 2 for below, above in inputs])
                radius = step.spread(*[(above - below) / 2 for below, above in inputs])
                intervals[index] = middle - radius, middle + radius
        return [bound for index in wanted for bound in intervals[index]]

    def needed(self, wanted: Sequence[int], given: Container[int]) -> list[int]:
        """Return the indices, rising, of the steps to run for the values of some steps."""
        needed: set[int] = set()
        stack = [index for index in wanted if index not in given]
        while stack:
            index = stack.pop()
            if index not in needed:
                needed.add(index)
                stack.extend(source for source in self.steps[index].sources if source not in given)
        return sorted(needed)


def schur_norm(step: Step, like: Sequence[Tensor], source: int) -> float:
    """Return a bound of how much an affine step lengthens l_2 distances of one of its sources.

    ``||W||_2 <= sqrt(||W||_1 ||W||_inf)`` (I. Schur): the root of its largest column sum times its
    largest row sum, of absolute values. It is exact where nothing is added up (reshapes, scales,
    copies) and for means that do not overlap.

    Args:
        step: The step.
        like: A value of each of its sources, of which only shape, type and device matter.
        source: Which of them.
    """
    moves = [torch.zeros_like(value) for value in like]
    moves[source] = torch.ones_like(moves[source]).requires_grad_()
    with torch.enable_grad():
        rows = step.spread(*moves)
        (columns,) = torch.autograd.grad(rows.sum(), moves[source])
    return math.sqrt(float(rows.detach().max()) * float(columns.max()))
