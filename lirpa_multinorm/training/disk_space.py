"""Checks of a disk's free space against what checkpoints need."""

from __future__ import annotations

import shutil
from pathlib import Path

from ..errors import OutputFolderError
from ..utils.randomness import generators_kept
from .config import ModelSpec

# Tensors per weight: itself, Adam's two moments, twice that with a natural optimiser and an
# average.
STATES = 6


def check_space(folder: str | Path, weights: int, runs: int = 1) -> None:
    """Raise OutputFolderError where a disk has no room for the checkpoints of some runs.

    Args:
        folder: The output folder, or one that will be made.
        weights: Bytes of a network's weights.
        runs: Finished runs whose checkpoints (weights alone) are kept; one more is written while
            the old one stays.
    """
    existing = Path(folder).expanduser().absolute()
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    needed = weights * (runs + 2 * STATES)
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise OutputFolderError(
            f"output: {free / 1e6:.0f} MB are free in {str(existing)!r}, but checkpoints need "
            f"about {needed / 1e6:.0f} MB. Free some space, or give another folder"
        )


def weight_bytes(spec: ModelSpec) -> int:
    """Return how many bytes the weights of a network take; torch's generator is not moved."""
    with generators_kept():
        return sum(
            value.numel() * value.element_size() for value in spec.build().state_dict().values()
        )
