"""The largest certified radius of every image, by bisection."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..errors import InvalidArgumentError
from ..perturbations import PerturbationLpBox
from ..perturbations.described import has_radius
from ..utils.files import ensure_writable, write_json, writing
from .metrics import CERTIFIED, FALSIFIED, Certification
from .run import certify, certify_to
from .settings import CertifySettings

#: Bisections: each halves the gap between the radii that are certified and not certified.
STEPS = 7


class CertifiedRadii(NamedTuple):
    """The radii of n images for some sets.

    Args:
        perturbations: The sets, whose radii are the largest that were tried.
        certified: Largest radius that is certified, (sets, n); 0 where the image is misclassified
            or nothing is.
        not_certified: Smallest radius that was tried and is not certified, (sets, n); infinite
            where all were.
        falsified: Smallest radius at which an adversarial example is known, (sets, n); infinite
            where none is.
    """

    perturbations: list[PerturbationLpBox]
    certified: Tensor
    not_certified: Tensor
    falsified: Tensor

    def summary(self) -> list[dict[str, float | str]]:
        """Return for each set its name, the average certified radius (ACR), and the median."""
        return [
            {
                "set": perturbation.name,
                "largest radius tried": float(perturbation.eps),
                "average certified radius": float(radii.mean()),
                "median": float(radii.median()),
                "certified at the largest": float(limits.isinf().double().mean()),
            }
            for perturbation, radii, limits in zip(
                self.perturbations, self.certified, self.not_certified
            )
        ]


def certified_radii(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    perturbations: Sequence[PerturbationLpBox],
    settings: CertifySettings = CertifySettings(),
    *,
    steps: int = STEPS,
    folder: str | Path | None = None,
    resume: bool = False,
    progress: bool = False,
) -> CertifiedRadii:
    """Find the largest radius that each image is certified at, by bisection.

    The first step certifies at the sets' own radii, and every further one halfway between the
    largest radius that is certified and the smallest that is not, for all images at once. Each
    radius of the result was certified as it stands, whether or not certificates grow with smaller
    radii.

    Args:
        model: Classifier (B, ...) -> (B, K).
        x: Images, (n, ...).
        y: Labels, (n,).
        perturbations: The sets; their radii are the largest that are tried.
        settings: How to certify.
        steps: Bisections after the first step; the gap that is left is the radius over 2^steps.
        folder: For the records of every step, each in a folder of its own, and radii.json; None
            records nothing.
        resume: Whether to go on with what the folder holds.
        progress: Whether to show a progress bar per step.

    Returns:
        The radii.

    Raises:
        InvalidArgumentError: A set is no l_p ball or has a radius per image, or ``steps`` is
            negative; and what :func:`certify` refuses.
        RecordsError: The folder holds records of another run, or ``resume`` is not given.

    Source: the average certified radius is that of Zhai et al. 2020 (MACER), section 3.

    Example:
        >>> from lirpa_multinorm import PerturbationLinf
        >>> model = nn.Sequential(nn.Linear(2, 2, bias=False))
        >>> _ = model[0].weight.data.copy_(torch.eye(2))
        >>> x, y = torch.tensor([[0.75, 0.25]]), torch.tensor([0])  # its margin is 0.5
        >>> radii = certified_radii(model, x, y, [PerturbationLinf(0.5)], steps=4)
        >>> float(radii.certified), float(radii.not_certified)
        (0.21875, 0.25)
    """
    _check(perturbations, steps)
    # In the inputs' type, as the sets have them.
    largest = torch.tensor([[ball.eps] for ball in perturbations], dtype=x.dtype, device="cpu")
    largest = largest.double()
    infinite = torch.full((len(largest), len(x)), math.inf, dtype=torch.float64, device="cpu")
    radii = CertifiedRadii(
        list(perturbations), torch.zeros_like(infinite), infinite, infinite.clone()
    )
    images = torch.arange(len(x), device="cpu")  # whose gaps are open
    for step in range(steps + 1):
        tried = torch.where(
            radii.not_certified.isinf(), largest, (radii.certified + radii.not_certified) / 2
        )[:, images].to(x.dtype)
        sets = [ball.with_eps(eps.to(x.device)) for ball, eps in zip(perturbations, tried)]
        problem = model, x[images.to(x.device)], y[images.to(y.device)], sets, settings
        title = progress and f"certify, radius {step + 1} of {steps + 1}"
        if folder is None:
            result = certify(*problem, title)
        else:
            records = Path(folder) / f"step_{step:02d}"
            result = certify_to(records, *problem, resume=resume, progress=title)
        _narrow(radii, images, tried.double(), result)
        images = images[((radii.certified[:, images] < largest) & result.correct).any(0)]
        if not len(images):
            break
    if folder is not None:
        _write(radii, Path(folder))
    return radii


def _check(perturbations: Sequence[PerturbationLpBox], steps: int) -> None:
    """Refuse sets without one radius, and a number of steps that is none."""
    for perturbation in perturbations:
        if not has_radius(perturbation) or isinstance(perturbation.eps, Tensor):
            raise InvalidArgumentError(
                f"perturbations: {perturbation} has not one radius; give balls with a number as eps"
            )
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 0:
        raise InvalidArgumentError(f"steps: {steps!r}. Pass a whole number of at least 0.")


def _narrow(radii: CertifiedRadii, images: Tensor, tried: Tensor, result: Certification) -> None:
    """Move one end of the gap of some images to the radius that was tried."""
    proved, broken = result.is_status(CERTIFIED), result.is_status(FALSIFIED)
    for ends, is_moved in (
        (radii.certified, proved),
        (radii.not_certified, ~proved),
        (radii.falsified, broken),
    ):
        ends[:, images] = torch.where(is_moved, tried, ends[:, images])


def _write(radii: CertifiedRadii, folder: Path) -> None:
    """Write radii.json: the summary, and the radii of each image."""
    path = ensure_writable(folder) / "radii.json"
    images = [
        {
            "index": image,
            "certified": radii.certified[:, image].tolist(),
            "not_certified": [
                value if math.isfinite(value) else None
                for value in radii.not_certified[:, image].tolist()
            ],
            "falsified": [
                value if math.isfinite(value) else None
                for value in radii.falsified[:, image].tolist()
            ],
        }
        for image in range(radii.certified.shape[1])
    ]
    with writing(path):
        write_json(path, {"summary": radii.summary(), "images": images})
