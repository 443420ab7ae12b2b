"""The search space of a loss where none is given."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from ..errors import InvalidArgumentError
from ..losses import LossTerm, accepts, build_loss
from ..perturbations.described import AnySet, has_radius
from ..training import TrainConfig
from ..utils.hints import nearest
from .space import Dimension, parse_dimension

#: Regions whose size is a share of the set's.
_SIZED = ("box", "ball", "clipped_ball", "released")
#: From this ratio down a region is a small box as CURE's, which is searched over decades.
_SMALL = 1e-2
DEFAULT = "default"


def default_space(config: TrainConfig, perturbations: Sequence[AnySet]) -> list[Dimension]:
    """Return the options of a loss that matter most for clean against certified accuracy.

    These are the learning rate, from a quarter to four times its value; kappa and l1 from 0 on; the
    loss's eta, alpha and weights where it has them; and of every term the size of its region, where
    it has one, and the factor on its radius.

    Args:
        config: The settings of training, with the loss and its options.
        perturbations: The sets.

    Example:
        >>> from lirpa_multinorm import PerturbationLinf
        >>> space = default_space(TrainConfig("sabr"), [PerturbationLinf(0.1)])
        >>> [dimension.flag for dimension in space]
        ['learning-rate', 'l1', 'kappa-end', 'ratio-inf', 'eps-factor-inf']
    """
    rate = config.learning_rate
    words = [f"learning-rate={rate / 4!r}:{4 * rate!r}:log", "l1=0:5e-5"]
    if config.loss != "natural":
        words.append("kappa-end=0:0.6")
        words += [
            word
            for word in ("eta=0.05:5:log", "alpha=0.05:1")
            if accepts(config.loss, word.partition("=")[0])
        ]
        words += _of_terms(config, perturbations)
    return [
        dimension
        for word in words
        for dimension in parse_dimension(word, config.loss, len(perturbations))
    ]


def _of_terms(config: TrainConfig, perturbations: Sequence[AnySet]) -> list[str]:
    """Return the words of the options of a loss's terms, and of their weights."""
    loss = build_loss(config.loss, perturbations, **config.loss_options)
    every = [] if loss is None else [term for term in loss.terms if isinstance(term, LossTerm)]
    terms = [term for term in every if has_radius(term.perturbation)]
    words = []
    if len(terms) > 1 and accepts(config.loss, "weights"):
        words.append("weights=0.1:0.9")
    for term in terms:
        norm = f"{term.perturbation.norm:g}"
        if term.region in _SIZED and accepts(config.loss, f"ratio_{norm}"):
            small = term.ratio < _SMALL
            words.append(f"ratio-{norm}={'1e-6:0.1' if small else '0.05:1'}:log")
        if accepts(config.loss, f"eps_factor_{norm}"):
            words.append(f"eps-factor-{norm}=0.5:1.5")
    return words


def space_of(
    words: Sequence[str],
    config: TrainConfig,
    perturbations: Sequence[AnySet],
    fixed: Collection[str] = (),
) -> list[Dimension]:
    """Return the search space that words of the command line name.

    Args:
        words: See :func:`~lirpa_multinorm.tuning.space.parse_dimension`; "default" stands for
            :func:`default_space`, of which words beside it replace dimensions; no word: the same.
        config: The settings of training, with the loss and its options.
        perturbations: The sets.
        fixed: Paths of settings that have a value of their own and are not searched by default.

    Raises:
        InvalidArgumentError: A word is wrong, a setting is named twice or has a value beside its
            range, or nothing is left to search.
    """
    named = _named(words, config, perturbations, fixed)
    if words and DEFAULT not in words:
        return list(named.values())
    searched = {
        dimension.path: dimension
        for dimension in default_space(config, perturbations)
        if _parent(dimension.path) not in fixed
    }
    if not searched and not named:
        raise InvalidArgumentError("--search: nothing is left to search; leave some flags out")
    return list({**searched, **named}.values())


def _named(
    words: Sequence[str],
    config: TrainConfig,
    perturbations: Sequence[AnySet],
    fixed: Collection[str],
) -> dict[str, Dimension]:
    """Return the dimensions that words name, by their paths."""
    named: dict[str, Dimension] = {}
    for word in words:
        if word == DEFAULT:
            continue
        if "=" not in word and nearest(word, [DEFAULT], cutoff=0.7):
            raise InvalidArgumentError(f"--search {word} is unknown; did you mean {DEFAULT}?")
        for dimension in parse_dimension(word, config.loss, len(perturbations)):
            if dimension.path in named:
                raise InvalidArgumentError(f"--search names {dimension.flag} twice; leave one out")
            if _parent(dimension.path) in fixed:
                raise InvalidArgumentError(
                    f"--search {word} and --{dimension.flag.partition('.')[0]} contradict each "
                    "other; leave one of them out"
                )
            named[dimension.path] = dimension
    return named


def _parent(path: str) -> str:
    """Return the path of the flag that a dimension belongs to."""
    parent, _, last = path.rpartition(".")
    return parent if last.isdigit() else path
