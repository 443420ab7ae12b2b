"""Checkpoints: weights, what they were trained by, and the state that a run goes on from."""

from __future__ import annotations

import io
import pickle
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import CheckpointError, OutputFolderError
from ..models import Normalize
from ..perturbations.described import AnySet
from ..utils.files import plain, write_bytes
from ..utils.randomness import generators_kept
from ..utils.seal import is_sealed, sealed
from .config import ModelSpec, TrainConfig, describe_sets, sets_from

_FORMAT = 2
#: Under which other programs keep the weights in their checkpoints.
_WEIGHTS = ("model_state_dict", "state_dict", "net", "model")


class Checkpoint(NamedTuple):
    """A loaded checkpoint.

    Args:
        model: The network with its weights, in their dtype and in eval mode.
        spec: How it was built.
        perturbations: The sets it was trained for.
        config: How it was trained.
        epoch: Epochs done.
        run: What a run needs beside that to go on: "origin" (data, initial weights and the run's
            identity, described) and "state" (optimisers, sources of randomness, the position in an
            epoch, unaveraged weights; None when an older version has ended the run).
    """

    model: nn.Module
    spec: ModelSpec
    perturbations: list
    config: TrainConfig
    epoch: int
    run: dict[str, Any]


def save_checkpoint(
    path: str | Path,
    model: nn.Module,
    spec: ModelSpec,
    perturbations: Sequence[AnySet],
    config: TrainConfig,
    epoch: int,
    origin: dict | None = None,
    state: dict | None = None,
) -> None:
    """Write a checkpoint; an interruption at any moment leaves the previous file intact.

    The file carries the SHA-256 of its bytes, which :func:`load_checkpoint` compares.

    Raises:
        OutputFolderError: The file cannot be written, for example on a full disk; the previous one
            is intact.
    """
    settings = {
        "spec": spec.to_dict(),
        "perturbations": describe_sets(list(perturbations)),
        "config": config.to_dict(),
        "epoch": epoch,
        "origin": origin or {},
    }
    # Plain numbers only: a NumPy scalar among the settings would be pickled, and refused when read.
    content = {
        "format": _FORMAT,
        "state_dict": model.state_dict(),
        "state": state,
        **plain(settings),
    }
    buffer = io.BytesIO()
    try:
        torch.save(content, buffer)
        write_bytes(path, sealed(buffer.getvalue()))
    except OSError as error:
        raise OutputFolderError(
            f"output: the checkpoint {str(path)!r} cannot be written ({error.strerror or error}); "
            "the previous one is intact. Free some space and start again with --resume"
        ) from error


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint; no code of the file is run, and torch's generators stay as they are.

    Args:
        path: File written by :func:`save_checkpoint`.

    Returns:
        The network with its specification, sets and settings.

    Raises:
        CheckpointError: The file is missing, damaged (one changed byte is enough; files of older
            versions carry no SHA-256), of another kind, or does not fit its own description.
    """
    try:
        content = _read(path)
        if _is_plain(content):
            raise CheckpointError(
                f"checkpoint {path} is a plain state dict: it holds weights, and neither the"
                " network nor its sets. Load it into its network in Python and call certify, or"
                " write a checkpoint of that with lirpa_multinorm.training.save_checkpoint; to"
                " train it further: lirpa-multinorm finetune"
            )
        if not isinstance(content, dict) or content.get("format") != _FORMAT:
            raise ValueError(
                "not a checkpoint of this package"
                if not isinstance(content, dict)
                else f"format {content.get('format')!r}, expected {_FORMAT}"
            )
        spec = ModelSpec.from_dict(content["spec"])
        with generators_kept():
            model = spec.build().to(_dtype(content["state_dict"])).eval()
        checkpoint = Checkpoint(
            model,
            spec,
            sets_from(content["perturbations"]),
            TrainConfig.from_dict(content["config"]),
            int(content["epoch"]),
            {"origin": content["origin"], "state": content["state"]},
        )
        load_weights(model, content["state_dict"], path)
    except CheckpointError:
        raise
    except Exception as error:  # torch.load raises many kinds on a damaged file
        raise CheckpointError(
            f"checkpoint {path} cannot be read ({_reason(error)}); it is missing, "
            "damaged or not one of this package. Train again, or use an earlier file"
        ) from error
    return checkpoint


def _read(path: str | Path) -> Any:
    """Return what a file of ``torch.save`` holds; no code of the file is run.

    Raises:
        ValueError: Its bytes are not those that this package wrote. Any other error: torch cannot
            read it.
    """
    archive = Path(path).read_bytes()
    if archive[:4] == b"PK\x03\x04":  # older files of other programs are plain pickles
        is_sealed(archive)
    return torch.load(io.BytesIO(archive), map_location="cpu", weights_only=True)


def _is_plain(content: Any) -> bool:
    """Return whether a file holds weights only, bare or as other programs keep them."""
    return (
        isinstance(content, dict) and "format" not in content and _weights_in(content) is not None
    )


def _weights_in(content: Any) -> dict[str, Tensor] | None:
    """Return the state dict that a file's content is, or has under a usual key, else None."""
    while isinstance(content, dict):
        if content and all(isinstance(value, Tensor) for value in content.values()):
            return content
        content = next(
            (content[key] for key in _WEIGHTS if isinstance(content.get(key), dict)), None
        )
    return None


