"""Attacks by patches: every place is tried, then gradient steps where the network is weakest."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..bounds import margin_matrix
from ..perturbations.patch import PerturbationPatch
from ..verifier.patches.offered import offered_patch_bounds, offering_layer
from ..verifier.patches.search import PatchResult
from .objectives import margin_loss
from .randomness import RowGenerator
from .settings import AttackSettings
from .views import Batched

_STEP = 0.4  # of the first gradient step; it shrinks by a fifth each time
_CHUNK = 256  # places that are tried at once
_STEPPED = 32  # places of an image from which gradient steps are taken


@torch.no_grad()
def attack_patches(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    perturbation: PerturbationPatch,
    settings: AttackSettings,
    generator: RowGenerator,
) -> Tensor:
    """Return patched images with the largest margin loss that a search has found.

    At every place, those first that the gradient at the clean image finds weakest, the patch is
    black, white, what the gradient asks for, and random. Gradient steps follow from the best points
    of the places with the largest losses. An image that is misclassified is searched no further.

    Args:
        model: Classifier, in eval mode.
        images: In [0, 1], (B, C, H, W).
        labels: (B,).
        perturbation: The patches.
        settings: A quarter as many gradient steps as ``steps`` says, and as many random patches at
            each place as ``restarts`` says.
        generator: The random source, with a stream for each image.

    Returns:
        Shape of images; each in the set around its image.
    """
    best, run = images.clone(), Batched(model)
    open_places = _open_places(model, images, labels, perturbation)
    drawn = generator.rand((len(images), settings.restarts, *images.shape[1:]), images.dtype)
    for row, (image, label) in enumerate(zip(images.split(1), labels.split(1))):
        search = _Search(run, image, label, perturbation, drawn[row].to(images), open_places[row])
        best[row] = search.run(max(1, settings.steps // 4))
    return best


def _open_places(
    model: nn.Module, images: Tensor, labels: Tensor, perturbation: PerturbationPatch
) -> Tensor:
    """Return the places (B, rows, columns) where no bounds that a model offers rule a patch out."""
    counts = perturbation.places(images)
    if offering_layer(model) is None:
        return torch.ones(len(images), *counts, dtype=torch.bool, device=images.device)
    C = margin_matrix(labels, model(images[:1]).shape[1], images.dtype)
    size = perturbation.height, perturbation.width
    offered = offered_patch_bounds(model, images, size, C, C.new_zeros(C.shape[:2]))
    return ~cast(PatchResult, offered).proved


class _Search:
    """The search of one image."""

    def __init__(
        self,
        model: Batched,
        image: Tensor,
        label: Tensor,
        perturbation: PerturbationPatch,
        drawn: Tensor,
        open_places: Tensor,
    ) -> None:
        self._model, self._image, self._label = model, image, label
        self._perturbation, self._drawn, self._open_places = perturbation, drawn, open_places
        self._best, self._loss = image, margin_loss(model(image), label)

    def run(self, steps: int) -> Tensor:
        """Return the best point, (1, C, H, W)."""
        gradient = self._gradient(self._image)
        place = self._by_weakness(gradient)
        if not len(place):
            return self._best
        masks = self._perturbation.masks(self._image, place)
        losses, points = [], []
        for mask in masks.split(_CHUNK):
            if self._is_broken():
                return self._best
            values, patched = self._tried(mask, (gradient > 0).to(gradient))
            losses.append(values)
            points.append(patched)
        worst = torch.cat(losses).topk(min(_STEPPED, len(place))).indices
        self._step(torch.cat(points)[worst], masks[worst], steps)
        return self._best

    def _is_broken(self) -> bool:
        return bool(self._loss > 0)

    def _gradient(self, points: Tensor) -> Tensor:
        """Return the gradient of the margin loss at some points."""
        with torch.enable_grad():
            leaf = points.detach().requires_grad_()
            loss = margin_loss(self._model(leaf), self._label.expand(len(leaf)))
            return torch.autograd.grad(loss.sum(), leaf)[0]

    def _by_weakness(self, gradient: Tensor) -> Tensor:
        """Return the open places (N, 2), those first where a linear network would lose most."""
        ascent = torch.maximum(gradient * -self._image, gradient * (1 - self._image))
        sides = self._perturbation.height, self._perturbation.width
        gain = F.avg_pool2d(ascent.sum(1, keepdim=True), sides, stride=1)[0, 0]
        order = gain.flatten().argsort(descending=True, stable=True)
        order = order[self._open_places.flatten()[order]]
        return torch.stack([order // gain.shape[1], order % gain.shape[1]], dim=1)

    def _tried(self, mask: Tensor, asked: Tensor) -> tuple[Tensor, Tensor]:
        """Return the best loss and point at each of some places, of fixed and random patches."""
        fills = [torch.zeros_like(asked), torch.ones_like(asked), asked, *self._drawn.split(1)]
        tried = [torch.where(mask, fill, self._image) for fill in fills]
        losses = torch.stack([self._valued(points) for points in tried])
        best = losses.argmax(0)
        rows = torch.arange(len(mask), device=mask.device)
        return losses[best, rows], torch.stack(tried)[best, rows]

    def _step(self, points: Tensor, mask: Tensor, steps: int) -> None:
        """Take gradient steps inside patches."""
        length = _STEP
        for _ in range(steps):
            if self._is_broken():
                return
            moved = (points + length * self._gradient(points).sign()).clamp(0, 1)
            points = torch.where(mask, moved, self._image)
            self._valued(points)
            length *= 0.8

    def _valued(self, points: Tensor) -> Tensor:
        """Return the losses of some points, and keep the best point."""
        losses = margin_loss(self._model(points), self._label.expand(len(points)))
        if bool(losses.max() > self._loss):
            self._loss, self._best = losses.max(), points[losses.argmax()].unsqueeze(0)
        return losses
