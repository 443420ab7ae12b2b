"""Pretrained networks by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from ..perturbations.described import AnySet
from ..training import Checkpoint, load_checkpoint
from .card import card_of
from .files import checked_files, network_folder


class Pretrained(NamedTuple):
    """A pretrained network.

    Args:
        name: Its name.
        checkpoint: Network, sets and settings, as :func:`load_checkpoint` returns them.
        card: What is known of it, see :func:`card_of`.
        path: Its checkpoint file.
    """

    name: str
    checkpoint: Checkpoint
    card: dict[str, Any]
    path: Path

    @property
    def model(self) -> nn.Module:
        """The network, in eval mode."""
        return self.checkpoint.model

    @property
    def perturbations(self) -> list[AnySet]:
        """The sets that it was trained for and certified against."""
        return self.checkpoint.perturbations


def pretrained(name: str, folder: str | Path | None = None) -> Pretrained:
    """Return a pretrained network by name, offline.

    The SHA-256 of every file is compared before the file is read, and no code of it is run.

    Args:
        name: One of :func:`pretrained_names`.
        folder: Folder with the network's files, where they do not lie where they were installed.

    Returns:
        The network with its sets and its card.

    Raises:
        InvalidArgumentError: There is no such network; the nearest names are listed.
        CheckpointError: A file is missing, damaged, or not the one that was released.

    Example:
        >>> network = pretrained("digits-union-0.1-0.4")
        >>> network.card["data"], network.card["n"]
        ('digits', 500)
        >>> [perturbation.label for perturbation in network.perturbations]
        ['l_inf 0.1', 'l_2 0.4']
    """
    source = network_folder(name)
    if folder is not None:
        source = Path(folder).expanduser()
    contents = checked_files(name, source)
    path = source / "checkpoint.pt"
    card = card_of(
        name, json.loads(contents["config.json"]), json.loads(contents["certified.json"])
    )
    return Pretrained(name, load_checkpoint(path), card, path)


def pretrained_card(name: str) -> dict[str, Any]:
    """Return the card of a pretrained network, whose files are checked, without its weights.

    Args:
        name: One of :func:`pretrained_names`.

    Raises:
        InvalidArgumentError: There is no such network.
        CheckpointError: A file is missing, damaged, or not the one that was released.
    """
    contents = checked_files(name, network_folder(name))
    return card_of(
        name, json.loads(contents["config.json"]), json.loads(contents["certified.json"])
    )
