"""Losses by name."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Callable

from ..attacks import AttackSettings
from ..errors import InvalidArgumentError
from ..perturbations import NORMS, PerturbationLpBox, as_perturbations
from .alignment import Alignment
from .multinorm import MultiNormLoss
from .terms import TRAINING_ATTACK, LossTerm

#: Factories by name: ``(perturbations, **options) -> loss``; None is natural training.
LOSSES: dict[str, Callable[..., MultiNormLoss | None]] = {}

SABR_RATIO = 0.4  # lambda of SABR at MNIST 0.1
CURE_RATIO = 1e-5  # lambda_2 of every experiment of the paper
_ONLY = {"sabr": "_inf", "cure_l2": "_2"}  # ending of the term options of single-norm losses


def register_loss(name: str) -> Callable:
    """Return a decorator that adds a factory ``(perturbations, **options)`` to :data:`LOSSES`.

    Args:
        name: The loss's name; a name already taken is refused.

    Example:
        >>> @register_loss("first_set_only")
        ... def first_set_only(perturbations):
        ...     return MultiNormLoss([LossTerm(perturbations[0], "set")])
        >>> _ = LOSSES.pop("first_set_only")
    """

    def add(factory: Callable) -> Callable:
        if name in LOSSES:
            raise InvalidArgumentError(f"name={name!r} is already a loss; choose another")
        LOSSES[name] = factory
        return factory

    return add


def build_loss(
    name: str, perturbations: Sequence[PerturbationLpBox], **options
) -> MultiNormLoss | None:
    """Return a loss by name.

    Args:
        name: One of :data:`LOSSES`. Single norm: "sabr", "cure_l2". All norms: "ibp", "joint",
            "max", "random", "cure" (Max with bound alignment), "mtl_ibp", "cc_ibp", "exp_ibp",
            "crown_ibp", "taps", "staps". "natural" is training without a set.
        perturbations: The sets; single-norm losses use the one of their norm.
        **options: ``<field>_<norm>`` sets a field of :class:`LossTerm` for a norm: ``ratio_inf``
            (SABR's lambda), ``ratio_2`` (lambda_2), ``region_2`` ("box" as in the paper, "ball",
            "lipschitz", ...), ``mix_2``, ``shrink_inf``, ``bounding_2`` and so on. ``attack`` is a
            dict of fields of :class:`AttackSettings`. ``weights`` (Joint), ``blocks`` (Random),
            ``regularized`` as in :class:`MultiNormLoss`; "cure" takes ``eta``, ``target``,
            ``detach`` and ``combine``; "mtl_ibp", "cc_ibp" and "exp_ibp" take ``alpha``,
            ``attack_scale``, ``combine`` and ``weights``.

    Returns:
        The loss, or None for natural training.

    Raises:
        InvalidArgumentError: Unknown name or option, a value out of range, or no set of a norm that
            is named.

    Example:
        >>> from lirpa_multinorm import PerturbationLinf, PerturbationL2Box
        >>> sets = [PerturbationLinf(0.1), PerturbationL2Box(0.5)]
        >>> loss = build_loss("max", sets, ratio_inf=0.4, region_2="ball")
        >>> [(term.region, term.ratio) for term in loss.terms]
        [('box', 0.4), ('ball', 1e-05)]
    """
    if name not in LOSSES:
        near = difflib.get_close_matches(str(name), LOSSES, n=3) or list(LOSSES)
        raise InvalidArgumentError(f"loss {name!r} is unknown; nearest: {', '.join(near)}")
    try:
        return LOSSES[name](as_perturbations(perturbations), **options)
    except TypeError as error:
        raise InvalidArgumentError(f"loss {name!r}: {error}") from error


def _norms() -> dict[str, float]:
    """Return every norm by the name it has in options: "inf", "2", "1"."""
    return {f"{p:g}": p for p in NORMS}


def branch_options() -> list[str]:
    """Return the names of the options that set a term's field for a norm, such as "ratio_2"."""
    fields = [one.name for one in dataclasses.fields(LossTerm) if one.name != "perturbation"]
    return [f"{one}_{norm}" for one in fields for norm in _norms()]


def accepts(loss: str, option: str) -> bool:
    """Return whether a loss has an option; single-norm losses have those of their norm only."""
    parameters = inspect.signature(LOSSES[loss]).parameters
    if option == "weights" and "combine" in parameters:  # of use only together with combine="joint"
        return False
    if option in list(parameters)[1:]:
        return parameters[option].kind is not inspect.Parameter.VAR_KEYWORD
    if not any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters.values()):
        return False
    return option in branch_options() and option.endswith(_ONLY.get(loss, ""))


def terms_for(
    perturbations: Sequence[PerturbationLpBox], options: Mapping[str, Any], **defaults
) -> list[LossTerm]:
    """Return one term per set.

    SABR's small box for l_inf, CURE's for the others, but for what options say.

    Args:
        perturbations: The sets.
        options: ``<field>_<norm>`` values.
        **defaults: Fields for all terms, where options say nothing.

    Raises:
        TypeError: An option is unknown or names a norm that no set has; :func:`build_loss` adds the
            loss's name.
    """
    fields: dict[float, dict[str, Any]] = {}
    for option, value in options.items():
        name, _, norm = option.rpartition("_")
        if option not in branch_options():
            near = difflib.get_close_matches(option, branch_options(), n=3)
            raise TypeError(
                f"option {option}={value!r} is unknown"
                + (f"; nearest: {', '.join(near)}" if near else "")
            )
        fields.setdefault(_norms()[norm], {})[name] = value
    missing = set(fields) - {one.norm for one in perturbations}
    if missing:
        named = [option for option in options if _norms()[option.rpartition("_")[2]] in missing]
        raise TypeError(
            f"options {', '.join(named)} name a norm of which this loss has no set; leave them out"
        )
    ratio = lambda one: SABR_RATIO if one.norm == float("inf") else CURE_RATIO  # noqa: E731
    return [
        LossTerm(one, **{"ratio": ratio(one), **defaults, **fields.get(one.norm, {})})
        for one in perturbations
    ]


