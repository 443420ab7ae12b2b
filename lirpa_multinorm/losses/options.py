"""Options of losses: fields of terms by norm, and fields of the training attack."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from ..attacks import AttackSettings
from ..errors import InvalidArgumentError
from ..perturbations import NORMS, PerturbationLpBox
from ..utils.hints import nearest
from .regions import TRAINING_ATTACK
from .terms import LossTerm

SABR_RATIO = 0.4  # lambda of SABR at MNIST 0.1
CURE_RATIO = 1e-5  # lambda_2 of every experiment of the paper


def _norms() -> dict[str, float]:
    """Return the norms by their names in options: "inf", "2", "1"."""
    return {f"{p:g}": p for p in NORMS}


def branch_options() -> list[str]:
    """Return the names of the options that set a term's field for a norm, such as "ratio_2"."""
    fields = [field.name for field in dataclasses.fields(LossTerm)]
    return [f"{name}_{norm}" for name in fields if name != "perturbation" for norm in _norms()]


def terms_for(
    perturbations: Sequence[PerturbationLpBox], options: Mapping[str, Any], **defaults
) -> list[LossTerm]:
    """Return a term per set, with SABR's small box for l_inf and CURE's for other norms by default.

    Args:
        perturbations: The sets.
        options: ``<field>_<norm>`` values.
        **defaults: Fields for all terms, which options override.

    Raises:
        TypeError: An option is unknown or names a norm that no set has; :func:`build_loss` adds the
            loss's name.
    """
    fields: dict[float, dict[str, Any]] = {}
    for option, value in options.items():
        name, _, norm = option.rpartition("_")
        if option not in branch_options():
            near = nearest(option, branch_options(), 3)
            raise TypeError(
                f"option {option}={value!r} is unknown"
                + (f"; nearest: {', '.join(near)}" if near else "")
            )
        fields.setdefault(_norms()[norm], {})[name] = value
    missing = set(fields) - {perturbation.norm for perturbation in perturbations}
    if missing:
        named = [option for option in options if _norms()[option.rpartition("_")[2]] in missing]
        raise TypeError(
            f"options {', '.join(named)} name a norm of which this loss has no set; leave them out"
        )
    terms = []
    for perturbation in perturbations:
        ratio = SABR_RATIO if perturbation.norm == float("inf") else CURE_RATIO
        values = {"ratio": ratio, **defaults, **fields.get(perturbation.norm, {})}
        terms.append(LossTerm(perturbation, **values))
    return terms


def attack_settings(options: Mapping[str, Any] | None) -> AttackSettings:
    """Return the training attack with some fields changed, also those that were read from JSON."""
    options = dict(options or {})
    # JSON has no infinity for a key, and no tuples.
    if isinstance(options.get("step_size"), Mapping):
        options["step_size"] = {
            _norms().get(str(norm), norm): share for norm, share in options["step_size"].items()
        }
    if "decays" in options:
        options["decays"] = tuple(map(tuple, options["decays"]))
    return dataclasses.replace(TRAINING_ATTACK, **options)


def of_norm(
    perturbations: Sequence[PerturbationLpBox], norm: float, loss: str
) -> list[PerturbationLpBox]:
    """Return the first set of a norm, in a list.

    Raises:
        InvalidArgumentError: There is none; ``loss`` names the loss in the message.
    """
    matching = [perturbation for perturbation in perturbations if perturbation.norm == norm]
    if not matching:
        raise InvalidArgumentError(
            f"perturbations has no set of norm {norm}, which the loss {loss!r} needs"
        )
    return matching[:1]
