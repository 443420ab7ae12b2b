"""What griffe, which reads the package for the reference, does not know of its docstrings."""

from __future__ import annotations

import re
from typing import Any

import griffe

#: Roles of Sphinx, such as :class:`Name`.
_ROLE = re.compile(r":(?:attr|class|data|func|meth|mod):(?=`)")


class Docstrings(griffe.Extension):
    """Reads ``Example`` as ``Examples``, and comments that begin with ``#:`` as docstrings."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Change the docstring of one object."""
        if obj.is_attribute and obj.docstring is None:
            obj.docstring = _comment(obj)
        if obj.docstring is not None:
            text = re.sub(r"(?m)^Example:$", "Examples:", obj.docstring.value)
            obj.docstring.value = _ROLE.sub("", text)


def _comment(attribute: griffe.Object) -> griffe.Docstring | None:
    """Return the lines that begin with ``#:`` in front of an attribute, or None."""
    lines = attribute.module.lines_collection[attribute.filepath][: (attribute.lineno or 1) - 1]
    words: list[str] = []
    while lines and lines[-1].lstrip().startswith("#:"):
        words.insert(0, lines.pop().lstrip()[2:].strip())
    return griffe.Docstring(" ".join(words), parent=attribute) if words else None
