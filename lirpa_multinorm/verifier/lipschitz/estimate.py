"""Lipschitz constants for training: estimates that follow the weights, with gradients.

Nothing is certified by them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import NaNBoundError
from ...host import Statistics
from ...tracing.staleness import Watch
from ...utils.modes import evaluating
from .. import network
from .linear_maps import LinearMaps, Options, detached

#: Vectors iterated together: a single one lags behind, since training brings singular values
#: together.
_VECTORS = 16
_FIRST_STEPS, _STEPS = 20, 1  # of iteration: from random vectors, and from those of the last call
_COLUMNS, _NEXT_COLUMNS = 32, 32  # longest ones kept from call to call, and next ones tried
#: The indices in the graph of a layer, and of the input or a ReLU that it sees; -1: the input,
#: which moves in l_1.
Pair = tuple[int, int]
_INPUT_IN_L1 = -1


class LipschitzEstimate:
    """Lipschitz constants of a piecewise-linear model by power iteration, kept from step to step.

    ``L_j = sum over i < j of ||A_ji|| L_i`` as :func:`.constants.lipschitz_bounds` has it, with
    A_ji the linear map from the input or a ReLU to the layer in front of the next ReLU, whatever
    lies between. Subspace iteration gives each norm from below, so this is an **estimate**;
    gradients flow through its last step only, with the vectors fixed. Of an input that moves in
    l_1, ``||A_j0||`` is the largest l_2 norm of a column: the longest ones are remembered, and some
    others are tried in turn.

    Args:
        model: The model; its graph is read in eval mode.
        x: An input, (1, ...).
        vectors: The vectors of the power iteration by (layer, source), to go on from; they are
            overwritten.

    Raises:
        UnsupportedModelError: The model is not piecewise linear, or computes a weight from another;
            the message names it.

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
            graph = network.model_graph(model, x.detach(), live=True)
        self.graph = network.paired(graph).graph
        self._watch.settle()
        self._vectors = {} if vectors is None else vectors
        self._maps = LinearMaps(self.graph, model)

    def is_of(self, x: Tensor) -> bool:
        """Return whether the model is as it was read and takes inputs like x (1, ...).

        The values of its weights may have changed.
        """
        like = self.graph.like
        is_alike = (x.shape, x.dtype, x.device) == (like.shape, like.dtype, like.device)
        return is_alike and not self._watch.is_stale()

    def layers(
        self, statistics: Statistics | None = None, norms: Sequence[float] = (2,)
    ) -> list[list[Tensor]]:
        """Return how far each ReLU's input moves in l_2 where the input moves by 1, scalars.

        Args:
            statistics: What BatchNorm layers in training normalise by; the others do by their
                running statistics.
            norms: The norms that the input moves in, 2 or 1; there is a list for each.
        """
        options, zero = self._maps.options(statistics or {}), self.graph.like.new_zeros(())
        constants_of = [[torch.ones_like(self.graph.like.flatten()[:1]).squeeze()] for _ in norms]
        for target in self.graph.layers[:-1]:
            visible = [
                (index, source)
                for index, source in enumerate(self._maps.sources)
                if self._maps.sees(target, source)
            ]
            inner = {
                index: self._norm(target, source, options) for index, source in visible if index
            }
            for constants, norm in zip(constants_of, norms):
                of_input = {0: self._input_norm(target, options, norm)} if (0, 0) in visible else {}
                lengths = {**of_input, **inner}
                terms = [length * constants[index] for index, length in lengths.items()]
                constants.append(sum(terms, start=zero))
        return [constants[1:] for constants in constants_of]

    def class_falls(
        self, statistics: Statistics | None = None, norms: Sequence[float] = (2,)
    ) -> list[Tensor]:
        """Return how far ``f_i - f_k`` can fall where the input moves by 1, (K, K).

        This is an estimate, with gradients.

        Args:
            statistics: See :meth:`layers`.
            norms: The norms that the input moves in, 2 or 1; there is a matrix for each.
        """
        options, output = self._maps.options(statistics or {}), self.graph.output
        all_constants = self.layers(statistics, norms)
        falls = [self.graph.like.new_zeros(()) for _ in norms]
        for index, source in enumerate(self._maps.sources):
            if not self._maps.sees(output, source):
                continue
            rows = self._maps.rows(source, options)
            differences = rows.unsqueeze(1) - rows.unsqueeze(0)
            for i, (constants, norm) in enumerate(zip(all_constants, norms)):
                if index == 0 and norm == 1:
                    falls[i] = falls[i] + differences.abs().amax(2)
                else:
                    constant = constants[index - 1] if index else 1.0
                    falls[i] = falls[i] + _lengths(differences) * constant
        return falls

    def _input_norm(self, target: int, options: Options, norm: float) -> Tensor:
        """Return the norm of the linear map from the input to a layer."""
        if norm == 1:
            return self._longest_column(target, options)
        return self._norm(target, 0, options)

    def _longest_column(self, target: int, options: Options) -> Tensor:
        """Return the largest l_2 norm of some columns: the longest so far, and the next in turn."""
        count = self.graph.like.numel()
        # The longest columns, and behind them the column to go on at.
        remembered = self._vectors.get((target, _INPUT_IN_L1))
        if remembered is None:
            candidates = torch.arange(count, device="cpu")
        else:
            following = (remembered[-1] + torch.arange(_NEXT_COLUMNS, device="cpu")) % count
            candidates = torch.cat([remembered[:-1], following]).unique()
        with torch.no_grad():
            columns = self._maps.columns(target, candidates, detached(options))
        lengths = torch.linalg.vector_norm(columns, dim=1).cpu()
        order = lengths.argsort(descending=True, stable=True)[:_COLUMNS]
        start = (0 if remembered is None else int(remembered[-1]) + _NEXT_COLUMNS) % count
        self._vectors[target, _INPUT_IN_L1] = torch.cat(
            [candidates[order], order.new_tensor([start])]
        )
        return torch.linalg.vector_norm(self._maps.columns(target, candidates[order[:1]], options))

    def _norm(self, target: int, source: int, options: Options) -> Tensor:
        """Return a linear map's norm at the best vector of a small subspace.

        The subspace is kept from call to call.
        """
        shape, frozen = self.graph.steps[source].shape, detached(options)
        basis, steps = self._vectors.get((target, source)), _STEPS
        if basis is None or basis.shape[1:] != shape:
            generator = torch.Generator().manual_seed(len(self._vectors))
            count = min(_VECTORS, shape.numel())
            basis = _orthonormal(torch.randn(count, *shape, generator=generator, device="cpu"))
            steps = _FIRST_STEPS
        basis = basis.to(self.graph.like)
        with torch.no_grad():
            shift = self._maps.shift(target, source, frozen)
        for _ in range(steps):
            basis, largest = self._stepped(target, source, basis, shift, frozen)
        self._vectors[target, source] = basis
        value = self._maps.value(target, source, largest, options)
        return (value - self._maps.shift(target, source, options)).norm()

    def _stepped(
        self, target: int, source: int, basis: Tensor, shift: Any, options: Options
    ) -> tuple[Tensor, Tensor]:
        """Return an orthonormal basis of ``A^T A`` times a subspace, and its best vector.

        The vector is the combination of the given basis that A lengthens most. The given basis is
        orthonormal too: a random one is made so, and the others come from here.
        """
        moving = basis.clone().requires_grad_()
        with torch.enable_grad():
            values = torch.vmap(lambda vector: self._maps.value(target, source, vector, options))(
                moving
            )
            changes = values.detach() - shift
            (images,) = torch.autograd.grad(values, moving, changes)
        flat = changes.flatten(1)
        if not bool(torch.isfinite(flat).all()):
            raise NaNBoundError(
                f"the Lipschitz constant of {self.graph.steps[target]} is NaN or infinite; check"
                " the model's weights, or lower the learning rate"
            )
        # Rayleigh and Ritz: the best combination.
        weights = torch.linalg.eigh(flat @ flat.T)[1][:, -1]
        return _orthonormal(images), torch.tensordot(weights, basis, 1)


def _lengths(differences: Tensor) -> Tensor:
    """Return the l_2 norms of differences of rows, (K, K).

    A root has no slope at the zeros of the diagonal.
    """
    squares = differences.square().sum(2)
    same = torch.eye(len(squares), dtype=squares.dtype, device=squares.device)
    return (squares + same).sqrt() - same


def _orthonormal(vectors: Tensor) -> Tensor:
    """Return an orthonormal basis, (p, ...), of the span of vectors.

    Where the vectors vanish, the basis has any other directions.
    """
    return torch.linalg.qr(vectors.flatten(1).T)[0].T.reshape(vectors.shape)
