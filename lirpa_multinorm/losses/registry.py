"""The registry of losses by name."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Callable

from ..errors import InvalidArgumentError
from ..perturbations.described import AnySet, certifiable_sets
from ..utils.hints import nearest
from .alignment import Alignment
from .distance import DistanceLoss
from .multinorm import MultiNormLoss
from .options import attack_settings, branch_options, of_norm, terms_for

#: Factories by name: ``(perturbations, **options) -> loss``; None is natural training.
LOSSES: dict[str, Callable[..., MultiNormLoss | None]] = {}

_ONLY = {"sabr": "_inf", "cure_l2": "_2"}  # ending of the term options of single-norm losses


def register_loss(name: str) -> Callable:
    """Return a decorator that adds a factory ``(perturbations, **options)`` to :data:`LOSSES`.

    Args:
        name: The loss's name; a name already taken is refused.

    Example:
        >>> from lirpa_multinorm import LossTerm
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


def build_loss(name: str, perturbations: Sequence[AnySet], **options) -> MultiNormLoss | None:
    """Return a loss by name.

    Args:
        name: One of :data:`LOSSES`. Single norm: "sabr", "cure_l2". All norms: "ibp", "joint",
            "max", "random", "cure" (Max with bound alignment), "mtl_ibp", "cc_ibp", "exp_ibp",
            "crown_ibp", "taps", "staps". Of l_inf-distance networks: "linf_dist". "natural" is
            training without a set.
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
        near = nearest(name, LOSSES, 3) or list(LOSSES)
        raise InvalidArgumentError(f"loss {name!r} is unknown; nearest: {', '.join(near)}")
    try:
        return LOSSES[name](certifiable_sets(perturbations), **options)
    except TypeError as error:
        raise InvalidArgumentError(f"loss {name!r}: {error}") from error


def accepts(loss: str, option: str) -> bool:
    """Return whether a loss has an option; single-norm losses have those of their norm only."""
    parameters = inspect.signature(LOSSES[loss]).parameters
    if option == "weights" and "combine" in parameters:  # needs combine="joint" as well
        return False
    if option in list(parameters)[1:]:
        return parameters[option].kind is not inspect.Parameter.VAR_KEYWORD
    kinds = [parameter.kind for parameter in parameters.values()]
    if inspect.Parameter.VAR_KEYWORD not in kinds:
        return False
    return option in branch_options() and option.endswith(_ONLY.get(loss, ""))


@register_loss("natural")
def _natural(perturbations) -> None:
    return None


@register_loss("ibp")
def _ibp(perturbations, weights=None, attack=None, regularized=None, **options) -> MultiNormLoss:
    return MultiNormLoss(
        terms_for(perturbations, options, region="set"),
        "joint",
        weights,
        attack_settings(attack),
        regularized=regularized,
    )


@register_loss("crown_ibp")
def _crown_ibp(
    perturbations, weights=None, attack=None, regularized=None, **options
) -> MultiNormLoss:
    terms = terms_for(perturbations, options, region="set", bounding="CROWN-IBP")
    return MultiNormLoss(terms, "joint", weights, attack_settings(attack), regularized=regularized)


@register_loss("taps")
def _taps(perturbations, weights=None, attack=None, regularized=None, **options) -> MultiNormLoss:
    terms = terms_for(perturbations, options, region="set", bounding="TAPS")
    return MultiNormLoss(terms, "joint", weights, attack_settings(attack), regularized=regularized)


@register_loss("staps")
def _staps(perturbations, weights=None, attack=None, regularized=None, **options) -> MultiNormLoss:
    """Return TAPS on SABR's box of the l_inf set, with other norms' usual regions by IBP."""
    of_norm(perturbations, float("inf"), "staps")
    terms = terms_for(perturbations, {"bounding_inf": "TAPS", **options})
    return MultiNormLoss(terms, "joint", weights, attack_settings(attack), regularized=regularized)


@register_loss("sabr")
def _sabr(perturbations, attack=None, **options) -> MultiNormLoss:
    return MultiNormLoss(
        terms_for(of_norm(perturbations, float("inf"), "sabr"), options),
        attack=attack_settings(attack),
    )


@register_loss("cure_l2")
def _cure_l2(perturbations, attack=None, **options) -> MultiNormLoss:
    return MultiNormLoss(
        terms_for(of_norm(perturbations, 2, "cure_l2"), options), attack=attack_settings(attack)
    )


@register_loss("joint")
def _joint(perturbations, weights=None, attack=None, regularized=None, **options) -> MultiNormLoss:
    return MultiNormLoss(
        terms_for(perturbations, options),
        "joint",
        weights,
        attack_settings(attack),
        regularized=regularized,
    )


@register_loss("max")
def _max(perturbations, attack=None, regularized=None, **options) -> MultiNormLoss:
    return MultiNormLoss(
        terms_for(perturbations, options),
        "max",
        attack=attack_settings(attack),
        regularized=regularized,
    )


@register_loss("random")
def _random(
    perturbations, attack=None, regularized=None, blocks="partition", **options
) -> MultiNormLoss:
    return MultiNormLoss(
        terms_for(perturbations, options),
        "random",
        attack=attack_settings(attack),
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
        attack_settings(attack),
        Alignment(eta, target, detach),
        regularized,
    )


register_loss("linf_dist")(DistanceLoss)


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
        """Build the loss with a mix of bound and adversarial point in every term."""
        terms = terms_for(
            perturbations, options, region="set", mix=mix, alpha=alpha, attack_scale=attack_scale
        )
        return MultiNormLoss(
            terms, combine, weights, attack_settings(attack), regularized=regularized
        )

    return build


for _name, _mix in (("mtl_ibp", "mtl"), ("cc_ibp", "cc"), ("exp_ibp", "exp")):
    register_loss(_name)(_mixed(_mix))
