"""Certified losses over several norms: one term per set, combined as CURE does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Callable, NamedTuple, cast

import torch
from torch import Tensor, nn

from ..attacks import AttackSettings
from ..attacks.geometry import Randomness, uniform
from ..bounds import BoundedModule, IntermediateIntervals, margin_matrix
from ..bounds.margins import check_labels
from ..errors import InvalidArgumentError
from ..utils import distributed
from ..utils.deferred import checked_together, note_labels
from .alignment import Alignment, bound_alignment
from .lipschitz import lipschitz_margins
from .propagation import Propagated, propagated
from .regions import TRAINING_ATTACK, AnyTerm, find_regions
from .split_terms import SplitTerm
from .terms import LossTerm
from .worst_parts import worst_parts


class LossResult(NamedTuple):
    """A loss with its terms.

    Args:
        value: The loss, a scalar to differentiate.
        margins: Lower margin bounds (B_i, K - 1) of each term on its training region; estimates
            for "lipschitz" and TAPS (:attr:`LossTerm.is_estimate`).
        per_example: Loss of each example, (B_i,) per term.
        parts: Parts of the value by name ("alignment", before its weight eta), for the log.
        hidden: Bounds inside the network, on the term that regularisers look at; None where no
            region is propagated.
        logits: The network's outputs (B, K) in the clean pass, for a natural loss.
    """

    value: Tensor
    margins: list[Tensor]
    per_example: list[Tensor]
    parts: dict[str, Tensor]
    hidden: IntermediateIntervals | None
    logits: Tensor

    def __repr__(self) -> str:
        """Return the value, the parts and the shapes, in one line."""
        parts = "".join(f", {name}={float(part):.4g}" for name, part in self.parts.items())
        margins = ", ".join(str(tuple(margin.shape)) for margin in self.margins)
        return f"LossResult(value={float(self.value):.4g}{parts}, margins of shapes [{margins}])"


def joint(losses: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Return the weighted sum of the terms' mean losses: ``(1 - alpha) a + alpha b`` for two."""
    total = sum(weight * distributed.mean(loss) for weight, loss in zip(weights, losses))
    return cast(Tensor, total)


