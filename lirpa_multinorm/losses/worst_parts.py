"""The worst of several random parts of a set, for terms with candidates."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..attacks.geometry import Randomness, uniform
from ..bounds import BoundedModule
from ..perturbations import Region
from ..perturbations.patch import PerturbationPatch
from ..utils.distributed import SharedGenerator
from .margin import margin_cross_entropy
from .split_terms import SplitTerm

_CHUNK = 32  # places at once, whose intermediate results fit into a cache


def worst_parts(
    bounded: BoundedModule, term: SplitTerm, x: Tensor, C: Tensor, generator: Randomness = None
) -> Region:
    """Return around each image the box of the candidate with the largest loss by IBP.

    The candidates are random parts, the same for all images of the batch.

    Args:
        bounded: The module.
        term: The set, and how many candidates there are.
        x: Images, (B, C, H, W).
        C: Specification of the margins, (B, K - 1, K).
        generator: Source of the candidates.

    Source: ours; Chiang et al. 2020, Certified Defenses for Adversarial Patches, section 4, take
    random places, all places, or those that a second network guesses.
    """
    perturbation = term.perturbation
    # Of several processes all draw the same.
    source = generator.generator if isinstance(generator, SharedGenerator) else generator
    draws = uniform(x.new_empty(term.candidates, perturbation.draws), source)
    layers = _linear_layers(bounded.model)
    with torch.no_grad():
        if layers and isinstance(perturbation, PerturbationPatch):
            drawn = perturbation.place_of(x, draws)
            margins = torch.cat(
                [
                    patch_margins(layers, perturbation, x, some, term.scale, C)
                    for some in drawn.split(_CHUNK)
                ],
                1,
            )
        else:
            margins = _margins(bounded, term, x, draws, C)
        losses = margin_cross_entropy(margins.flatten(0, 1)).view(len(x), len(draws))
        worst = draws[losses.argmax(1)]
    return perturbation.random_part(x, worst, term.ratio, term.scale)


def _margins(
    bounded: BoundedModule, term: SplitTerm, x: Tensor, draws: Tensor, C: Tensor
) -> Tensor:
    """Return IBP's margins on every candidate, (B, N, K - 1)."""
    count = len(draws)
    candidates = term.perturbation.random_part(
        x.repeat_interleave(count, 0), draws.repeat(len(x), 1), term.ratio, term.scale
    )
    (bounds,) = bounded.compute_region_bounds(
        [candidates], [C.repeat_interleave(count, 0)], "IBP", bound_upper=False
    )
    assert bounds.lower is not None  # only upper bounds are left out
    return bounds.lower.view(len(x), count, -1)


def patch_margins(
    layers: list[nn.Linear],
    perturbation: PerturbationPatch,
    x: Tensor,
    corners: Tensor,
    scale: float,
    C: Tensor,
) -> Tensor:
    """Return IBP's margins of linear layers with ReLUs between them, on patches at some places.

    It is IBP, but the first layer takes the pixels of the patch alone, as a difference to the
    clean image, which is several times faster than images with each patch.

    Args:
        layers: The linear layers; the first takes the flattened image.
        perturbation: The patches.
        x: Images, (B, C, H, W).
        corners: Rows and columns of the places, (N, 2).
        scale: Share of the way to 0 and 1 that pixels may go.
        C: Specification, (B, S, K).

    Returns:
        Lower bounds, (B, N, S).
    """
    masks = perturbation.masks(x, corners).expand(-1, x.shape[1], -1, -1).flatten(1)
    pixels, flat = masks.nonzero()[:, 1].view(len(corners), -1), x.flatten(1)
    columns = layers[0].weight.T[pixels]  # (N, k, m)
    moves = scale * (0.5 - flat[:, pixels].transpose(0, 1))  # (N, B, k)
    middle = layers[0](flat) + moves @ columns
    radius = (scale / 2 * columns.abs().sum(1, keepdim=True)).expand_as(middle)
    for layer in layers[1:]:
        low, high = (middle - radius).relu(), (middle + radius).relu()
        middle, radius = (high + low) / 2, (high - low) / 2
        if layer is not layers[-1]:
            middle, radius = layer(middle), functional.linear(radius, layer.weight.abs())
    rows = (C @ layers[-1].weight).transpose(1, 2)  # (B, m, S)
    offset = C @ layers[-1].bias if layers[-1].bias is not None else 0 * C[..., 0]
    middle, radius = middle.transpose(0, 1), radius.transpose(0, 1)
    return middle @ rows - radius @ rows.abs() + offset.unsqueeze(1)


def _linear_layers(model: nn.Module) -> list[nn.Linear]:
    """Return the linear layers of a network of these and ReLUs in turn; empty for any other."""
    layers = list(model) if isinstance(model, nn.Sequential) else []
    kinds = [type(layer) for layer in layers]
    count = len(kinds) // 2
    if count < 2 or kinds != [nn.Flatten, *[nn.Linear, nn.ReLU] * (count - 1), nn.Linear]:
        return []
    return [layer for layer in layers if isinstance(layer, nn.Linear)]
