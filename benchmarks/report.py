"""Tables and figures of results files, from nothing else.

    python -m benchmarks.report [--results FOLDER]

Writes REPORT.md and the figures beside the results. A benchmark may say which tables and figures it
has, with functions ``tables(rows)`` and ``draw(rows, stem)``; otherwise its rows are the table. One
with a ``PAGE`` and ``page(results)`` has a page of the documentation, which is made from the
committed results.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lirpa_multinorm.report import markdown_table
from lirpa_multinorm.utils.files import write_text

from .run import RESULTS, Config, Results, module_of, read

DOCS = Path(__file__).resolve().parents[1] / "docs"


def report(folder: Path = RESULTS) -> Path:
    """Write the report of a folder.

    Returns:
        The file.
    """
    parts = [
        "# Benchmark results\n\nMade by `python -m benchmarks.report` from the results files beside"
        " it.\n"
    ]
    parts.extend(section(path.stem, read(path), folder) for path in _complete(folder))
    return write_text(folder / "REPORT.md", "\n".join(parts))


def pages(folder: Path = RESULTS, docs: Path = DOCS) -> list[Path]:
    """Write the pages of the documentation that are made from a folder's results.

    Returns:
        The files.
    """
    by_benchmark: dict[str, list[Results]] = {}
    for results in map(read, _complete(folder)):
        by_benchmark.setdefault(results.header["benchmark"], []).append(results)
    modules = {module_of(name): results for name, results in by_benchmark.items()}
    return [
        write_text(docs / module.PAGE, module.page(results))
        for module, results in modules.items()
        if hasattr(module, "PAGE")
    ]


def _complete(folder: Path) -> list[Path]:
    return [
        path for path in sorted(folder.glob("*.jsonl")) if not path.name.endswith(".part.jsonl")
    ]


def section(name: str, results: Results, folder: Path) -> str:
    """Return the Markdown of one results file, and draw its figures."""
    module, environment = module_of(results.header["benchmark"]), results.header["environment"]
    lines = [
        f"## {name}\n",
        (
            f"{_shows(name)}[Results]({name}.jsonl): auto_LiRPA {environment['host']}, torch"
            f" {environment['torch']}, {environment['device_name']}, {environment['threads']}"
            f" threads, commit {str(environment['git_commit'])[:12]}.\n"
        ),
    ]
    for title, rows in getattr(module, "tables", plain_tables)(results.rows).items():
        numbers = {
            name: ".4g" for name in rows[0] if any(isinstance(row[name], float) for row in rows)
        }
        lines.extend([f"### {title}\n", markdown_table(rows, list(rows[0]), numbers) + "\n"])
    for file, draw in getattr(module, "draw", lambda rows, stem: {})(results.rows, name).items():
        draw(path=folder / file)
        lines.append(f"![{file}]({file})\n")
    return "\n".join(lines)


def _shows(name: str) -> str:
    try:
        shows = Config.read(name).shows
    except ValueError:  # a configuration that is no longer there
        return ""
    return f"{shows[:1].upper()}{shows[1:]}. "


def plain_tables(rows: Sequence[dict[str, Any]]) -> dict[str, list[dict]]:
    """Return the rows as one table: numbers and words as they are, medians with their quartiles."""
    cells = [
        {name: cell for name, value in row.items() for cell in [_cell(value)] if cell is not None}
        for row in rows
    ]
    columns = list(dict.fromkeys(name for row in cells for name in row))
    return {"All": [{name: row.get(name) for name in columns} for row in cells]} if cells else {}


def _cell(value: Any) -> Any | None:
    if isinstance(value, dict) and "median" in value and "quartiles" in value:
        low, high = value["quartiles"]
        return f"{value['median']:.3g} ({low:.3g} to {high:.3g})"
    return value if isinstance(value, (int, float, str)) else None


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the report that the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument(
        "--docs",
        type=Path,
        help=(
            "folder of the documentation's pages; default: this project's for "
            "the committed results, none for others"
        ),
    )
    args = parser.parse_args(arguments)
    print(report(args.results))
    docs = args.docs or (DOCS if args.results.resolve() == RESULTS.resolve() else None)
    for path in pages(args.results, docs) if docs else ():
        print(path)


if __name__ == "__main__":
    main()
