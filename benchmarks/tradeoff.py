"""Clean against union certified accuracy.

Trained networks beside the points of the paper's Table 1.

    python -m benchmarks.tradeoff mnist-0.1-0.5 results/mnist_0.1_0.5 results/mnist_0.1_0.5_seeds

Reads table.json of results folders, writes tradeoff.png and paper.md (the two tables side by side)
into the first. Where two folders have the same method, the later one counts.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from lirpa_multinorm.report import markdown_table, scatter_chart
from lirpa_multinorm.report.methods import SPREAD, spread_cells
from lirpa_multinorm.utils.files import write_text

PAPER = Path(__file__).parent / "paper_table1.json"
CLEAN, UNION = "clean", "certified union"
METHOD_OF_PRESET = {
    "linf": "SABR l_inf",
    "l2": "CURE-l2",
    "joint": "Joint",
    "max": "Max",
    "random": "Random",
    "scratch": "Scratch",
    "finetune": "Finetune",
    "ours": "ours",
}


def paper_rows(setting: str) -> list:
    """Return the paper's rows of a setting, as a table of this package has them."""
    paper = json.loads(PAPER.read_text(encoding="utf-8"))
    if setting not in paper or setting in ("source", "columns"):
        raise SystemExit(
            f"setting {setting!r} is not in {PAPER.name}; it has: "
            f"{', '.join(set(paper) - {'source', 'columns'})}"
        )
    return [
        {"method": name, **dict(zip(paper["columns"], values))}
        for name, values in paper[setting].items()
    ]


def side_by_side(ours: list, paper: list) -> list:
    """Return one row per method with ours and the paper's numbers."""
    published, columns = (
        {row["method"]: row for row in paper},
        [name for name in paper[0] if name != "method"],
    )
    rows = []
    for row, cells in zip(ours, spread_cells(ours)):
        theirs = published.get(row["method"], {})
        rows.append(
            {
                "method": row["method"],
                **{name: cells.get(name) for name in columns},
                **{f"paper: {name}": theirs.get(name) for name in columns},
            }
        )
    return rows


def read_rows(folders: list) -> tuple:
    """Return (rows of all folders, name of their network).

    Presets are called as the methods they are.
    """
    rows, models = {}, set()
    for folder in folders:
        content = json.loads((folder / "table.json").read_text(encoding="utf-8"))
        models.add(content["settings"]["model"]["name"])
        for row in content["rows"]:
            name = METHOD_OF_PRESET.get(row["method"].rpartition("-")[2], row["method"])
            rows[name] = dict(row, method=name)
    if len(models) > 1:
        raise SystemExit(
            f"the folders hold different networks ({', '.join(sorted(models))}); compare one at a"
            " time"
        )
    return list(rows.values()), models.pop()


def main() -> None:
    """Draw the figure and write the table of results folders."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("setting", help="name of the paper's setting, such as mnist-0.1-0.5")
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER")
    args = parser.parse_args()
    (ours, model), paper, folder = (
        read_rows(args.folders),
        paper_rows(args.setting),
        args.folders[0],
    )
    rows = side_by_side(ours, paper)
    write_text(folder / "paper.md", markdown_table(rows, list(rows[0])) + "\n")
    here, there = f"ours ({model})", "the paper (CNN7)"
    points = [dict(row, source=here) for row in ours] + [dict(row, source=there) for row in paper]
    errors = {
        name: name + SPREAD for name in (CLEAN, UNION) if any(name + SPREAD in row for row in ours)
    }
    scatter_chart(
        points,
        CLEAN,
        UNION,
        "method",
        folder / "tradeoff.png",
        f"Trade-off, {args.setting}",
        "clean accuracy in %",
        "union certified accuracy in %",
        errors=errors,
        group="source",
    )


if __name__ == "__main__":
    main()
