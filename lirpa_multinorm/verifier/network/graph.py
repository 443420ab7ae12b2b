"""A piecewise-linear network as a list of affine operators and ReLUs."""

from __future__ import annotations

import math
from collections.abc import Container, Sequence
from typing import Any, Callable, NamedTuple

import torch
from torch import Tensor


class Step(NamedTuple):
    """One operator of a network, as it acts on one example (a batch of one).

    Args:
        operator: torch's name of it, such as "conv2d"; "input" and "relu" beside the affine ones.
        place: Where in the model it stands, for messages.
        sources: The places in the graph of the steps whose values it takes.
        run: Its value from theirs; takes other constants than its own by name.
        spread: How far its value moves where each of theirs moves by so much: ``|W| r`` of ``W a +
            b``.
        shape: Shape of its value.
        monotone: Whether no coefficient is negative, so that the operator maps the ends of an
            interval to its ends.
        arguments: Its other arguments by name, as torch calls them.
        squared: Like ``spread``, with the squares of the coefficients; None where they are not
            known.
    """

    operator: str
    place: str
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
        return f"{self.operator} at {self.place}"


class ModelGraph:
    """A network of one input, in an order in which every step stands behind those it depends on.

    Args:
        steps: The first one is the input.
        output: The place of the output.
        like: Tensor of the type and on the device of its values.
    """

    def __init__(self, steps: Sequence[Step], output: int, like: Tensor) -> None:
        self.steps, self.output, self.like = list(steps), output, like
        #: The places of the ReLUs that the output depends on.
        self.relus = [
            place for place in self.needed([output], [0]) if steps[place].operator == "relu"
        ]

    @property
    def layers(self) -> list[int]:
        """The places whose values the ReLUs take, and of the output."""
        return [*[self.steps[relu].sources[0] for relu in self.relus], self.output]

    def batched(
        self,
        function: Callable[[dict[int, Any]], Sequence[Tensor]],
        wanted: Sequence[int],
        *known: dict[int, Tensor],
    ) -> list[Tensor]:
        """Apply a function of values of single examples to those of a batch.

        Args:
            function: Takes dictionaries of values by place, each of the step's shape.
            wanted: The places whose shapes its results have.
            *known: Values of a batch by place, (B, ...) each.

        Returns:
            The results, (B, *example_shape) each.
        """
        sizes = [len(one) for one in known]
        keys = [place for one in known for place in one]

        def single(*values: Tensor) -> tuple[Tensor, ...]:
            """Apply the function to one example of the batch, in the shapes of a batch of one."""
            shaped, given = iter(zip(keys, values)), []
            for size in sizes:
                given.append(
                    {
                        place: value.reshape(self.steps[place].shape)
                        for place, value in (next(shaped) for _ in range(size))
                    }
                )
            results = function(*given)
            return tuple(
                value.reshape(self.steps[place].example_shape)
                for place, value in zip(wanted, results)
            )

        return list(torch.vmap(single)(*[value for one in known for value in one.values()]))

    def values(self, wanted: Sequence[int], known: dict[int, Tensor]) -> list[Tensor]:
        """Return the values of some steps for a batch, from those of other steps.

        Args:
            wanted: Their places.
            known: Values by place, (B, ...) each; steps that only they depend on are left out.
        """
        return self.batched(lambda values: self.single_values(wanted, values), wanted, known)

    def single_values(self, wanted: Sequence[int], known: dict[int, Tensor]) -> list[Tensor]:
        """Return the values of some steps for one example; see :meth:`values`."""
        values = dict(known)
        for place in self.needed(wanted, known):
            step = self.steps[place]
            values[place] = step.run(*[values[source] for source in step.sources])
        return [values[place] for place in wanted]

    def interval(
        self, wanted: Sequence[int], lower: dict[int, Tensor], upper: dict[int, Tensor]
    ) -> list[tuple[Tensor, Tensor]]:
        """Bound the values of some steps for a batch by interval arithmetic.

        Args:
            wanted: Their places.
            lower: Lower ends of known intervals by place, (B, ...) each.
            upper: Upper ends.

        Returns:
            (lower, upper) of each.
        """
        places = [place for place in wanted for _ in range(2)]
        ends = self.batched(
            lambda low, high: self._single_interval(wanted, low, high), places, lower, upper
        )
        return list(zip(ends[::2], ends[1::2]))

    def _single_interval(
        self, wanted: Sequence[int], lower: dict[int, Tensor], upper: dict[int, Tensor]
    ) -> list[Tensor]:
        ends = {place: (lower[place], upper[place]) for place in lower}
        for place in self.needed(wanted, lower):
            step = self.steps[place]
            low, high = zip(*[ends[source] for source in step.sources])
            if step.monotone:
                ends[place] = step.run(*low), step.run(*high)
            else:
                middle = step.run(*[(one + other) / 2 for one, other in zip(low, high)])
                radius = step.spread(*[(other - one) / 2 for one, other in zip(low, high)])
                ends[place] = middle - radius, middle + radius
        return [end for place in wanted for end in ends[place]]

    def needed(self, wanted: Sequence[int], known: Container[int]) -> list[int]:
        """Return the places whose values must be worked out for those of some steps, in order."""
        found: set[int] = set()
        stack = [place for place in wanted if place not in known]
        while stack:
            place = stack.pop()
            if place not in found:
                found.add(place)
                stack.extend(source for source in self.steps[place].sources if source not in known)
        return sorted(found)


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
    moves = [torch.zeros_like(one) for one in like]
    moves[source] = torch.ones_like(moves[source]).requires_grad_()
    with torch.enable_grad():
        rows = step.spread(*moves)
        (columns,) = torch.autograd.grad(rows.sum(), moves[source])
    return math.sqrt(float(rows.detach().max()) * float(columns.max()))
