"""Settings that flags can change, read off dataclasses, signatures and registries.

A flag's name, type and default are those of the field, its sentence stands in the docstring, and
its choices are the names in a registry at the time that the command line is built.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple, cast

from ..attacks import AttackSettings
from ..attacks.objectives import LOSSES as ATTACK_LOSSES
from ..attacks.views import PRECISIONS
from ..certification.settings import EVALUATION_ATTACKS, ROUNDINGS, CertifySettings
from ..certification.stages import STAGES
from ..data import AUGMENTATIONS
from ..losses import LOSSES, TRAINING_ATTACK, Alignment, LossTerm, MultiNormLoss, SplitTerm, Taps
from ..losses.mixing import MIXES
from ..losses.multinorm import BLOCKS, COMBINE
from ..losses.options import SPLIT_FIELDS, terms_for
from ..losses.terms import BOUNDINGS, REGIONS
from ..models import MODELS, build_model
from ..perturbations import PerturbationLpBox
from ..perturbations.described import KINDS
from ..training import ModelSpec, Projection, Schedule, TrainConfig
from ..training.config import INITIALISATIONS
from ..training.optimizer import AdamSettings
from ..training.projection import OPTIMIZERS, STATISTICS
from ..training.schedule import RAMPS
from ..utils.documented import Documented, documented_arguments
from ..utils.words import Choice, length, milestone, number, whole
from .settings import norm_names

#: argparse's options for each type that a flag can have. Fields of other types have no flag.
_KINDS: dict[str, dict[str, Any]] = {
    "bool": {"action": argparse.BooleanOptionalAction},
    "int": {"type": whole, "metavar": "N"},
    "float": {"type": number, "metavar": "X"},
    "str": {"type": str, "metavar": "NAME"},
    "Length": {"type": length, "metavar": "LENGTH"},
    "tuple[Length, ...]": {"type": milestone, "nargs": "*", "metavar": "LENGTH"},
    "Sequence[int]": {"type": whole, "nargs": "*", "metavar": "N"},
    "Sequence[float]": {"type": number, "nargs": "+", "metavar": "X"},
    "Sequence[str]": {"type": str, "nargs": "+", "metavar": "NAME"},
}
#: What differs from the type's options.
_SPECIAL: dict[str, dict[str, Any]] = {
    "model.options.saturation": {"nargs": 2, "metavar": ("LOW", "HIGH")},
    "certify.methods": {"metavar": "METHOD"},
    "certify.time_limit": {"metavar": "SECONDS"},
    "certify.total_time_limit": {"metavar": "SECONDS"},
}
#: The names that a setting can have, by its family.
_CHOICES: dict[str, Iterable[str]] = {
    "model.name": MODELS,
    "train.initialization": INITIALISATIONS,
    "train.augment": AUGMENTATIONS,
    "train.schedule.ramp": RAMPS,
    "train.projection.statistics": STATISTICS,
    "train.projection.optimizer": OPTIMIZERS,
    "train.loss_options.region_*": REGIONS,
    "train.loss_options.mix_*": MIXES,
    "train.loss_options.bounding_*": BOUNDINGS,
    "train.loss_options.combine": COMBINE,
    "train.loss_options.blocks": BLOCKS,
    "train.loss_options.attack.loss": ATTACK_LOSSES,
    "train.loss_options.attack.precision": PRECISIONS,
    "certify.methods": STAGES,
    "certify.rounding": ROUNDINGS,
    "certify.attack.loss": ATTACK_LOSSES,
    "certify.attack.precision": PRECISIONS,
}
_OF_NETWORK = "the network's own"


class Setting(NamedTuple):
    """A setting that a flag gives.

    Args:
        flag: The flag, such as "--ratio-2".
        path: The setting's place in nested settings, with dots.
        family: The path with "*" for the norm; settings that differ in the norm share it.
        kind: The name of its type.
        default: Its default.
        sentence: What the help says of it.
        names: The names that it can have; empty where it is no name.
    """

    flag: str
    path: str
    family: str
    kind: str
    default: Any
    sentence: str
    names: tuple[str, ...] = ()

    def argparse_options(self) -> dict[str, Any]:
        """Return what ``add_argument`` needs besides name, default and help."""
        options = {**_KINDS[self.kind], **_SPECIAL.get(self.path, {})}
        return {**options, "type": Choice(self.names)} if self._is_name() else options

    def _is_name(self) -> bool:
        """Return whether only the names are taken.

        Methods are looked up in any spelling, and a network's factory answers for its name.
        """
        return bool(self.names) and self.kind == "str" and self.path != "model.name"


def run_settings() -> list[Setting]:
    """Return everything about a run that a flag can change, with what is registered now."""
    settings = [*_radii(), *_model(), *_training(), *_losses()]
    taken = {setting.flag for setting in settings}
    for setting in _loss_arguments():
        if setting.flag in taken:  # an option of a loss that somebody else has registered
            setting = setting._replace(flag=f"--loss-{setting.flag[2:]}")
        settings.append(setting)
    return settings


def certification_settings() -> list[Setting]:
    """Return everything about a certification that a flag can change."""
    return [
        *_of_fields(CertifySettings, "certify."),
        *_of_fields(
            AttackSettings,
            "certify.attack.",
            "attack-",
            {
                name: _common([getattr(attack, name) for attack in EVALUATION_ATTACKS])
                for name in documented_arguments(AttackSettings)
            },
        ),
    ]


def _common(values: list[Any]) -> Any:
    """Return the value that all have in common, or all of them in words."""
    return values[0] if values[1:] == values[:-1] else " and ".join(map(str, values))


def _radii() -> Iterator[Setting]:
    """Yield the radius of every norm."""
    for norm in norm_names():
        sentence = f"radius of the l_{norm} set, a number or a fraction such as 8/255"
        yield Setting(f"--eps-{norm}", f"eps.{norm}", f"eps.{norm}", "float", None, sentence)


def _model() -> Iterator[Setting]:
    """Yield the network's name, and the options of all networks."""
    yield _setting("model.name", "--model", "str", None, "network")
    options: dict[str, Documented] = {}
    for factory in MODELS.values():
        for argument in list(documented_arguments(factory).values())[2:]:
            known = options.setdefault(argument.name, argument)
            if _kind_of(known) == "int":  # one number for some networks, several for others
                options[argument.name] = known._replace(types=argument.types)
    of_all = documented_arguments(build_model)
    kept = {field.name for field in dataclasses.fields(ModelSpec)}
    options.update({name: of_all[name] for name in of_all.keys() - kept})
    for argument in options.values():
        default = argument.default if argument.name in of_all else _OF_NETWORK
        yield from _of_arguments([argument], "model.options.", "", {argument.name: default})


