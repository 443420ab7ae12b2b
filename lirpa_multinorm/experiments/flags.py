"""The flags of the command line that change settings of a run, and how they are added.

They are made from the settings themselves, see :mod:`.setting_sources`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .setting_sources import Setting, certification_settings, run_settings

#: Titles of groups of flags in a help text, each with the paths of its settings; of several that
#: fit the last one counts.
_GROUPS = {
    "radii": "eps.",
    "network": "model.",
    "training": "train.",
    "gradient projection": "train.projection.",
    "options of losses (each of those it has; a loss may have defaults of its own)": (
        "train.loss_options."
    ),
    "attack in training": "train.loss_options.attack.",
}


def in_words(value: Any) -> str:
    """Return a default for a help text.

    Example:
        >>> in_words(True), in_words(None), in_words((0.7, "90%")), in_words(1e-05)
        ('yes', 'none', '0.7 90%', '1e-05')
    """
    if value is None or value in ((), []):
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return " ".join(map(in_words, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def own_default(setting: Setting) -> str:
    """Return a setting's own default in words."""
    return in_words(setting.default)


def add_setting_groups(
    parser: argparse.ArgumentParser, description: str, default: Callable[[Setting], str]
) -> None:
    """Add the flags of all settings of a run, in groups.

    Args:
        parser: The parser.
        description: What the flags override, for the help.
        default: The default of a setting in words.
    """
    settings = run_settings()
    for title, path in _GROUPS.items():
        first = path == next(iter(_GROUPS.values()))
        group = parser.add_argument_group(title, description if first else None)
        deeper = [other for other in _GROUPS.values() if other.startswith(path) and other != path]
        _add(
            group,
            [
                setting
                for setting in settings
                if setting.path.startswith(path) and not setting.path.startswith(tuple(deeper))
            ],
            default,
        )


def add_setting_arguments(
    parser: argparse._ActionsContainer,
    paths: Sequence[str] = ("",),
    default: Callable[[Setting], str] = own_default,
) -> None:
    """Add the flags of all settings of a run whose path begins with a prefix.

    Args:
        parser: A parser, or a group of its arguments.
        paths: The prefixes.
        default: The default of a setting in words.
    """
    settings = run_settings()
    chosen = [setting for setting in settings if setting.path.startswith(tuple(paths))]
    _add(parser, chosen, default)


def add_certification_settings(parser: argparse._ActionsContainer) -> None:
    """Add the flags of everything about a certification."""
    _add(parser, certification_settings(), own_default)


def given(args: argparse.Namespace, prefix: str = "") -> dict[str, Any]:
    """Return the values that flags of settings have given, by path.

    Args:
        args: The parsed arguments; a setting's is one whose name has a dot.
        prefix: Only settings whose path begins with it, which is cut off.
    """
    return {
        name[len(prefix) :]: value
        for name, value in vars(args).items()
        if "." in name and name.startswith(prefix)
    }


def default_in(settings: Mapping[str, Any]) -> Callable[[Setting], str]:
    """Return the function from a setting to its default in words, which nested settings override.

    Args:
        settings: The nested settings, such as ``{"train": {"epochs": 40}}``.
    """

    def default(setting: Setting) -> str:
        """Return what the settings say, or what the setting says itself."""
        level: Any = settings
        for name in setting.path.split("."):
            level = level.get(name) if isinstance(level, Mapping) else None
        return in_words(setting.default if level is None else level)

    return default


def _add(
    parser: argparse._ActionsContainer,
    settings: Sequence[Setting],
    default: Callable[[Setting], str],
) -> None:
    """Add flags; of those that differ in the norm only the first is explained, and names them."""
    families: dict[str, list[Setting]] = {}
    for setting in settings:
        families.setdefault(setting.family, []).append(setting)
    for first, *others in families.values():
        text = _help(first, others, default)
        for setting in (first, *others):
            parser.add_argument(
                setting.flag,
                dest=setting.path,
                default=argparse.SUPPRESS,
                help=text if setting is first else argparse.SUPPRESS,
                **setting.argparse_options(),
            )


def _help(setting: Setting, others: Sequence[Setting], default: Callable[[Setting], str]) -> str:
    """Return a flag's sentence, choices and default, and the flags that differ in the norm."""
    text = setting.sentence
    if not all(f'"{name}"' in text for name in setting.names):
        text += f": {', '.join(setting.names)}"
    text += f" (default: {default(setting)}"
    same = [other.flag for other in others if default(other) == default(setting)]
    if same:
        text += f", also of {', '.join(same)}"
    for other in others:
        if other.flag not in same:
            text += f"; {other.flag}: {default(other)}"
    return f"{text})".replace("%", "%%")
