"""Questions about boxes of images as VNNLIB files."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..perturbations import PerturbationLpBox


def name_of(image: int) -> str:
    """Return the name of an image's VNNLIB file."""
    return f"image_{image:05d}.vnnlib"


def box_of(x: Tensor, perturbation: PerturbationLpBox) -> tuple[Tensor, Tensor]:
    """Return the smallest float32 box around the set, up to rounding, which goes outwards."""
    lower, upper = perturbation.enclosing_box(x.double().cpu())
    return outwards(lower, -1), outwards(upper, 1)


def outwards(values: Tensor, sign: int) -> Tensor:
    """Return the next float32 numbers that are no smaller (sign +1) or no larger (sign -1)."""
    rounded = values.float()
    return torch.where(
        (rounded.double() - values) * sign < 0,
        torch.nextafter(rounded, torch.full_like(rounded, sign * math.inf)),
        rounded,
    )


def vnnlib(lower: Tensor, upper: Tensor, label: int, classes: int, title: str) -> str:
    """Return the question whether some other class can be as large as the label's, as VNNLIB.

    Args:
        lower: Lower bound of each pixel, in any shape.
        upper: Upper bounds, of the same shape.
        label: The true class.
        classes: K.
        title: A comment.

    Example:
        >>> print(vnnlib(torch.tensor([0.25]), torch.tensor([0.5]), 1, 2, "a box"))
        ; label 1, a box
        (declare-const X_0 Real)
        (declare-const Y_0 Real)
        (declare-const Y_1 Real)
        (assert (>= X_0 0.25))
        (assert (<= X_0 0.5))
        (assert (or (and (>= Y_0 Y_1))))
        <BLANKLINE>
    """
    intervals = list(zip(lower.flatten().tolist(), upper.flatten().tolist()))
    lines = [
        f"; label {label}, {title}",
        *(f"(declare-const X_{i} Real)" for i in range(len(intervals))),
        *(f"(declare-const Y_{k} Real)" for k in range(classes)),
    ]
    for i, (smallest, largest) in enumerate(intervals):
        lines += [f"(assert (>= X_{i} {smallest!r}))", f"(assert (<= X_{i} {largest!r}))"]
    others = "".join(f"(and (>= Y_{k} Y_{label}))" for k in range(classes) if k != label)
    return "\n".join([*lines, f"(assert (or {others}))", ""])
