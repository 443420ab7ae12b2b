"""The network that a command is about: a checkpoint, a pretrained one, or any torch module."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from ..errors import InvalidArgumentError
from ..networks import pretrained
from ..perturbations.described import AnySet
from ..training import load_checkpoint
from ..training.checkpoint import load_weights, read_weights
from ..utils.hints import did_you_mean
from .arguments import in_words_of_flags

_WAYS = "a checkpoint, --pretrained NAME or --model MODULE:FUNCTION"


class Network(NamedTuple):
    """A network to certify.

    Args:
        name: What results call it.
        model: The network, in eval mode.
        perturbations: The sets that it was trained for; none of a module of the user's.
        in_shape: Shape (C, H, W) of its images; None where it is not known.
        trained_on: The data set that its checkpoint names; "" where it names none.
    """

    name: str
    model: nn.Module
    perturbations: list[AnySet]
    in_shape: tuple[int, ...] | None
    trained_on: str = ""


def add_network_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that name a network."""
    parser.add_argument(
        "checkpoint",
        nargs="?",
        help="file written by training (checkpoint.pt)",
        metavar="CHECKPOINT",
    )
    parser.add_argument(
        "--pretrained",
        metavar="NAME",
        help="a network that comes with this package; lirpa-multinorm pretrained lists them "
        "(default: none)",
    )
    parser.add_argument(
        "--model",
        metavar="MODULE:NAME",
        help=(
            "any torch module that takes images in [0, 1]: an object of a Python module, or a "
            "function or class that is called without arguments, found from the working folder on "
            "(default: none)"
        ),
    )
    parser.add_argument(
        "--weights",
        metavar="FILE",
        help=(
            "state dict for --model, bare or under a usual key such as model_state_dict; no code "
            "of the file is run (default: the module's own weights)"
        ),
    )


def network_of(args: argparse.Namespace) -> Network:
    """Load the network that the arguments name.

    Raises:
        InvalidArgumentError: They name none, or several, or a module that cannot be had.
        CheckpointError: A file cannot be used.
    """
    ways = [args.checkpoint, args.pretrained, args.model]
    if sum(way is not None for way in ways) != 1:
        given = " and ".join(str(way) for way in ways if way is not None) or "nothing"
        raise InvalidArgumentError(f"the network is named by {given}; give one: {_WAYS}")
    if args.weights is not None and args.model is None:
        raise InvalidArgumentError(
            f"--weights {args.weights}: a checkpoint has its own; give them beside --model only"
        )
    if args.model is not None:
        return _network_of_module(args.model, args.weights)
    if args.pretrained is not None:
        with in_words_of_flags(name="--pretrained"):
            checkpoint = pretrained(args.pretrained).checkpoint
    else:
        checkpoint = load_checkpoint(args.checkpoint)
    return Network(
        str(args.checkpoint or args.pretrained),
        checkpoint.model,
        checkpoint.perturbations,
        tuple(checkpoint.spec.in_shape),
        str(checkpoint.run["origin"].get("data") or ""),
    )


def _network_of_module(name: str, weights: str | None) -> Network:
    """Return the network that an object of a Python module is or builds."""
    model = _built(name, _imported(name))
    if weights is not None:
        with in_words_of_flags(initial="--weights"):
            load_weights(model, read_weights(weights), Path(weights))
    title = name if weights is None else f"{name} with {weights}"
    return Network(title, model.eval(), [], None)


def _imported(name: str) -> Any:
    """Return the object of a Python module that "module:name" names."""
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise InvalidArgumentError(
            f"--model {name}: give MODULE:NAME, such as networks:build for build() of networks.py"
        )
    sys.path.insert(0, os.getcwd())  # as python -m does
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # whatever the user's module raises
        raise InvalidArgumentError(
            f"--model {name}: the module {module_name!r} cannot be imported "
            f"({type(error).__name__}: {error}). Its file must lie in the working folder, or in an "
            "installed package"
        ) from error
    finally:
        sys.path.remove(os.getcwd())
    if not hasattr(module, attribute):
        hint = did_you_mean(attribute, [entry for entry in vars(module) if entry[0] != "_"])
        raise InvalidArgumentError(f"--model {name}: {module_name} has no {attribute!r}.{hint}")
    return getattr(module, attribute)


def _built(name: str, named: Any) -> nn.Module:
    """Return a module, or what a function or class builds."""
    if isinstance(named, nn.Module):
        return named
    if not callable(named):
        raise InvalidArgumentError(
            f"--model {name}: it is of type {type(named).__name__}. Name a torch module, or a "
            "function that returns one"
        )
    try:
        model = named()
    except Exception as error:  # whatever the user's function raises
        raise InvalidArgumentError(
            f"--model {name}: calling it without arguments raises {type(error).__name__}: {error}."
            " Name a function that needs none"
        ) from error
    if not isinstance(model, nn.Module):
        raise InvalidArgumentError(
            f"--model {name}: it returns a {type(model).__name__}. Return a torch module"
        )
    return model
