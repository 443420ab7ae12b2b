"""Run files: the arguments of a command in YAML or JSON."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Callable

import yaml

from ..errors import InvalidArgumentError

FLAG = "--config"


def add_run_file_argument(parser: argparse.ArgumentParser) -> None:
    """Add the argument that names a run file; :func:`expanded` reads it."""
    parser.add_argument(
        FLAG,
        metavar="FILE",
        help=(
            "YAML or JSON file of flags without their dashes, such as eps-inf: 0.1, of this "
            "command; flags beside it override it (default: flags alone)"
        ),
    )


def expanded(
    words: Sequence[str],
    actions: Mapping[str, argparse.Action],
    positionals: Sequence[str],
    meant: Callable[[str], str | None],
) -> list[str]:
    """Return a command's words with those of its run file, in front of the flags it overrides.

    Args:
        words: The command's words.
        actions: What each flag of the command does.
        positionals: The names of its positional arguments.
        meant: A function from a flag that does not exist to the nearest one, or None.

    Raises:
        InvalidArgumentError: The file cannot be read, or holds something that is no argument.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "run.yaml"
        >>> _ = path.write_text("eps_inf: 8/255")
        >>> actions = {"--eps-inf": argparse.Action(["--eps-inf"], "eps")}
        >>> words = ["net.pt", f"--config={path}", "--seed", "1"]
        >>> expanded(words, actions, [], lambda word: None)
        ['net.pt', '--eps-inf', '8/255', '--seed', '1']
    """
    files, rest = _split(words)
    if not files:
        return list(words)
    if len(files) > 1:
        raise InvalidArgumentError(f"{FLAG} is given {len(files)} times; give one run file")
    entries = _entries(files[0])
    flags: list[str] = []
    for name in [name for name in entries if name not in positionals]:
        flags += _words_of(files[0], name, entries[name], actions, meant)
    leading = [word for name in positionals if name in entries for word in _texts(entries[name])]
    start = next((index for index, word in enumerate(rest) if word.startswith("-")), len(rest))
    # What is given beside the file stands last, and counts.
    return [*(rest[:start] or leading), *flags, *rest[start:]]


def _split(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the run files that are named, and the other words."""
    files, rest = [], []
    following = iter(words)
    for word in following:
        if word == FLAG:
            files.append(next(following, ""))
        elif word.startswith(f"{FLAG}="):
            files.append(word.partition("=")[2])
        else:
            rest.append(word)
    return files, rest


def _entries(path: str) -> dict[str, Any]:
    """Return what a run file holds, by the names of flags without dashes in front."""
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise InvalidArgumentError(f"{FLAG} {path!r}: it cannot be read ({reason})") from error
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise InvalidArgumentError(
            f"{FLAG} {path}: it holds no names with values; write lines such as eps-inf: 0.1"
        )
    return {name.replace("_", "-"): value for name, value in content.items()}


def _words_of(
    path: str,
    name: str,
    value: Any,
    actions: Mapping[str, argparse.Action],
    meant: Callable[[str], str | None],
) -> list[str]:
    """Return the words of an entry; a value that is null leaves the flag out."""
    flag = f"--{name}"
    if flag not in actions or flag == FLAG:
        hint = meant(flag)
        hint = f"; did you mean {hint.lstrip('-')}?" if hint else ""
        raise InvalidArgumentError(f"{FLAG} {path}: there is no flag {flag}{hint}")
    if value is None or isinstance(value, dict):
        if value is None:
            return []
        raise InvalidArgumentError(
            f"{FLAG} {path}: {name} holds names with values; write each flag on a line of its own"
        )
    if isinstance(value, bool):
        negative = f"--no-{name}"
        if actions[flag].nargs != 0:
            raise InvalidArgumentError(f"{FLAG} {path}: {name}: {value} is no value of this flag")
        return [flag] if value else [negative] if negative in actions else []
    return [flag, *_texts(value)]


def _texts(value: Any) -> Iterator[str]:
    """Yield a value, or those of a list, as words of a command line."""
    yield from map(str, value if isinstance(value, list) else [value])