def _attack(options: Mapping[str, Any] | None) -> AttackSettings:
    """Return the training attack with some fields changed.

    JSON has no infinity for a key of ``step_size``.
    """
    options = dict(options or {})
    if isinstance(options.get("step_size"), Mapping):
        options["step_size"] = {
            _norms().get(str(norm), norm): share for norm, share in options["step_size"].items()
        }
    if "decays" in options:
        options["decays"] = tuple(map(tuple, options["decays"]))
    return dataclasses.replace(TRAINING_ATTACK, **options)


def _of_norm(perturbations: Sequence[PerturbationLpBox], norm: float, loss: str) -> list:
    found = [one for one in perturbations if one.norm == norm]
    if not found:
        raise InvalidArgumentError(
            f"perturbations has no set of norm {norm}, which the loss {loss!r} needs"
        )
    return found[:1]


@register_loss("natural")
def _natural(perturbations) -> None:
    return None


@register_loss("ibp")
def _ibp(perturbations, weights=None, attack=None, regularized=None, **options) -> MultiNormLoss:
    return MultiNormLoss(
        terms_for(perturbations, options, region="set"),
        "joint",
        weights,
        _attack(attack),
        regularized=regularized,
    )


@register_loss("crown_ibp")
def _crown_ibp(
    perturbations, weights=None, attack=None, regularized=None, **options
) -> MultiNormLoss:
    terms = terms_for(perturbations, options, region="set", bounding="CROWN-IBP")
    return MultiNormLoss(terms, "joint", weights, _attack(attack), regularized=regularized)


@register_loss("taps")
def _taps(perturbations, weights=None, attack=None, regularized=None, **options) -> MultiNormLoss:
    terms = terms_for(perturbations, options, region="set", bounding="TAPS")
    return MultiNormLoss(terms, "joint", weights, _attack(attack), regularized=regularized)


@register_loss("staps")
def _staps(perturbations, weights=None, attack=None, regularized=None, **options) -> MultiNormLoss:
    """TAPS on SABR's box of the l_inf set.

    Other norms have their usual regions, by IBP if no option says else.
    """
    _of_norm(perturbations, float("inf"), "staps")
    terms = terms_for(perturbations, {"bounding_inf": "TAPS", **options})
    return MultiNormLoss(terms, "joint", weights, _attack(attack), regularized=regularized)


@register_loss("sabr")
def _sabr(perturbations, attack=None, **options) -> MultiNormLoss:
    return MultiNormLoss(
        terms_for(_of_norm(perturbations, float("inf"), "sabr"), options), attack=_attack(attack)
    )


@register_loss("cure_l2")
def _cure_l2(perturbations, attack=None, **options) -> MultiNormLoss:
    return MultiNormLoss(
        terms_for(_of_norm(perturbations, 2, "cure_l2"), options), attack=_attack(attack)
    )


@register_loss("joint")
def _joint(perturbations, weights=None, attack=None, regularized=None, **options) -> MultiNormLoss:
    return MultiNormLoss(
        terms_for(perturbations, options),
        "joint",
        weights,
        _attack(attack),
        regularized=regularized,
    )


@register_loss("max")
def _max(perturbations, attack=None, regularized=None, **options) -> MultiNormLoss:
    return MultiNormLoss(
        terms_for(perturbations, options), "max", attack=_attack(attack), regularized=regularized
    )


@register_loss("random")
def _random(
    perturbations, attack=None, regularized=None, blocks="partition", **options
) -> MultiNormLoss:
    return MultiNormLoss(
        terms_for(perturbations, options),
        "random",
        attack=_attack(attack),
        regularized=regularized,
        blocks=blocks,
    )


@register_loss("cure")
def _cure(
    perturbations,
    eta=2.0,
    target=2,
    detach=False,
    combine="max",
    weights=None,
    attack=None,
    regularized=None,
    **options,
) -> MultiNormLoss:
    return MultiNormLoss(
        terms_for(perturbations, options),
        combine,
        weights,
        _attack(attack),
        Alignment(eta, target, detach),
        regularized,
    )


def _mixed(mix: str) -> Callable[..., MultiNormLoss]:
    def build(
        perturbations,
        alpha=0.5,
        attack_scale=1.0,
        combine="max",
        weights=None,
        attack=None,
        regularized=None,
        **options,
    ) -> MultiNormLoss:
        terms = terms_for(
            perturbations, options, region="set", mix=mix, alpha=alpha, attack_scale=attack_scale
        )
        return MultiNormLoss(terms, combine, weights, _attack(attack), regularized=regularized)

    return build


for _name, _mix in (("mtl_ibp", "mtl"), ("cc_ibp", "cc"), ("exp_ibp", "exp")):
    register_loss(_name)(_mixed(_mix))