def _training() -> Iterator[Setting]:
    """Yield the fields of TrainConfig, of the schedule and of gradient projection."""
    for setting in _of_fields(TrainConfig, "train."):
        if setting.path != "train.loss":  # --losses names rows
            yield setting
    yield from _of_fields(Schedule, "train.schedule.")
    yield from _of_fields(AdamSettings, "train.adam.", "adam-")
    for setting in _of_fields(Projection, "train.projection.", "projection-"):
        beta = setting.path == "train.projection.beta"
        yield setting._replace(flag="--beta") if beta else setting


def _losses() -> Iterator[Setting]:
    """Yield the fields of a loss's terms for every norm and kind of set, and the attack's."""
    for norm in norm_names():
        term = cast(LossTerm, terms_for([PerturbationLpBox(norm, 1.0)], {})[0])
        for setting in _of_fields(LossTerm, "train.loss_options.", "", vars(term)):
            yield _of_norm(setting, norm)
        for setting in _of_fields(Taps, "train.loss_options.taps*.", "taps-", vars(term.taps)):
            yield _of_norm(setting, norm)
    for kind in KINDS:
        for setting in _of_fields(SplitTerm, "train.loss_options."):
            if setting.path.rpartition(".")[2] in SPLIT_FIELDS:
                flag, path = f"{setting.flag}-{kind}", f"{setting.path}_{kind}"
                yield setting._replace(flag=flag, path=path, family=f"{setting.path}_part")
    attack = vars(TRAINING_ATTACK)
    yield from _of_fields(AttackSettings, "train.loss_options.attack.", "attack-", attack)


def _of_norm(setting: Setting, norm: str) -> Setting:
    """Return a term's setting as that of a norm."""
    family = setting.path.replace("taps*", "taps_*") if "*" in setting.path else f"{setting.path}_*"
    return setting._replace(
        flag=f"{setting.flag}-{norm}",
        path=family.replace("*", norm),
        family=family,
        names=tuple(_CHOICES.get(family, ())),
    )


def _loss_arguments() -> Iterator[Setting]:
    """Yield the arguments of all losses but those of terms and of the attack."""
    known = {
        **documented_arguments(LossTerm),
        **documented_arguments(MultiNormLoss),
        **documented_arguments(Alignment),
    }
    options: dict[str, Documented] = {}
    for loss, factory in LOSSES.items():
        for argument in list(documented_arguments(factory).values())[1:]:
            like = known.get(argument.name, argument)
            sentence = argument.sentence or like.sentence or f"option of the loss {loss!r}"
            if argument.name != "attack":
                options.setdefault(
                    argument.name, argument._replace(sentence=sentence, types=like.types)
                )
    yield from _of_arguments(options.values(), "train.loss_options.")


def _of_fields(
    kind: type, path: str, prefix: str = "", defaults: Mapping[str, Any] | None = None
) -> Iterator[Setting]:
    """Yield the settings of a dataclass's fields that can have a flag."""
    yield from _of_arguments(documented_arguments(kind).values(), path, prefix, defaults)


def _of_arguments(
    arguments: Iterable[Documented],
    path: str,
    prefix: str = "",
    defaults: Mapping[str, Any] | None = None,
) -> Iterator[Setting]:
    """Yield the settings of arguments that can have a flag.

    Args:
        arguments: The arguments.
        path: What their paths begin with.
        prefix: What their flags begin with.
        defaults: Other defaults than their own.
    """
    for argument in arguments:
        kind = _kind_of(argument)
        if kind:
            flag = f"--{prefix}{argument.name.replace('_', '-')}"
            default = (defaults or {}).get(argument.name, argument.default)
            yield _setting(path + argument.name, flag, kind, default, argument.sentence)


def _setting(path: str, flag: str, kind: str, default: Any, sentence: str) -> Setting:
    """Return a setting with its choices."""
    names: Iterable[str] = _CHOICES.get(path, ())
    if path == "train.loss_options.target":
        names = (*norm_names(), "both")
    return Setting(flag, path, path, kind, default, sentence, tuple(names))


def _kind_of(argument: Documented) -> str:
    """Return the first of an argument's types that a flag can have, or ""."""
    return next((name for name in argument.types if name in _KINDS), "")
