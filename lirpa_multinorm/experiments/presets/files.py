"""The preset files: their names, and their content with the base merged in."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from typing import Any

from ...errors import InvalidArgumentError
from ...utils.hints import nearest
from ..settings import merge, norm_names

FOLDER = files(__package__)
RELEASED = "released"
REQUIRED = ("title", "data", "eps", "model", "train", "source")


def preset_names() -> list[str]:
    """Return the names of all presets, sorted.

    Example:
        >>> preset_names()[:2]
        ['cifar10-2_255-0.25-finetune', 'cifar10-2_255-0.25-joint']
    """
    stems = (path.name[: -len(".json")] for path in FOLDER.iterdir() if path.name.endswith(".json"))
    return sorted(stem for stem in stems if not stem.startswith("_"))


def preset_content(name: str, released: bool = False) -> dict:
    """Return a preset's content, with the released code's differences merged in or left out.

    Args:
        name: One of :func:`preset_names`.
        released: Whether to merge the object "released" in.

    Raises:
        InvalidArgumentError: There is no such preset, or its file is damaged.
    """
    content = read_preset(name)
    changes = content.pop(RELEASED, {})
    paper: dict[str, str] = {}
    code: dict[str, str] = {}
    for path, source in content["source"].items():
        at_code = path.startswith(f"{RELEASED}.")
        (code if at_code else paper)[path[len(RELEASED) + 1 :] if at_code else path] = source
    content["source"] = paper
    if released:
        # A source of the released code speaks for all below it, also for what the paper's sources
        # name one by one.
        kept = {
            path: source for path, source in paper.items() if nearest_source(code, path) is None
        }
        content = merge({**content, "source": {**kept, **code}}, changes)
    return content


def read_preset(name: str) -> dict:
    """Return a preset's file merged over its base, with the object "released" still apart."""
    names = preset_names()
    if name not in names:
        raise InvalidArgumentError(
            f"preset {name!r} is unknown; nearest: {', '.join(_nearest(str(name), names))}. "
            "`lirpa-multinorm presets` or preset_names() lists all"
        )
    content = _read(name)
    missing = [key for key in REQUIRED if key not in content]
    if missing:
        raise InvalidArgumentError(
            f"preset file {name}.json: {', '.join(missing)} missing; add it, or to the base"
        )
    _check_keys(f"{name}.json", content)
    if "name" not in content["model"]:
        raise InvalidArgumentError(
            f"preset file {name}.json: model.name missing; add it, or to the base"
        )
    return content


def leaves(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the path and value of every entry below ``content`` that is not a mapping.

    Example:
        >>> list(leaves({"eps": {"inf": 0.1}, "train": {"milestones": [50, 60]}}))
        [('eps.inf', 0.1), ('train.milestones', [50, 60])]
    """
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def nearest_source(source: Mapping[str, str], path: str) -> str | None:
    """Return the entry for a path or for the nearest one above it; None without one."""
    while path and path not in source:
        path = path.rpartition(".")[0]
    return source.get(path)


def _read(stem: str) -> dict:
    """Return a file's content merged over its base, without the key "base"."""
    file = f"{stem}.json"
    try:
        content = json.loads(FOLDER.joinpath(file).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidArgumentError(
            f"preset file {file} cannot be read: {error}. Install lirpa-multinorm again, or "
            "repair the file"
        ) from error
    if not isinstance(content, dict):
        raise InvalidArgumentError(
            f"preset file {file} holds a {type(content).__name__}; it must hold an object"
        )
    _check_keys(file, content)
    base = content.pop("base", None)
    if base is None:
        return content
    if stem.startswith("_") or not str(base).startswith("_"):
        raise InvalidArgumentError(
            f"preset file {file}: base={base!r} must be a file whose name starts with '_', and "
            "such a file has no base of its own"
        )
    return merge(_read(str(base)), content)


def _known_keys() -> dict[str, Sequence[str]]:
    """Return the keys that a file may have, and those of its objects that nothing else checks."""
    return {
        "": (*REQUIRED, "transforms", "patch", "base", "initial", RELEASED),
        "eps": norm_names(),
        "model": ("name", "options"),
        RELEASED: ("eps", "model", "train"),
        "released.eps": norm_names(),
        "released.model": ("name", "options"),
    }


def _check_keys(file: str, content: Mapping) -> None:
    """Raise InvalidArgumentError for an unknown key, or for a value where an object belongs."""
    for path, allowed in _known_keys().items():
        level: Any = content
        for key in filter(None, path.split(".")):
            level = {} if level.get(key) is None else level[key]
            if not isinstance(level, Mapping):
                raise InvalidArgumentError(
                    f"preset file {file}: {path}={level!r} must be an object"
                )
        unknown = sorted(f"{path}.{key}" if path else key for key in set(level) - set(allowed))
        if unknown:
            raise InvalidArgumentError(
                f"preset file {file}: unknown key {', '.join(unknown)}; known: {', '.join(allowed)}"
            )
    for key in ("train", "source"):
        if not isinstance(content.get(key, {}), Mapping):
            raise InvalidArgumentError(
                f"preset file {file}: {key}={content[key]!r} must be an object"
            )


def _nearest(name: str, names: list[str]) -> list[str]:
    """Return names that contain this one, then names spelled like it; all where there are none."""
    containing = [preset for preset in names if name and name.lower() in preset]
    near = nearest(name.lower(), names, 3, cutoff=0.5)
    return list(dict.fromkeys(containing + near))[:8] or names
