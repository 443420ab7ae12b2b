"""The parser of the command line: short usage, and hints for flags that do not exist."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from ..errors import InvalidArgumentError
from ..utils.hints import nearest
from .run_files import FLAG, expanded


class Parser(argparse.ArgumentParser):
    """A parser that answers a flag which does not exist with the one that was meant.

    An error is one line, with where to read on; argparse's would list all flags before it.

    Example:
        >>> parser = Parser(prog="train")
        >>> _ = parser.add_argument("--eps-inf")
        >>> parser.meant_by("--eps_inf=0.1")
        '--eps-inf'
    """

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Parse as argparse does, with a run file, and refuse a flag that does not exist."""
        words = list(sys.argv[1:] if args is None else args)
        if FLAG in self._option_string_actions:
            positionals = [action.dest for action in self._get_positional_actions()]
            try:
                words = expanded(words, self._option_string_actions, positionals, self.meant_by)
            except InvalidArgumentError as error:
                self.error(str(error))
        parsed, rest = super().parse_known_args(words, namespace)
        unknown = next((word for word in rest if word.startswith("--")), None)
        if unknown is not None:
            meant = self.meant_by(unknown)
            hint = f"; did you mean {meant}?" if meant else ""
            self.error(f"there is no flag {unknown.partition('=')[0]}{hint}")
        return parsed, rest

    def meant_by(self, word: str) -> str | None:
        """Return the flag that is spelled most like a word, or None where none is near."""
        flags = list(self._option_string_actions)
        name = word.partition("=")[0]
        dashed = f"--{name.lstrip('-').replace('_', '-').lower()}"
        return dashed if dashed in flags else next(iter(nearest(dashed, flags)), None)

    def error(self, message: str) -> NoReturn:
        """Print the message and where flags are explained, and exit with 2."""
        self.exit(2, f"error: {message}\n({self.prog} --help explains the flags)\n")
