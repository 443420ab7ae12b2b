"""Union certification: attack first, then bounds from cheap to tight, each only on what is still open."""

from __future__ import annotations

from dataclasses import dataclass
from typing import List, Optional, Sequence

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..attacks import AttackSettings, margin_loss, pgd
from ..bounds import BoundedModule, margin_matrix
from ..bounds.checks import check_method
from ..bounds.margins import check_labels
from ..errors import InvalidArgumentError
from ..modes import evaluating
from ..perturbations import PerturbationLpBox, Region, as_perturbations
from .metrics import CERTIFIED, FALSIFIED, MISCLASSIFIED, UNKNOWN, Certification

METHODS = ("IBP", "CROWN-IBP", "CROWN")
EVALUATION_ATTACK = AttackSettings(steps=40, restarts=2)


@dataclass(frozen=True)
class CertifySettings:
    """How to certify.

    Args:
        methods: Bounds to try, in order.
        attack: The attack that comes first; None for no attack (nothing is falsified then).
        batch_size: Images per step.
        seed: Of the attack's random starts.
        bound_opts: Options of the host.
    """

    methods: Sequence[str] = METHODS
    attack: Optional[AttackSettings] = EVALUATION_ATTACK
    batch_size: int = 50
    seed: int = 0
    bound_opts: Optional[dict] = None

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise InvalidArgumentError(f"batch_size={self.batch_size} must be at least 1")
        if isinstance(self.methods, str):
            raise InvalidArgumentError(f"methods={self.methods!r} must be a list, for example [{self.methods!r}]")
        for method in self.methods:
            check_method(method)


def certify(model: nn.Module, x: Tensor, y: Tensor, perturbations: Sequence[PerturbationLpBox],
            settings: CertifySettings = CertifySettings(), progress: bool = False) -> Certification:
    """Certify a classifier against every set, and so against their union.

    An image is certified for a set if it is classified correctly and all its margins have a positive lower bound on
    the whole set. A NaN certifies nothing: logits that are NaN count as wrong, and bounds that are NaN raise.

    Args:
        model: Classifier (B, ...) -> (B, K); put in eval mode meanwhile, and each layer back into its own.
        x: Images in [0, 1] (or whatever clip the sets have), shape (n, ...).
        y: Labels, shape (n,).
        perturbations: The sets.
        settings: Methods, attack and batch size.
        progress: Whether to show a progress bar.

    Returns:
        The status of every (image, set) pair, and who decided it.

    Raises:
        InvalidArgumentError: No images, or inputs and labels that do not fit.
        NaNBoundError: A bound of a correctly classified image came out as NaN.

    Source: union certified accuracy as in Jiang and Singh 2024 (CURE), section 5.

    Example:
        >>> from lirpa_multinorm import PerturbationLinf
        >>> model = nn.Sequential(nn.Linear(2, 2, bias=False))
        >>> _ = model[0].weight.data.copy_(torch.eye(2))
        >>> x, y = torch.tensor([[0.9, 0.1], [0.5, 0.45]]), torch.tensor([0, 0])
        >>> result = certify(model, x, y, [PerturbationLinf(eps=0.1)])
        >>> result.summary()["certified_union"], result.summary()["n"]
        (0.5, 2)
    """
    sets = as_perturbations(perturbations)
    if not len(x):
        raise InvalidArgumentError("x is empty; give at least one image")
    bounded = BoundedModule(model, perturbations=sets, bound_opts=settings.bound_opts)
    generator = torch.Generator().manual_seed(settings.seed)
    parts: List[Certification] = []
    with evaluating(bounded):
        check_labels(y, bounded.output_shape(x[:1]).numel(), len(x), x.device)
        for one in sets:
            one.check_input(x)
        for start in tqdm(range(0, len(x), settings.batch_size), desc="certify", disable=not progress, unit="batch"):
            images = torch.arange(start, min(start + settings.batch_size, len(x)), device=x.device)
            there = [_of_images(one, images) for one in sets]
            parts.append(_certify_batch(bounded, x[images], y[images].long(), there, settings, generator))
    return Certification.concatenate(parts, sets)


@torch.no_grad()
def _certify_batch(bounded: BoundedModule, x: Tensor, y: Tensor, sets: List[PerturbationLpBox],
                   settings: CertifySettings, generator: torch.Generator) -> Certification:
    correct = margin_loss(bounded.model(x), y) < 0
    result = Certification.started(sets, correct)
    if settings.attack is not None and bool(correct.any()):
        right = correct.nonzero().squeeze(1)
        there = [_of_images(one, right) for one in sets]
        found = pgd(bounded.model, x[right], y[right], there, settings.attack, generator)
        for place, points in enumerate(found):
            broken = margin_loss(bounded.model(points), y[right]) >= 0
            # Rounding in the attack must not count a point outside the set.
            broken &= there[place].contains(points, x[right])
            result.decide(place, right[broken], FALSIFIED, "PGD")
    for method in settings.methods:
        _bound_open(bounded, x, y, sets, method, result)
    return result


def _bound_open(bounded: BoundedModule, x: Tensor, y: Tensor, sets: List[PerturbationLpBox], method: str,
                result: Certification) -> None:
    """Bound all open pairs of every set in one stacked pass."""
    open_pairs = [(place, result.open(place).to(x.device)) for place in range(len(sets))]
    open_pairs = [(place, images) for place, images in open_pairs if len(images)]
    if not open_pairs:
        return
    regions = [Region(x[images], _of_images(sets[place], images)) for place, images in open_pairs]
    classes = bounded.output_shape(x[:1]).numel()
    C = [margin_matrix(y[images], classes, x.dtype) for _, images in open_pairs]
    for (place, images), (lower, _) in zip(open_pairs, bounded.compute_region_bounds(regions, C, method,
                                                                                    bound_upper=False)):
        margin = lower.amin(1)
        result.tighten(place, images, margin)
        result.decide(place, images[margin > 0], CERTIFIED, method)


def _of_images(perturbation: PerturbationLpBox, images: Tensor) -> PerturbationLpBox:
    """Return the set for some of the images: a radius per example must follow them."""
    eps = perturbation.eps
    if isinstance(eps, float) or eps.numel() == 1:
        return perturbation
    return perturbation.with_eps(eps[images.to(eps.device)])
