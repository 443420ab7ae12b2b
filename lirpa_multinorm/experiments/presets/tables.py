"""The presets as Markdown tables, for ``docs/recipes.md``.

``python -m lirpa_multinorm.experiments.presets.tables`` prints them.
"""

from __future__ import annotations

from typing import Any

from ...report import markdown_table
from .files import leaves, preset_content, preset_names

#: Rows of CURE's Table 1.
ROWS = ("linf", "l2", "joint", "max", "random", "scratch", "finetune")
OURS = "this package's"  # heading
#: Order of the fields: sets, network, start, loss, then training.
FIELDS = (
    "eps",
    "transforms",
    "patch",
    "model",
    "initial",
    "loss",
    "loss_options",
    "epochs",
    "milestones",
    "schedule",
    "partial_radius",
    "batch_size",
    "learning_rate",
    "decay",
    "l1",
    "regularizer",
    "initialization",
    "augment",
    "projection",
)


def of_this_package() -> list[str]:
    """Return the names of the presets that are no row of the paper.

    Example:
        >>> "mnist-linf-0.1" in of_this_package()
        True
    """
    return [name for name in preset_names() if name.rpartition("-")[2] not in ROWS]


def settings() -> list[str]:
    """Return data set and radii of the paper's presets.

    Example:
        >>> settings()[-1]
        'tinyimagenet-1_255-36_255'
    """
    return sorted(
        {name.rpartition("-")[0] for name in preset_names() if name not in of_this_package()}
    )


def setting_tables(setting: str) -> str:
    """Return all values of a setting's presets: those that all rows share, then a column per row.

    Args:
        setting: One of :func:`settings`.

    Returns:
        Two Markdown tables; ``paper → released`` where the two differ.

    Example:
        >>> print(setting_tables("mnist-0.1-0.5").splitlines()[2])
        | eps.inf                 | 0.1       |
    """
    rows = [row for row in ROWS if f"{setting}-{row}" in preset_names()]
    return _tables({row: _cells(f"{setting}-{row}") for row in rows}, "row")


def own_tables() -> str:
    """Return all values of our presets, as :func:`setting_tables` does, a column per preset."""
    return _tables({name: _cells(name) for name in of_this_package()}, "recipe")


def _tables(columns: dict[str, dict[str, str]], kind: str) -> str:
    """Return the table of values that all columns share, and the table of the rest."""
    rows = list(columns)
    fields = sorted(
        dict.fromkeys(field for cells in columns.values() for field in cells), key=_order
    )
    table = [{"field": field, **{row: columns[row].get(field) for row in rows}} for field in fields]
    shared = [line for line in table if len({line[row] for row in rows}) == 1]
    shown = [{"field": line["field"], f"every {kind}": line[rows[0]]} for line in shared]
    rest = [line for line in table if line not in shared]
    return (
        f"{markdown_table(shown, ['field', f'every {kind}'])}\n\n"
        f"{markdown_table(rest, ['field', *rows])}"
    )


def _cells(name: str) -> dict[str, str]:
    """Return a preset's values as texts, by path."""
    paper, code = (_values(name, released) for released in (False, True))
    shown = {
        field: (_shown(paper.get(field)), _shown(code.get(field))) for field in {**paper, **code}
    }
    return {
        field: value if value == released else f"{value} → {released}"
        for field, (value, released) in shown.items()
    }


def _values(name: str, released: bool) -> dict[str, Any]:
    """Return a preset's values, by path."""
    content = preset_content(name, released)
    keys = [key for key in ("eps", "transforms", "patch", "model", "train") if key in content]
    values = dict(leaves({key: content[key] for key in keys}))
    return {
        **{path.replace("train.", ""): value for path, value in values.items()},
        "initial": content.get("initial"),
    }


def _shown(value: Any) -> str:
    """Return a value as the tables show it."""
    if isinstance(value, list):
        return ", ".join(map(_shown, value))
    if value is None:
        return "none"
    return f"{value:.12g}" if isinstance(value, float) else str(value)


def _order(field: str) -> int:
    """Return a field's position in the tables."""
    top = field.partition(".")[0]
    return FIELDS.index(top) if top in FIELDS else len(FIELDS)


if __name__ == "__main__":
    for setting in settings():
        print(f"### {setting}\n\n{setting_tables(setting)}\n")
    print(f"### {OURS}\n\n{own_tables()}\n")