def _reason(error: Exception) -> str:
    """Say in one line why a file could not be read."""
    # torch's message goes on to explain how to run the file's code.
    if isinstance(error, pickle.UnpicklingError):
        return "it is damaged, or holds more than plain tensors and settings, which could run code"
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def _dtype(state_dict: dict) -> torch.dtype:
    """Return the type of the weights, so that loading them does not round."""
    return next(
        (value.dtype for value in state_dict.values() if value.is_floating_point()), torch.float32
    )


def load_weights(model: nn.Module, state_dict: dict, source: str | Path) -> None:
    """Load weights into a network, saying which entries do not fit.

    Raises:
        CheckpointError: The weights belong to another architecture.
    """
    current = model.state_dict()
    wrong = [f"{key} (missing)" for key in current if key not in state_dict]
    wrong += [f"{key} (unknown)" for key in state_dict if key not in current]
    wrong += [
        f"{key} {tuple(state_dict[key].shape)} instead of {tuple(current[key].shape)}"
        for key in current
        if key in state_dict and state_dict[key].shape != current[key].shape
    ]
    if wrong:
        raise CheckpointError(
            f"checkpoint {source} is of another architecture: {'; '.join(wrong[:5])}"
            f"{' and more' if len(wrong) > 5 else ''}. Build the model it was trained with"
        )
    model.load_state_dict(state_dict)


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Return the state dict in a file, bare or under a usual key; no code of the file is run.

    Raises:
        CheckpointError: The file is missing, cannot be read without running its code, or holds no
            state dict.
    """
    try:
        content = _read(path)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"initial: there is no file {str(path)!r}. Check the path; it is taken relative to the "
            "working folder"
        ) from error
    except Exception as error:  # torch.load raises many kinds on a damaged file
        raise CheckpointError(
            f"initial weights {path} cannot be read ({_reason(error)}); give a file of this"
            " package, or a plain state dict saved by torch.save"
        ) from error
    weights = _weights_in(content)
    if weights is None:
        keys = ""
        if isinstance(content, dict) and content:
            keys = f" (it has {', '.join(map(str, list(content)[:5]))})"
        raise CheckpointError(
            f"initial weights {path} hold no state dict{keys}; give a file of this package, or one"
            f" with a state dict saved by torch.save, bare or under {', '.join(_WEIGHTS[:-1])} or"
            f" {_WEIGHTS[-1]}"
        )
    return weights


def initial_weights(path: str | Path, model: nn.Module) -> None:
    """Give a network the weights of a file, to train it further.

    Args:
        path: A checkpoint of this package, or a file with the state dict of a user's model (bare,
            or under "model_state_dict", "state_dict", "net" or "model"). Its entries are found by
            name, or else, where the names of another code differ, by their order, if every shape
            agrees; a :class:`Normalize` layer may be missing.
        model: The network; changed in place.

    Raises:
        CheckpointError: The file cannot be read without running its code, or belongs to another
            architecture.
    """
    load_weights(model, _renamed(read_weights(path), model), path)


def _renamed(content: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Return a state dict under the model's names; one that does not fit comes back as it is."""
    current = model.state_dict()
    content = {
        re.sub(r"^(module\.|_orig_mod\.)+", "", name): value for name, value in content.items()
    }
    if set(content) == set(current):
        return content
    constants = {
        f"{name}.{buffer}"
        for name, layer in model.named_modules()
        if isinstance(layer, Normalize)
        for buffer in ("mean", "std")
    }
    # Single numbers are left out: they are BatchNorm's counts of batches, which old files lack.
    names = [name for name in current if name not in constants and current[name].ndim]
    values = [value for value in content.values() if value.ndim]
    if [current[name].shape for name in names] != [value.shape for value in values]:
        return content
    return {**current, **dict(zip(names, values))}
