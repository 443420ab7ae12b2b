"""The attack of a training step, and the regions around the points that it finds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Union, cast

from torch import Tensor, nn

from ..attacks import AttackSettings, attack_regions
from ..attacks.geometry import Randomness
from ..perturbations import PerturbationLinf, PerturbationLpBox, Region
from .released import released_attack
from .split_terms import SplitTerm
from .terms import LossTerm

AnyTerm = Union[LossTerm, SplitTerm]

#: Six steps of cross-entropy, the last two of them smaller. They reach at least the loss of SABR's
#: eight, of which the last four are a tenth of the first or less (benchmarks/training_speed.py).
TRAINING_ATTACK = AttackSettings(
    steps=6, step_size=None, decays=((0.6, 0.3),), loss="ce", try_center=False, channels_last=True
)


class FoundRegions(NamedTuple):
    """The regions and the adversarial points of a training step.

    Args:
        regions: The region to propagate, per term; None for "lipschitz", and for terms with
            candidates (:func:`.worst_parts.worst_parts`).
        points: The adversarial points as regions without extent, per term; None where they are
            not mixed in.
    """

    regions: list[Region | None]
    points: list[Region | None]


def find_regions(
    model: nn.Module,
    batches: Sequence[tuple[Tensor, Tensor]],
    terms: Sequence[AnyTerm],
    settings: AttackSettings = TRAINING_ATTACK,
    generator: Randomness = None,
) -> FoundRegions:
    """Attack the inputs of all terms in a batch, and return the regions to propagate.

    Args:
        model: The plain classifier.
        batches: (inputs, labels) per term.
        terms: The terms.
        settings: The attack.
        generator: Source of the random starts.

    Returns:
        Regions and adversarial points, one per term.
    """
    attacked = [x for x, _ in batches]
    stacked = [i for i, term in enumerate(terms) if term.needs_attack and term.region != "released"]
    if stacked:
        searched = [Region(attacked[i], cast(LossTerm, terms[i]).attacked) for i in stacked]
        labels = [batches[i][1] for i in stacked]
        adversarial = attack_regions(model, searched, labels, settings, generator)
        for i, x_adv in zip(stacked, adversarial):
            attacked[i] = x_adv
    for i, term in enumerate(terms):
        if term.region == "released":
            attacked[i] = released_attack(
                model, *batches[i], cast(PerturbationLpBox, term.perturbation), settings, generator
            )
    points = [
        None if term.mix is None else Region(x_adv, PerturbationLinf(0.0, term.perturbation.clip))
        for term, x_adv in zip(terms, attacked)
    ]
    regions = [
        None
        if term.region == "lipschitz" or (isinstance(term, SplitTerm) and term.candidates > 1)
        else term.around(x, x_adv, generator)
        for term, (x, _), x_adv in zip(terms, batches, attacked)
    ]
    return FoundRegions(regions, points)
