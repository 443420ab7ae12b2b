"""Lipschitz constants for training: estimates that follow the weights, with gradients.

Nothing is certified by them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ...errors import NaNBoundError
from ...host import Statistics
from ...tracing.staleness import Watch
from ...utils.modes import evaluating
from .. import network
from ..network.affine_operators import CONVOLUTIONS, COPIES, DROPOUTS, RESHAPES, SUMS

_VECTORS = (
    32  # iterated together: one alone lags behind, since training brings singular values together
)
_FIRST_STEPS, _STEPS = 20, 1  # of iteration: from random vectors, and from those of the last call
_COLUMNS, _NEXT_COLUMNS = 32, 32  # kept as the longest from call to call, and looked at beside them
_PART = 256  # columns at once
_BIASED = ("linear", *CONVOLUTIONS)
_SUMS_OF_TWO = ("add", "sub", "rsub")  # a constant is added where there is one source only
_WITHOUT_CONSTANTS = (*RESHAPES, *COPIES, *SUMS, *DROPOUTS, "neg", "mul", "div", "index", "relu")
#: The places in the graph of a layer, and of the input or a ReLU that it sees; -1: the input, which
#: moves in l_1.
Pair = tuple[int, int]
_INPUT_IN_L1 = -1


class LipschitzEstimate:
    """Lipschitz constants of a piecewise-linear model by power iteration, kept from step to step.

    ``L_j = sum over i < j of ||A_ji|| L_i`` as :func:`.lipschitz.lipschitz_bounds` has it, with
    A_ji the linear map from the input or a ReLU to the layer in front of the next ReLU, whatever
    lies between. Subspace iteration gives each norm from below, so this is an **estimate**;
    gradients flow through its last step only, with the vectors fixed. Of an input that moves in
    l_1, ``||A_j0||`` is the largest l_2 norm of a column: the longest ones are remembered, and some
    others are looked at in turn.

    Args:
        model: The model; its graph is read in eval mode.
        x: An input, (1, ...).
        vectors: The vectors of the power iteration by (layer, source), to go on from; changed in
            place.

    Raises:
        UnsupportedModelError: The model is not piecewise linear, or computes a weight from another;
            named.

    Source: Miyato et al. 2018 (spectral normalisation: one step from the last vectors); Tsuzuku et
        al. 2018 (margins).

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 3))
        >>> _ = model[0].weight.data.copy_(torch.tensor([[3., 0.], [0., 4.]]))
        >>> [[constant]] = LipschitzEstimate(model, torch.zeros(1, 2)).layers()
        >>> round(float(constant.detach()), 4)
        4.0
    """

    def __init__(
        self, model: nn.Module, x: Tensor, vectors: dict[Pair, Tensor] | None = None
    ) -> None:
        self._watch = Watch(model)
        with evaluating(model):
            self.graph = network.model_graph(model, x.detach(), live=True)
        self._watch.settle()
        self._vectors = {} if vectors is None else vectors
        self._norms = self._batch_norms(model)

    def is_of(self, x: Tensor) -> bool:
        """Whether the model is as it was read and takes inputs like x (1, ...).

        The values of its weights may have changed.
        """
        like = self.graph.like
        return (x.shape, x.dtype, x.device) == (
            like.shape,
            like.dtype,
            like.device,
        ) and not self._watch.is_stale()

    def layers(
        self, statistics: Statistics | None = None, norms: Sequence[float] = (2,)
    ) -> list[list[Tensor]]:
        """Return how far each ReLU's input moves in l_2 where the input moves by 1, scalars.

        Args:
            statistics: What BatchNorm layers in training normalise by; the others do by their
                running statistics.
            norms: Which the input moves in, 2 or 1; there is a list for each.
        """
        options = self._options(statistics or {})
        found = [[torch.ones_like(self.graph.like.flatten()[:1]).squeeze()] for _ in norms]
        for target in self.graph.layers[:-1]:
            seen = [
                (place, source)
                for place, source in enumerate(self._sources)
                if self._sees(target, source)
            ]
            inner = {place: self._norm(target, source, options) for place, source in seen if place}
            for constants, norm in zip(found, norms):
                of_input = {0: self._input_norm(target, options, norm)} if (0, 0) in seen else {}
                constants.append(
                    sum(
                        length * constants[place] for place, length in {**of_input, **inner}.items()
                    )
                )
        return [constants[1:] for constants in found]

    def class_falls(
        self, statistics: Statistics | None = None, norms: Sequence[float] = (2,)
    ) -> list[Tensor]:
        """Return how far ``f_i - f_k`` can fall where the input moves by 1, (K, K).

        An estimate, with gradients.

        Args:
            statistics: See :meth:`layers`.
            norms: Which the input moves in, 2 or 1; there is a matrix for each.
        """
        options, output = self._options(statistics or {}), self.graph.output
        every, falls = self.layers(statistics, norms), [0.0 for _ in norms]
        for place, source in enumerate(self._sources):
            if not self._sees(output, source):
                continue
            rows = self._rows(source, options)
            differences = rows.unsqueeze(1) - rows.unsqueeze(0)
            for i, (constants, norm) in enumerate(zip(every, norms)):
                if place == 0 and norm == 1:
                    falls[i] = falls[i] + differences.abs().amax(2)
                else:
                    falls[i] = falls[i] + _lengths(differences) * (
                        constants[place - 1] if place else 1.0
                    )
        return falls

    @property
    def _sources(self) -> list[int]:
        return [0, *self.graph.relus]

    def _sees(self, target: int, source: int) -> bool:
        others = [place for place in self._sources if place != source]
        return source == target or source in {
            step
            for place in self.graph.needed([target], self._sources)
            for step in self.graph.steps[place].sources
        } - set(others)

    # --- linear maps ------------------------------------------------------------------------------

    def _value(self, target: int, source: int, value: Tensor, options: dict[int, dict]) -> Tensor:
        """Return a step's value where a source has this one and the others are zero."""
        values = {
            place: value if place == source else value.new_zeros(self.graph.steps[place].shape)
            for place in self._sources
        }
        for place in self.graph.needed([target], values):
            step = self.graph.steps[place]
            values[place] = step.run(
                *[values[before] for before in step.sources], **options.get(place, {})
            )
        return values[target]

    def _input_norm(self, target: int, options: dict[int, dict], norm: float) -> Tensor:
        """Return the norm of the linear map from the input to a layer."""
        return (
            self._longest_column(target, options) if norm == 1 else self._norm(target, 0, options)
        )

    def _longest_column(self, target: int, options: dict[int, dict]) -> Tensor:
        """Return the largest l_2 norm of a column.

        Of those that were the longest, and of the next ones in turn.
        """
        count, frozen = self.graph.like.numel(), _detached(options)
        known = self._vectors.get((target, _INPUT_IN_L1))  # the longest columns, and where to go on
        places = (
            torch.arange(count)
            if known is None
            else (
                torch.cat([known[:-1], (known[-1] + torch.arange(_NEXT_COLUMNS)) % count]).unique()
            )
        )
        with torch.no_grad():
            columns = self._columns(target, places, frozen)
        lengths = torch.linalg.vector_norm(columns, dim=1).cpu()
        order = lengths.argsort(descending=True, stable=True)[:_COLUMNS]
        start = (0 if known is None else int(known[-1]) + _NEXT_COLUMNS) % count
        self._vectors[target, _INPUT_IN_L1] = torch.cat([places[order], torch.tensor([start])])
        return torch.linalg.vector_norm(self._columns(target, places[order[:1]], options))

    def _columns(self, target: int, places: Tensor, options: dict[int, dict]) -> Tensor:
        """Return columns of the linear map from the input to a layer, (p, n)."""
        like, shift = self.graph.like, self._shift(target, 0, options)
        one_hot = torch.zeros(len(places), like.numel(), dtype=like.dtype, device=like.device)
        one_hot[torch.arange(len(places)), places] = 1
        return torch.cat(
            [
                torch.vmap(
                    lambda vector: (self._value(target, 0, vector, options) - shift).flatten()
                )(part)
                for part in one_hot.view(-1, *like.shape).split(_PART)
            ]
        )

    def _norm(self, target: int, source: int, options: dict[int, dict]) -> Tensor:
        """Return a linear map's norm at the best vector of a small subspace.

        The subspace is kept from call to call.
        """
        shape, frozen = self.graph.steps[source].shape, _detached(options)
        basis, steps = self._vectors.get((target, source)), _STEPS
        if basis is None or basis.shape[1:] != shape:
            generator = torch.Generator().manual_seed(len(self._vectors))
            basis = _orthonormal(
                torch.randn(min(_VECTORS, shape.numel()), *shape, generator=generator)
            )
            steps = _FIRST_STEPS
        basis = basis.to(self.graph.like)
        with torch.no_grad():
            shift = self._shift(target, source, frozen)
        for _ in range(steps):
            basis, largest = self._stepped(target, source, basis, shift, frozen)
        self._vectors[target, source] = basis
        return (
            self._value(target, source, largest, options) - self._shift(target, source, options)
        ).norm()

    def _shift(self, target: int, source: int, options: dict[int, dict]) -> Any:
        """Return a step's value where all sources are zero.

        0 where nothing between adds a constant.
        """
        if not any(
            self._adds(self.graph.steps[place])
            for place in self.graph.needed([target], self._sources)
        ):
            return 0.0
        return self._value(
            target, source, self.graph.like.new_zeros(self.graph.steps[source].shape), options
        )

    @staticmethod
    def _adds(step: network.Step) -> bool:
        """Whether a step adds a constant that :meth:`_options` cannot leave out."""
        alone = step.operator in _SUMS_OF_TWO and len(step.sources) < 2
        return alone or step.operator not in (
            *_SUMS_OF_TWO,
            *_WITHOUT_CONSTANTS,
            *_BIASED,
            "batch_norm",
        )

    def _stepped(
        self, target: int, source: int, basis: Tensor, shift: Any, options: dict[int, dict]
    ) -> tuple[Tensor, Tensor]:
        """Return an orthonormal basis of ``A^T A`` times a subspace, and one vector of it.

        A lengthens this vector most.

        The basis given is orthonormal too: a random one is made so, and the others come from here.
        """
        moving = basis.clone().requires_grad_()
        with torch.enable_grad():
            values = torch.vmap(lambda vector: self._value(target, source, vector, options))(moving)
            changes = values.detach() - shift
            (images,) = torch.autograd.grad(values, moving, changes)
        flat = changes.flatten(1)
        if not bool(torch.isfinite(flat).all()):
            raise NaNBoundError(
                f"the Lipschitz constant of {self.graph.steps[target]} is NaN or infinite; check"
                " the model's weights, or lower the learning rate"
            )
        weights = torch.linalg.eigh(flat @ flat.T)[1][
            :, -1
        ]  # Rayleigh and Ritz: the best combination
        return _orthonormal(images), torch.tensordot(weights, basis, 1)

    def _rows(self, source: int, options: dict[int, dict]) -> Tensor:
        """Return the linear map from a source to the output as a matrix (K, n)."""
        create = torch.is_grad_enabled()
        moving = self.graph.like.new_zeros(self.graph.steps[source].shape).requires_grad_()
        with torch.enable_grad():
            output = self._value(self.graph.output, source, moving, options).flatten()
            (rows,) = torch.autograd.grad(
                output,
                moving,
                torch.eye(len(output)).to(output),
                create_graph=create,
                is_grads_batched=True,
            )
        return rows.flatten(1)

    # --- constants of the steps -------------------------------------------------------------------

    def _batch_norms(self, model: nn.Module) -> dict[int, nn.Module]:
        """Return the layer of each BatchNorm step of the graph."""
        layers = {
            layer.running_var.data_ptr(): layer
            for layer in model.modules()
            if isinstance(layer, _BatchNorm) and layer.running_var is not None
        }
        return {
            place: layers[step.arguments["running_var"].data_ptr()]
            for place, step in enumerate(self.graph.steps)
            if step.operator == "batch_norm" and step.arguments["running_var"].data_ptr() in layers
        }

    def _options(self, statistics: Statistics) -> dict[int, dict]:
        """Return the constants that steps take instead of their own.

        Nothing is added, variances are those given.
        """
        used: dict[nn.Module, int] = {}
        options = {
            place: {"bias": None}
            for place, step in enumerate(self.graph.steps)
            if step.operator in _BIASED
        }
        for place, step in enumerate(self.graph.steps):
            if step.operator == "batch_norm":
                options[place] = {
                    "bias": None,
                    "running_mean": torch.zeros_like(step.arguments["running_mean"]),
                }
        for place, layer in self._norms.items():
            call = used.get(layer, 0)
            if call < len(statistics.get(layer, [])):
                options[place]["running_var"], used[layer] = statistics[layer][call][1], call + 1
        return options


def _lengths(differences: Tensor) -> Tensor:
    """Return the l_2 norms of differences of rows, (K, K).

    A root has no slope at the zeros of the diagonal.
    """
    squares = differences.square().sum(2)
    same = torch.eye(len(squares), dtype=squares.dtype, device=squares.device)
    return (squares + same).sqrt() - same


def _orthonormal(vectors: Tensor) -> Tensor:
    """Return an orthonormal basis, (p, ...), of what vectors span.

    Any other directions where they vanish.
    """
    return torch.linalg.qr(vectors.flatten(1).T)[0].T.reshape(vectors.shape)


def _detached(options: dict[int, dict]) -> dict[int, dict]:
    return {
        place: {
            name: value if value is None else value.detach() for name, value in constants.items()
        }
        for place, constants in options.items()
    }
