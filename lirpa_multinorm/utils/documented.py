"""What docstrings and signatures say about arguments, of which the command line makes its flags."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

_ENTRY = re.compile(r"    \*{0,2}(\w+): (.*)")
_REFERENCE = re.compile(r"See ``(\w+)``\.?")
_ROLE = re.compile(r":\w+:`~?(?:[\w.]*\.)?(\w+)`")
_LITERAL = re.compile(r"``(.+?)``")
_SENTENCE_END = re.compile(r"(?<=\.)\s+(?=[A-Z\"`])")
_OPTIONAL = re.compile(r"Optional\[(.+)\]")
_MODULE = re.compile(r"\b(?:\w+\.)+")


class Documented(NamedTuple):
    """An argument as its signature and docstring have it.

    Args:
        name: Its name.
        types: The names of the types that it may have, such as ``("int", "None")``.
        default: Its default; :attr:`inspect.Parameter.empty` where it has none.
        sentence: The first sentence about it, without a full stop; "" where nothing is said.
    """

    name: str
    types: tuple[str, ...]
    default: Any
    sentence: str


def documented_arguments(function: Any) -> dict[str, Documented]:
    """Return the arguments of a function or class by name, those that ``**`` collects left out.

    Example:
        >>> def blur(images, width: int = 3, share=0.5):
        ...     '''Blur.
        ...
        ...     Args:
        ...         images: What to blur.
        ...         width: Of the kernel, see :func:`blur`. Odd.
        ...     '''
        >>> width, share = list(documented_arguments(blur).values())[1:]
        >>> width
        Documented(name='width', types=('int',), default=3,
        sentence='width of the kernel, see blur')
        >>> share.types, share.sentence
        (('float',), '')
    """
    sentences = argument_sentences(inspect.getdoc(function) or "")
    arguments = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            continue
        types = tuple(_types(parameter.annotation, parameter.default))
        arguments[name] = Documented(name, types, parameter.default, sentences.get(name, ""))
    return arguments


def argument_sentences(docstring: str) -> dict[str, str]:
    """Return the first sentence that a Google docstring says about each argument.

    Markup is taken out. What begins with "Of" gets the argument's name in front, and a reference
    such as "See ``width``." what is said there.

    Args:
        docstring: The docstring, as :func:`inspect.getdoc` gives it.
    """
    texts: dict[str, str] = {}
    name = ""
    _, _, section = docstring.partition("\nArgs:\n")
    for line in section.splitlines():
        if line and not line.startswith(" "):
            break
        entry = _ENTRY.fullmatch(line)
        if entry:
            name, texts[entry[1]] = entry[1], entry[2]
        elif line.strip() and name:
            texts[name] += f" {line.strip()}"
    for name, text in texts.items():
        reference = _REFERENCE.fullmatch(text)
        if reference:
            texts[name] = texts.get(reference[1], "")
    return {name: _sentence(name, text) for name, text in texts.items()}


def _sentence(name: str, text: str) -> str:
    """Return the first sentence of a text about an argument, as a phrase without markup."""
    text = _SENTENCE_END.split(text)[0].rstrip(".")
    text = _LITERAL.sub(r"\1", _ROLE.sub(r"\1", text)).replace("**", "")
    if text.startswith("Of "):
        text = f"{name.replace('_', ' ')} o{text[1:]}"
    first = text.partition(" ")[0]
    return text[:1].lower() + text[1:] if first[1:] == first[1:].lower() else text


def _types(annotation: Any, default: Any) -> Iterator[str]:
    """Yield the names of the types of an annotation, or of a default where there is none."""
    if annotation is inspect.Parameter.empty:
        if isinstance(default, (list, tuple)) and default:
            yield f"Sequence[{type(default[0]).__name__}]"
        elif default not in (None, inspect.Parameter.empty):
            yield type(default).__name__
        return
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    optional = _OPTIONAL.fullmatch(_MODULE.sub("", text))
    text = f"{optional[1]} | None" if optional else _MODULE.sub("", text)
    yield from (part.strip() for part in text.split("|"))
