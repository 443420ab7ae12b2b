"""Search spaces: settings of training with their ranges, by the names of train's flags."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from ..errors import InvalidArgumentError
from ..experiments.setting_sources import Setting, run_settings
from ..losses import accepts
from ..utils.hints import nearest
from ..utils.words import length, number, whole

#: Settings of training that are no choice of a method: what is compared must cost the same.
_FIXED = ("train.epochs", "train.seed", "train.partial_radius")
_LOSS_OPTIONS = "train.loss_options."
#: How a word of a list of choices is read, by the kind of the setting.
_WORDS: dict[str, Callable[[str], Any]] = {
    "float": number,
    "int": whole,
    "str": str,
    "Length": length,
    "bool": lambda word: {"yes": True, "no": False}[word],
}


class Dimension(NamedTuple):
    """A setting that is searched.

    Args:
        flag: Its flag without dashes, such as "ratio-inf".
        path: The setting's place in nested settings, such as "train.loss_options.ratio_inf".
        low: Smallest value; None for choices.
        high: Largest value; None for choices.
        log: Whether values are drawn evenly in their logarithm.
        choices: The values, where there is no range.
        whole: Whether values are whole numbers.
    """

    flag: str
    path: str
    low: float | None = None
    high: float | None = None
    log: bool = False
    choices: tuple[Any, ...] = ()
    whole: bool = False

    def has(self, value: Any) -> bool:
        """Return whether a value lies in the range, or is one of the choices."""
        if self.low is None or self.high is None:
            return value in self.choices
        number_like = isinstance(value, (int, float)) and not isinstance(value, bool)
        return number_like and self.low <= value <= self.high

    def ends(self) -> tuple[Any, ...]:
        """Return the smallest and the largest value, or all choices."""
        return self.choices or (self.low, self.high)

    def described(self) -> str:
        """Return the range in words.

        Example:
            >>> Dimension("eta", "train.loss_options.eta", 0.1, 10.0, log=True).described()
            '0.1 to 10 (log)'
        """
        if self.choices:
            return ", ".join(map(str, self.choices))
        return f"{self.low:g} to {self.high:g}{' (log)' if self.log else ''}"


def parse_dimension(word: str, loss: str, sets: int) -> list[Dimension]:
    """Return what a word of the command line searches.

    Args:
        word: "FLAG=LOW:HIGH", "FLAG=LOW:HIGH:log" or "FLAG=VALUE,VALUE,...", with the name of a
            flag of ``train``.
        loss: The loss that is tuned.
        sets: Number of sets, for "weights", which has one dimension less than there are sets.

    Returns:
        The dimension; for weights all of them.

    Raises:
        InvalidArgumentError: There is no such flag (the nearest is named), the loss has no such
            option, it cannot be searched, or the range is none.

    Example:
        >>> parse_dimension("ratio-inf=0.05:0.8:log", "joint", 2)[0].described()
        '0.05 to 0.8 (log)'
        >>> parse_dimension("region-2=box,ball", "joint", 2)[0].choices
        ('box', 'ball')
    """
    name, equals, text = word.partition("=")
    setting = _setting(name.lstrip("-"), loss)
    if not equals or not text:
        raise InvalidArgumentError(
            f"--search {word}: give a range, such as {name}=0.1:1, {name}=0.1:1:log, or values, "
            f"such as {name}=0.1,0.2"
        )
    flag = setting.flag[2:]
    if setting.kind == "Sequence[float]" and flag == "weights":
        return _weights(_range(flag, setting.path, "float", text, word), sets)
    if setting.kind not in _WORDS:
        raise InvalidArgumentError(
            f"--search {word}: {setting.flag} takes a list; search single numbers and names"
        )
    if ":" in text:
        return [_range(flag, setting.path, setting.kind, text, word)]
    return [Dimension(flag, setting.path, choices=_choices(setting, text, word))]


def _weights(ranged: Dimension, sets: int) -> list[Dimension]:
    """Return the dimensions of weights, each with the same range."""
    if sets < 2:
        raise InvalidArgumentError("--search weights: there is one set, and nothing to weigh")
    return [
        ranged._replace(flag=f"{ranged.flag}.{index}", path=f"{ranged.path}.{index}")
        for index in range(1, sets)
    ]


def _setting(name: str, loss: str) -> Setting:
    """Return the setting of a flag that can be searched for a loss."""
    settings = {setting.flag[2:]: setting for setting in run_settings()}
    usable = [
        flag
        for flag, setting in settings.items()
        if setting.path.startswith("train.")
        and setting.path not in _FIXED
        and (not setting.path.startswith(_LOSS_OPTIONS) or _accepts(loss, setting))
    ]
    if name in usable:
        return settings[name]
    near = nearest(name, usable, 3)
    hint = f"; nearest: {', '.join(near)}" if near else ""
    if name not in settings:
        raise InvalidArgumentError(f"--search {name}: train has no flag --{name}{hint}")
    if settings[name].path.startswith(_LOSS_OPTIONS):
        raise InvalidArgumentError(f"--search {name}: the loss {loss!r} has no such option{hint}")
    raise InvalidArgumentError(
        f"--search {name}: it is the same for all trials, so that they can be compared; give "
        f"--{name} itself"
    )


def _accepts(loss: str, setting: Setting) -> bool:
    """Return whether a loss has the option of a setting."""
    return accepts(loss, setting.path[len(_LOSS_OPTIONS) :].partition(".")[0])


def _range(flag: str, path: str, kind: str, text: str, word: str) -> Dimension:
    """Return the dimension of "LOW:HIGH" or "LOW:HIGH:log"."""
    parts = text.split(":")
    is_whole = kind == "int"
    try:
        low, high = (whole(part) if is_whole else number(part) for part in parts[:2])
        log = parts[2:] == ["log"]
        if (parts[2:] and not log) or kind not in ("int", "float", "Length"):
            raise ValueError(text)
    except (ValueError, argparse.ArgumentTypeError):
        raise InvalidArgumentError(
            f"--search {word}: {text!r} is no range of {kind}; write LOW:HIGH or LOW:HIGH:log, or "
            "values with commas between"
        ) from None
    if not (math.isfinite(low) and math.isfinite(high) and low < high) or (log and low <= 0):
        raise InvalidArgumentError(
            f"--search {word}: the range {text} must go up, between finite numbers, and with log "
            "from above 0"
        )
    return Dimension(flag, path, low, high, log, whole=is_whole)


def _choices(setting: Setting, text: str, word: str) -> tuple[Any, ...]:
    """Return the values of "VALUE,VALUE,..."."""
    words = text.split(",")
    try:
        values = tuple(_WORDS[setting.kind](part) for part in words)
    except (KeyError, argparse.ArgumentTypeError):
        allowed = "yes, no" if setting.kind == "bool" else "numbers"
        raise InvalidArgumentError(
            f"--search {word}: {text!r} are no values of {setting.flag}; use {allowed}"
        ) from None
    wrong = [part for part in words if setting.names and part not in setting.names]
    if wrong:
        raise InvalidArgumentError(
            f"--search {word}: {wrong[0]!r} is unknown; use {', '.join(setting.names)}"
        )
    if len(set(values)) < len(values) or len(values) < 2:
        raise InvalidArgumentError(f"--search {word}: give two or more different values")
    return values


def with_values(train: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings of training with the values of a trial.

    Args:
        train: The settings, as :meth:`TrainConfig.to_dict` has them.
        values: By the dimensions' paths. Those of weights are shares of what is left, from the
            first set on, so that all weights are positive and have the sum 1.

    Example:
        >>> with_values({"l1": 0.0}, {"train.l1": 1e-5, "train.loss_options.weights.1": 0.25})
        {'l1': 1e-05, 'loss_options': {'weights': [0.25, 0.75]}}
    """
    changed = {name: _copied(value) for name, value in train.items()}
    shares: list[float] = []
    for path, value in values.items():
        *parents, last = path.split(".")[1:]
        if parents[-1:] == ["weights"]:
            shares.append(value)
            continue
        level = changed
        for parent in parents:
            level = level.setdefault(parent, {})
        level[last] = value
    if shares:
        changed.setdefault("loss_options", {})["weights"] = weights_of(shares)
    return changed


def weights_of(shares: Sequence[float]) -> list[float]:
    """Return weights with the sum 1 from each set's share of what those before have left.

    Example:
        >>> weights_of([0.5, 0.5])
        [0.5, 0.25, 0.25]
    """
    weights, left = [], 1.0
    for share in shares:
        weights.append(left * share)
        left *= 1 - share
    return [*weights, left]


def _copied(value: Any) -> Any:
    """Return nested mappings copied."""
    if isinstance(value, Mapping):
        return {name: _copied(inner) for name, inner in value.items()}
    return value
