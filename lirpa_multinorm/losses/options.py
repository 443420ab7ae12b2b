"""Options of losses: fields of terms by norm, and fields of the training attack."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from ..attacks import AttackSettings
from ..errors import InvalidArgumentError
from ..perturbations import NORMS, PerturbationLpBox
from ..perturbations.described import KINDS, AnySet, has_radius
from ..perturbations.split import SplitPerturbation
from ..utils.hints import nearest
from .regions import TRAINING_ATTACK, AnyTerm
from .split_terms import SplitTerm
from .terms import LossTerm

#: Fields of a SplitTerm that options set.
SPLIT_FIELDS = ("ratio", "shrink", "candidates")

SABR_RATIO = 0.4  # lambda of SABR at MNIST 0.1
CURE_RATIO = 1e-5  # lambda_2 of every experiment of the paper


def _norms() -> dict[str, float]:
    """Return the norms by their names in options: "inf", "2", "1"."""
    return {f"{p:g}": p for p in NORMS}


def _suffixes() -> dict[str, float | str]:
    """Return what options are for by their endings: a norm, or a kind of sets without one."""
    return {**_norms(), **{kind: kind for kind in KINDS}}


def _key(perturbation: AnySet) -> float | str:
    """Return what the options of a set's term are for."""
    if isinstance(perturbation, SplitPerturbation):
        return perturbation.kind
    return perturbation.norm if has_radius(perturbation) else perturbation.name


def branch_options() -> list[str]:
    """Return the names of the options that set a term's field for a norm, such as "ratio_2"."""
    fields = [field.name for field in dataclasses.fields(LossTerm)]
    balls = [f"{name}_{norm}" for name in fields if name != "perturbation" for norm in _norms()]
    return balls + [f"{name}_{kind}" for name in SPLIT_FIELDS for kind in KINDS]


def terms_for(
    perturbations: Sequence[AnySet], options: Mapping[str, Any], **defaults
) -> list[AnyTerm]:
    """Return a term per set, with SABR's small box for l_inf and CURE's for other norms by default.

    Args:
        perturbations: The sets.
        options: ``<field>_<norm>`` values.
        **defaults: Fields for all terms, which options override.

    Raises:
        TypeError: An option is unknown or names a norm that no set has; :func:`build_loss` adds the
            loss's name.
    """
    fields: dict[float | str, dict[str, Any]] = {}
    for option, value in options.items():
        name, _, norm = option.rpartition("_")
        if option not in branch_options():
            near = nearest(option, branch_options(), 3)
            raise TypeError(
                f"option {option}={value!r} is unknown"
                + (f"; nearest: {', '.join(near)}" if near else "")
            )
        fields.setdefault(_suffixes()[norm], {})[name] = value
    missing = set(fields) - {_key(perturbation) for perturbation in perturbations}
    if missing:
        named = [option for option in options if _suffixes()[option.rpartition("_")[2]] in missing]
        raise TypeError(
            f"options {', '.join(named)} name a norm of which this loss has no set; leave them out"
        )
    terms: list[AnyTerm] = []
    for perturbation in perturbations:
        if isinstance(perturbation, SplitPerturbation):
            terms.append(SplitTerm(perturbation, **fields.get(perturbation.kind, {})))
            continue
        ratio = SABR_RATIO if perturbation.norm == float("inf") else CURE_RATIO
        values = {"ratio": ratio, **defaults, **fields.get(_key(perturbation), {})}
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


def of_norm(perturbations: Sequence[AnySet], norm: float, loss: str) -> list[PerturbationLpBox]:
    """Return the first set of a norm, in a list.

    Raises:
        InvalidArgumentError: There is none; ``loss`` names the loss in the message.
    """
    balls = [perturbation for perturbation in perturbations if has_radius(perturbation)]
    matching = [perturbation for perturbation in balls if perturbation.norm == norm]
    if not matching:
        raise InvalidArgumentError(
            f"perturbations has no set of norm {norm}, which the loss {loss!r} needs"
        )
    return matching[:1]