def worst(losses: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Return the mean over examples of the largest term loss: ``mean_i max(a_i, b_i)``."""
    return distributed.mean(torch.stack(list(losses)).amax(dim=0))


#: How term losses become one number.
COMBINE: dict[str, Callable] = {"joint": joint, "max": worst, "random": joint}
BLOCKS = ("partition", "overlapping")


class MultiNormLoss:
    """A certified training loss, for use in any training loop.

    A call makes the clean pass, whose statistics BatchNorm is bounded with in training as in CURE
    and SABR, or takes that of a call ``bounded(x)`` just before. It attacks the terms (plain
    model, eval mode), propagates their regions in one IBP pass (and one of CROWN-IBP, and TAPS's
    latent attacks, where a term asks for them), and combines the cross-entropies of the margin
    bounds.

    Args:
        terms: One per set: a LossTerm for a ball, a SplitTerm for transforms and patches.
        combine: "joint" (weighted mean), "max" (worst term of each example) or "random" (a fresh
            partition of the batch into equal blocks, one per term, with equal weights).
        weights: Weight per term for "joint", adding up to 1; None weighs them equally.
        attack: Settings of the attack.
        alignment: Bound alignment to add; None for none.
        regularized: Number of the term whose inner bounds regularisers look at; None: the first
            l_inf term, or the first of all, of those that propagate a region.
        blocks: "partition", or "overlapping" for CURE's released "random", whose blocks are halves
            of independent permutations (of several processes each permutes its own rows).

    Raises:
        InvalidArgumentError: No terms, an unknown combination, or settings that do not fit each
            other.

    Source: Jiang and Singh 2024 (CURE), sections 3.3 (l_2 defence, Joint, Max, Random) and 4;
    Müller et al. 2023 (SABR).

    Example:
        >>> from lirpa_multinorm import PerturbationLinf, PerturbationL2Box
        >>> _ = torch.manual_seed(0)
        >>> bounded = BoundedModule(torch.nn.Sequential(torch.nn.Linear(4, 3)))
        >>> terms = [LossTerm(PerturbationLinf(0.1)), LossTerm(PerturbationL2Box(0.2), "ball", 0.5)]
        >>> loss = MultiNormLoss(terms, "max", alignment=Alignment(eta=2.0, target=2))
        >>> x, y = torch.rand(2, 4), torch.tensor([0, 1])
        >>> result = loss(bounded, x, y)
        >>> result.value.backward()
        >>> [tuple(margins.shape) for margins in result.margins]
        [(2, 2), (2, 2)]
    """

    #: Whether the loss changes with the share of the run that is done.
    follows_run = False

    def __init__(
        self,
        terms: Sequence[AnyTerm],
        combine: str = "joint",
        weights: Sequence[float] | None = None,
        attack: AttackSettings = TRAINING_ATTACK,
        alignment: Alignment | None = None,
        regularized: int | None = None,
        blocks: str = "partition",
    ) -> None:
        self.terms, self.combine, self.attack = list(terms), combine, attack
        self.alignment, self.blocks = alignment, blocks
        if not self.terms:
            raise InvalidArgumentError("terms is empty; give at least one LossTerm")
        if combine not in COMBINE:
            raise InvalidArgumentError(f"combine={combine!r} is unknown; use {', '.join(COMBINE)}")
        if blocks not in BLOCKS:
            raise InvalidArgumentError(f"blocks={blocks!r} is unknown; use {' or '.join(BLOCKS)}")
        if weights is not None and combine != "joint":
            raise InvalidArgumentError(
                f"weights={weights!r} belong to combine='joint'; leave them out for {combine!r}"
            )
        if alignment is not None and combine == "random":
            raise InvalidArgumentError(
                "alignment compares norms on the same examples; combine='random' has none"
            )
        self.weights = _checked_weights(weights, len(self.terms))
        norms: list[Any] = [getattr(term.perturbation, "norm", None) for term in self.terms]
        self.aligned = [] if alignment is None else alignment.pairs(norms)
        propagating = [i for i, term in enumerate(self.terms) if term.region != "lipschitz"] or [0]
        first = next((i for i in propagating if norms[i] == float("inf")), propagating[0])
        self.regularized = first if regularized is None else regularized
        count = len(norms)
        if not isinstance(self.regularized, int) or not -count <= self.regularized < count:
            raise InvalidArgumentError(
                f"regularized={regularized!r} must be the number of one of the {count} terms, 0 to"
                f" {count - 1}"
            )

    @checked_together
    def __call__(
        self,
        bounded: BoundedModule,
        x: Tensor,
        y: Tensor,
        eps_scale: float = 1.0,
        generator: Randomness = None,
    ) -> LossResult:
        """Compute the loss.

        Args:
            bounded: The module whose model is trained.
            x: Inputs in clip, shape (B, ...).
            y: True classes, shape (B,).
            eps_scale: Factor on every radius (annealing), in [0, 1].
            generator: Source of random starts (of TAPS's latent attacks too) and of the partition.

        Returns:
            The loss with its terms.
        """
        check_types(bounded, x)
        classes = bounded.output_shape(x).numel()
        check_labels(y, classes, len(x), x.device)
        logits = bounded.clean_outputs(x)
        blocks, batches = self._blocks(x, generator), [(x, y)] * len(self.terms)
        terms = [term.scaled(eps_scale) for term in self.terms]
        if blocks is not None:
            terms = [term.of_examples(block, x) for term, block in zip(terms, blocks)]
            batches = _taken(x, y, blocks, classes)
        regions, points = find_regions(bounded.model, batches, terms, self.attack, generator)
        C = [margin_matrix(labels, classes, x.dtype) for _, labels in batches]
        for i, term in enumerate(terms):
            if isinstance(term, SplitTerm) and term.candidates > 1:
                regions[i] = worst_parts(bounded, term, batches[i][0], C[i], generator)
        propagation = propagated(bounded, terms, regions, points, C, generator)
        falls = _class_falls(bounded, x, terms, propagation)
        margins, per_example = [], []
        for i, term in enumerate(terms):
            bound = propagation.margins[i]
            loss_margins = cast(Tensor, bound)
            if bound is None:
                clean = logits if blocks is None else logits[blocks[i]]
                bound, loss_margins = _by_constants(term, batches[i][0], clean, falls, C[i])
            margins.append(bound)
            per_example.append(
                term.per_example(loss_margins, propagation.at_points[i], propagation.interval[i])
            )
        value, addends = self._combined(per_example, margins)
        bounds = propagation.intervals[self.regularized]
        hidden = None if bounds is None else bounds.intermediate
        return LossResult(value, margins, per_example, addends, hidden, logits)

    def advance(self, model: nn.Module, share: float) -> None:
        """Prepare for a step of training where a share of the run is done; most have nothing to."""

    def _combined(
        self, per_example: Sequence[Tensor], margins: Sequence[Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss, with the alignment, and the addends for the log."""
        value: Tensor = COMBINE[self.combine](per_example, self.weights)
        if self.alignment is None:
            return value, {}
        detach = self.alignment.detach
        alignment = sum(bound_alignment(margins[q], margins[r], detach) for q, r in self.aligned)
        value = value + self.alignment.eta * alignment
        return value, {"alignment": cast(Tensor, alignment)}

    def _blocks(self, x: Tensor, generator: Randomness) -> list[Tensor] | None:
        """Return the indices of each term's examples; None where each term has all."""
        count = len(self.terms)
        if self.combine != "random":
            return None
        if len(x) < count:
            raise InvalidArgumentError(
                f"x has {len(x)} examples for {count} blocks of the random partition; use "
                "larger batches"
            )
        if self.blocks == "overlapping":
            orders = [uniform(x.new_empty(len(x)), generator).argsort() for _ in range(count)]
            return [order.tensor_split(count)[i] for i, order in enumerate(orders)]
        # Of each group of neighbours every block gets one, so that the blocks of several processes
        # are together those of one process; the batch itself is in random order.
        groups = -(-len(x) // count)
        order = uniform(x.new_empty(groups, count), generator).argsort(1)
        members = order + count * torch.arange(groups, device=x.device).unsqueeze(1)
        if len(x) % count == 0:  # else the size of a block depends on the order
            return list(members.unbind(1))
        return [block[block < len(x)] for block in members.unbind(1)]


def check_types(bounded: object, x: object) -> None:
    """Raise InvalidArgumentError unless a loss is called with a BoundedModule and a tensor."""
    if not isinstance(bounded, BoundedModule):
        remedy = "wrap the model: BoundedModule(model)"
        if hasattr(bounded, "module"):
            remedy = "give its module"
        raise InvalidArgumentError(
            f"bounded is a {type(bounded).__name__}, not a BoundedModule; {remedy}"
        )
    if not isinstance(x, Tensor):
        raise InvalidArgumentError(
            f"x is a {type(x).__name__}, not a tensor; use torch.as_tensor(x)"
        )


def _taken(
    x: Tensor, y: Tensor, blocks: Sequence[Tensor], classes: int
) -> list[tuple[Tensor, Tensor]]:
    """Return the inputs and labels of each block; the labels are of those that were checked."""
    batches = [(x[block], y[block]) for block in blocks]
    for _, labels in batches:
        note_labels(labels, classes)
    return batches


def _class_falls(
    bounded: BoundedModule, x: Tensor, terms: Sequence[AnyTerm], propagation: Propagated
) -> dict[float, Tensor]:
    """Return the Lipschitz constants (K, K) by norm for the terms that propagate no region."""
    norms = [
        cast(LossTerm, term).lipschitz_norm
        for term, bound in zip(terms, propagation.margins)
        if bound is None
    ]
    return dict(zip(norms, bounded.class_falls(x, norms))) if norms else {}


def _by_constants(
    term: AnyTerm, x: Tensor, logits: Tensor, falls: dict[float, Tensor], C: Tensor
) -> tuple[Tensor, Tensor]:
    """Return a term's margins by Lipschitz constants, and those for the loss."""
    ball = cast(LossTerm, term)  # only balls have no region
    reach = ball.lipschitz_reach(x).to(logits)
    return lipschitz_margins(logits, falls[ball.lipschitz_norm], reach, C, ball.emma)


def _checked_weights(weights: Sequence[float] | None, count: int) -> list[float]:
    checked = [1 / count] * count if weights is None else list(weights)
    # Written so that NaN is refused too.
    if len(checked) != count or not (min(checked) >= 0 and abs(sum(checked) - 1) < 1e-6):
        raise InvalidArgumentError(
            f"weights={weights!r} must be {count} numbers >= 0 that add up to 1"
        )
    return checked
