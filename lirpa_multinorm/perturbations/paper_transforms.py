"""The transforms of CURE's Tables 2 and 3, by the names of their columns."""

from __future__ import annotations

from ..errors import InvalidArgumentError
from ..utils.hints import did_you_mean
from .geometric import PerturbationGeometric

#: Arguments and widths of the published grid's cells, by data set and column.
_COLUMNS: dict[str, dict[str, tuple[dict[str, float], dict[str, float]]]] = {
    "mnist": {
        "r30": ({"rotation": 30}, {"rotation": 0.25}),
        "t2": ({"translation": 2}, {"translation_x": 0.05, "translation_y": 0.05}),
        "sc5-r5-c5-b0.01": (
            {"scale": 0.05, "rotation": 5, "contrast": 0.05, "brightness": 0.01},
            {"scale": 0.005, "rotation": 0.125, "contrast": 0.05, "brightness": 0.02},
        ),
        "sh2-r2-sc2-c2-b0.001": (
            {"shear": 0.02, "rotation": 2, "scale": 0.02, "contrast": 0.02, "brightness": 0.001},
            {
                "shear": 0.0025,
                "rotation": 0.0625,
                "scale": 0.0025,
                "contrast": 0.04,
                "brightness": 0.002,
            },
        ),
    },
    "cifar10": {
        "r10": ({"rotation": 10}, {"rotation": 0.0002}),
        "r2-sh2": ({"rotation": 2, "shear": 0.02}, {"rotation": 0.01, "shear": 0.00025}),
        "sc1-r1-c1-b0.001": (
            {"scale": 0.01, "rotation": 1, "contrast": 0.01, "brightness": 0.001},
            {"scale": 0.00005, "rotation": 0.005, "contrast": 0.005, "brightness": 0.002},
        ),
    },
}


def transform_names() -> list[str]:
    """Return the names that :func:`paper_transforms` takes: data sets, and their columns.

    Example:
        >>> transform_names()[:3]
        ['mnist', 'mnist-r30', 'mnist-t2']
    """
    return [
        name
        for data, columns in _COLUMNS.items()
        for name in (data, *(f"{data}-{column}" for column in columns))
    ]


def paper_transforms(name: str) -> list[PerturbationGeometric]:
    """Return the transforms of a column of the paper's tables, or of all columns of a data set.

    Args:
        name: A data set, "mnist" or "cifar10", or one of its columns, such as "mnist-r30".

    Raises:
        InvalidArgumentError: There is no such name.

    Source: Jiang and Singh 2024 (CURE), Tables 2 and 3; ranges and grids of Yang et al. 2023.

    Example:
        >>> [transforms.name for transforms in paper_transforms("mnist")]
        ['R(30)', 'Tu(2),Tv(2)', 'Sc(5),R(5),C(5),B(0.01)', 'Sc(2),Sh(2),R(2),C(2),B(0.001)']
    """
    data, _, column = name.partition("-")
    columns = _COLUMNS.get(data, {})
    chosen = list(columns) if not column else [column] if column in columns else []
    if not chosen:
        names = transform_names()
        raise InvalidArgumentError(
            f"transforms: {name!r} is unknown;{did_you_mean(name, names, sentence=False)} use "
            f"{', '.join(names)}"
        )
    return [
        PerturbationGeometric(**arguments, splits=splits)
        for arguments, splits in (columns[key] for key in chosen)
    ]
