"""Checkpoints: weights and everything needed to know what they are."""

from __future__ import annotations

import io
from pathlib import Path
from typing import NamedTuple, Sequence, Union

import torch
from torch import nn

from ..errors import CheckpointError
from ..io import plain, write_bytes
from ..perturbations import PerturbationLpBox
from .config import ModelSpec, TrainConfig, describe_sets, sets_from

_FORMAT = 1


class Checkpoint(NamedTuple):
    """A loaded checkpoint.

    Args:
        model: The network with its weights, in their dtype and in eval mode.
        spec: How it was built.
        perturbations: The sets it was trained for.
        config: How it was trained.
        epoch: Epochs done.
    """

    model: nn.Module
    spec: ModelSpec
    perturbations: list
    config: TrainConfig
    epoch: int


def save_checkpoint(path: Union[str, Path], model: nn.Module, spec: ModelSpec,
                    perturbations: Sequence[PerturbationLpBox], config: TrainConfig, epoch: int) -> None:
    """Write a checkpoint; an interruption at any moment leaves the previous file whole."""
    settings = {"spec": spec.to_dict(), "perturbations": describe_sets(list(perturbations)),
                "config": config.to_dict(), "epoch": epoch}
    # Plain numbers only: a NumPy scalar among the settings would be pickled, and refused when read.
    content = {"format": _FORMAT, "state_dict": model.state_dict(), **plain(settings)}
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_bytes(path, buffer.getvalue())


def load_checkpoint(path: Union[str, Path]) -> Checkpoint:
    """Read a checkpoint; no code of the file is run.

    Args:
        path: File written by :func:`save_checkpoint`.

    Returns:
        The network and what is known of it.

    Raises:
        CheckpointError: The file is missing, damaged, of another kind, or does not fit its own description.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(content, dict) or content.get("format") != _FORMAT:
            raise ValueError("not a checkpoint of this package" if not isinstance(content, dict)
                             else f"format {content.get('format')!r}, expected {_FORMAT}")
        spec = ModelSpec.from_dict(content["spec"])
        model = spec.build().to(_dtype(content["state_dict"])).eval()
        checkpoint = Checkpoint(model, spec, sets_from(content["perturbations"]),
                                TrainConfig.from_dict(content["config"]), int(content["epoch"]))
        load_weights(model, content["state_dict"], path)
    except CheckpointError:
        raise
    except Exception as error:  # torch.load raises many kinds on a damaged file
        raise CheckpointError(f"checkpoint {path} cannot be read ({type(error).__name__}: {error}); it is missing, "
                              "damaged or not one of this package. Train again, or use an earlier file") from error
    return checkpoint


def _dtype(state_dict: dict) -> torch.dtype:
    """Type of the weights, so that loading them does not round."""
    return next((value.dtype for value in state_dict.values() if value.is_floating_point()), torch.float32)


def load_weights(model: nn.Module, state_dict: dict, source: Union[str, Path]) -> None:
    """Load weights into a network, saying which entries do not fit.

    Raises:
        CheckpointError: The weights belong to another architecture.
    """
    own = model.state_dict()
    wrong = [f"{key} (missing)" for key in own if key not in state_dict]
    wrong += [f"{key} (unknown)" for key in state_dict if key not in own]
    wrong += [f"{key} {tuple(state_dict[key].shape)} instead of {tuple(own[key].shape)}" for key in own
              if key in state_dict and state_dict[key].shape != own[key].shape]
    if wrong:
        raise CheckpointError(f"checkpoint {source} is of another architecture: {'; '.join(wrong[:5])}"
                              f"{' and more' if len(wrong) > 5 else ''}. Build the model it was trained with")
    model.load_state_dict(state_dict)
