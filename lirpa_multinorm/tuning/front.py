"""The Pareto front of a study: which trials no other beats, as table, JSON and figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..report import markdown_table, scatter_chart
from ..utils.files import write_json, write_text
from ..utils.statistics import proportion_interval

CLEAN, UNION = "clean", "certified union"
FILES = ("front.json", "front.md", "front.png")
_NOTE = (
    "Every number is of {n} images held out of the {name} training images, {train} of which the "
    "trials were trained on. No test image was used: the point that you choose is trained on all "
    "training images and certified on the test images by `lirpa-multinorm tune --output FOLDER "
    "--choose TRIAL`. The best of several trials on {n} images is a little better there than on "
    "others."
)


def front_of(points: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the points that no other beats, from the cleanest down.

    A point beats another that is better in neither clean nor certified accuracy, and worse in one.

    Args:
        points: Each with "clean" and "certified union".

    Example:
        >>> values = [(90, 60), (95, 50), (89, 60), (80, 70)]
        >>> points = [{"clean": clean, "certified union": union} for clean, union in values]
        >>> [tuple(point.values()) for point in front_of(points)]
        [(95, 50), (90, 60), (80, 70)]
    """
    kept = [point for point in points if not any(_beats(other, point) for other in points)]
    return sorted(kept, key=lambda point: (-point[CLEAN], -point[UNION]))


def _beats(first_row: Mapping[str, Any], second_row: Mapping[str, Any]) -> bool:
    """Return whether a point beats another."""
    first, second = (first_row[CLEAN], first_row[UNION]), (second_row[CLEAN], second_row[UNION])
    return first != second and all(value >= than for value, than in zip(first, second))


def write_front(
    folder: Path, points: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]
) -> list[Mapping[str, Any]]:
    """Write the front as JSON, Markdown and PNG.

    Args:
        folder: Where to write front.json, front.md and front.png.
        points: All finished trials: "trial", "values" by flag, and percentages of certification.
        settings: What the study is made of, for front.json: also "data", "n_train", "n" and "name".

    Returns:
        The points of the front.
    """
    front = front_of(points)
    chosen = {point["trial"] for point in front}
    content = {
        "front": front,
        "trials": [dict(point, front=point["trial"] in chosen) for point in points],
        "test images used": 0,
        **settings,
    }
    write_json(folder / FILES[0], content)
    write_text(folder / FILES[1], _text(front, points, settings))
    scatter_chart(
        [dict(_spread(point), kind=_kind(point, chosen)) for point in points],
        CLEAN,
        UNION,
        "trial",
        folder / FILES[2],
        f"{settings['data']}: {len(points)} trials (n = {settings['n']}, held out of training)",
        "clean (%)",
        "certified union (%)",
        group="kind",
    )
    return front


def _text(
    front: Sequence[Mapping[str, Any]],
    points: Sequence[Mapping[str, Any]],
    settings: Mapping[str, Any],
) -> str:
    """Return the front and the other trials as Markdown, and what they were certified on."""
    chosen = {point["trial"] for point in front}
    table = markdown_table([_row(point) for point in front], _columns(front))
    text = f"{len(front)} of {len(points)} trials that no other beats:\n\n{table}\n\n"
    rest = [_row(point) for point in points if point["trial"] not in chosen]
    if rest:
        text += f"The others:\n\n{markdown_table(rest, _columns(points))}\n\n"
    note = _NOTE.format(n=settings["n"], train=settings["n_train"], name=settings["name"])
    return f"{text}{note}\n"


def _kind(point: Mapping[str, Any], chosen: set[int]) -> str:
    return "front" if point["trial"] in chosen else "beaten by another trial"


def _spread(point: Mapping[str, Any]) -> dict[str, Any]:
    """Return a point with its trial's number as a name."""
    return {"trial": f"{point['trial']}", CLEAN: point[CLEAN], UNION: point[UNION]}


def _row(point: Mapping[str, Any]) -> dict[str, Any]:
    """Return a trial's line of the table."""
    low, high = proportion_interval(round(point[UNION] * point["n"] / 100), point["n"])
    return {
        "trial": point["trial"],
        CLEAN: point[CLEAN],
        UNION: point[UNION],
        "95 % interval": f"{100 * low:.1f} to {100 * high:.1f}",
        **{name: value for name, value in point.items() if name.startswith("certified l_")},
        **{flag: _word(value) for flag, value in point["values"].items()},
        "seconds": point["seconds"],
    }


def _columns(points: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the columns of the table."""
    return list(dict.fromkeys(name for point in points for name in _row(point)))


def _word(value: Any) -> Any:
    """Return a value of a setting as the table shows it."""
    return f"{value:.3g}" if isinstance(value, float) else value
