"""The attacks of a cascade: adversarial examples of the (set, image) pairs that are open."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from ..attacks import AttackSettings, RowGenerator, attack_regions, margin_loss
from ..attacks.patches import attack_patches
from ..attacks.transforms import attack_transforms
from ..perturbations import PerturbationLpBox
from ..perturbations.geometric import PerturbationGeometric
from ..perturbations.patch import PerturbationPatch
from .open_pairs import OpenPairs

ATTACK = "PGD"


class Broken(NamedTuple):
    """Adversarial examples of a set.

    Args:
        set_index: Which set.
        images: Which images, (b,).
        points: (b, ...).
    """

    set_index: int
    images: Tensor
    points: Tensor


def attacked_images(pairs: OpenPairs) -> dict[int, Tensor]:
    """Return the images with an open pair, by set."""
    targets = {
        set_index: pairs.image[pairs.set_index == set_index].unique()
        for set_index in range(len(pairs.sets))
    }
    return {set_index: images for set_index, images in targets.items() if len(images)}


def broken_pairs(
    model: nn.Module, pairs: OpenPairs, attack: AttackSettings, key: tuple, index: list[int]
) -> list[Broken]:
    """Return the adversarial examples that an attack finds.

    Args:
        model: The plain model, in eval mode.
        pairs: What is open.
        attack: How to search.
        key: What random starts depend on beside the set and the image.
        index: The images' numbers in the whole data.
    """
    targets = attacked_images(pairs)
    balls = [
        set_index for set_index in targets if isinstance(pairs.sets[set_index], PerturbationLpBox)
    ]
    regions = [pairs.region(set_index, targets[set_index]) for set_index in balls]
    # A start depends on the image, never on what else is in the batch.
    sources = {
        set_index: RowGenerator([(*key, set_index, index[row]) for row in images.tolist()])
        for set_index, images in targets.items()
    }
    starts = [sources[set_index] for set_index in balls]
    labels = [pairs.y[targets[set_index]] for set_index in balls]
    points = attack_regions(model, regions, labels, attack, starts) if balls else []
    points_by_set = dict(zip(balls, points))
    for set_index, images in targets.items():
        perturbation, center, label = pairs.sets[set_index], pairs.x[images], pairs.y[images]
        if isinstance(perturbation, PerturbationPatch):
            points_by_set[set_index] = attack_patches(
                model, center, label, perturbation, attack, sources[set_index]
            )
        if isinstance(perturbation, PerturbationGeometric):
            points_by_set[set_index] = attack_transforms(model, center, label, perturbation, attack)
    return [
        _broken(model, pairs, Broken(set_index, targets[set_index], moved))
        for set_index, moved in points_by_set.items()
    ]


def _broken(model: nn.Module, pairs: OpenPairs, moved: Broken) -> Broken:
    """Return those of an attack's points that are misclassified and lie in the set."""
    set_index, images, points = moved
    broken = margin_loss(model(points), pairs.y[images]) >= 0
    # Rounding in the attack must not count a point outside the set.
    perturbation = pairs.sets[set_index].of_images(images, pairs.x)
    broken &= perturbation.contains(points, pairs.x[images])
    return Broken(set_index, images[broken], points[broken])
