"""Clean against union certified accuracy: trained networks beside the points of the paper's Table 1.

    python -m benchmarks.tradeoff results/mnist_0.1_0.5 mnist-0.1-0.5

Reads table.json of a results folder, writes tradeoff.png and paper.md (the two tables side by side) into it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from lirpa_multinorm.experiment import SPREAD, spread_cells
from lirpa_multinorm.io import write_text
from lirpa_multinorm.report import markdown_table, scatter_chart

PAPER = Path(__file__).parent / "paper_table1.json"
CLEAN, UNION = "clean", "certified union"


def paper_rows(setting: str) -> list:
    """Return the paper's rows of a setting, as a table of this package has them."""
    paper = json.loads(PAPER.read_text(encoding="utf-8"))
    if setting not in paper or setting in ("source", "columns"):
        raise SystemExit(f"setting {setting!r} is not in {PAPER.name}; it has: "
                         f"{', '.join(set(paper) - {'source', 'columns'})}")
    return [{"method": name, **dict(zip(paper["columns"], values))} for name, values in paper[setting].items()]


def side_by_side(ours: list, paper: list) -> list:
    """Return one row per method with ours and the paper's numbers."""
    found, columns = {row["method"]: row for row in paper}, [name for name in paper[0] if name != "method"]
    rows = []
    for row, cells in zip(ours, spread_cells(ours)):
        theirs = found.get(row["method"], {})
        rows.append({"method": row["method"], **{name: cells.get(name) for name in columns},
                     **{f"paper: {name}": theirs.get(name) for name in columns}})
    return rows


def main() -> None:
    """Draw the figure and write the table of one results folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("setting", help="name of the paper's setting, such as mnist-0.1-0.5")
    args = parser.parse_args()
    content = json.loads((args.folder / "table.json").read_text(encoding="utf-8"))
    ours, paper = content["rows"], paper_rows(args.setting)
    rows = side_by_side(ours, paper)
    write_text(args.folder / "paper.md", markdown_table(rows, list(rows[0])) + "\n")
    here, there = f"ours ({content['settings']['model']['name']})", "the paper (CNN7)"
    points = [dict(row, source=here) for row in ours] + [dict(row, source=there) for row in paper]
    errors = {name: name + SPREAD for name in (CLEAN, UNION) if any(name + SPREAD in row for row in ours)}
    scatter_chart(points, CLEAN, UNION, "method", args.folder / "tradeoff.png", f"Trade-off, {args.setting}",
                  "clean accuracy in %", "union certified accuracy in %", errors=errors, group="source")


if __name__ == "__main__":
    main()
