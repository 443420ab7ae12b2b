"""Compare the benchmarks of a set with the committed results, and fail where one has become worse.

    python -m benchmarks.check --set short

Runs the set anew in a folder of its own and compares each benchmark's key numbers (its ``figures``)
with those of ``benchmarks/results``. A number may be worse by its tolerance, a share of the
committed one; every tolerance is printed beside its number. A benchmark with a worse number is run
once more, and what is worse both times counts: a busy moment is no regression. A number that one
side lacks is a failure, and so is a committed file of other settings.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lirpa_multinorm.report import markdown_table

from .run import RESULTS, Config, Figure, Places, Results, module_of, names, problems, read, run


def compare(now: dict[str, Figure], committed: dict[str, Figure]) -> list[dict[str, Any]]:
    """Return one row per number: both values, their ratio, the tolerance, and whether it is worse.

    Example:
        >>> compare({"time": Figure(1.2, 0.1)}, {"time": Figure(1.0, 0.1)})[0]["verdict"]
        'worse'
    """
    rows = []
    for name in sorted({*now, *committed}):
        new, old = now.get(name), committed.get(name)
        row = {"number": name, "committed": old and old.value, "now": new and new.value}
        if new is None or old is None:
            rows.append({**row, "tolerance": None, "verdict": "missing"})
            continue
        sign = 1 if new.better == "lower" else -1
        worse = (
            not sign * (new.value - old.value) <= new.tolerance * abs(old.value) + 1e-6
        )  # NaN is worse
        rows.append({**row, "tolerance": new.tolerance, "verdict": "worse" if worse else "fine"})
    return rows


def check(
    config: Config, folder: Path, places: Places = Places(), committed: Path = RESULTS
) -> list[dict[str, Any]]:
    """Run a configuration anew and compare it with its committed results."""
    path = committed / f"{config.name}.jsonl"
    if not path.exists():
        return [
            {
                "number": config.name,
                "committed": None,
                "now": None,
                "tolerance": None,
                "verdict": "missing",
            }
        ]
    before: Results = read(path)
    if before.header["settings"] != config.settings:
        return [
            {
                "number": f"{config.name}: settings",
                "committed": None,
                "now": None,
                "tolerance": None,
                "verdict": "other settings",
            }
        ]
    rows = _against(config, before, read(run(config, places, folder)))
    if any(row["verdict"] == "worse" for row in rows):
        again = {
            row["number"]: row
            for row in _against(config, before, read(run(config, places, folder)))
        }
        rows = [again.get(row["number"], row) if row["verdict"] == "worse" else row for row in rows]
    return rows


def _against(config: Config, before: Results, now: Results) -> list[dict[str, Any]]:
    """Return the rows of a new run, its problems first."""
    module = module_of(config.benchmark)
    rows = [
        {
            "number": problem,
            "committed": None,
            "now": math.nan,
            "tolerance": None,
            "verdict": "problem",
        }
        for problem in problems(config, now.rows)
    ]
    figures = getattr(module, "figures", lambda rows: {})
    return rows + compare(figures(now.rows), figures(before.rows))


def main(arguments: Sequence[str] | None = None) -> None:
    """Check what the command line names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="configurations")
    parser.add_argument("--set", default=None, help="all configurations of a set")
    parser.add_argument(
        "--output", type=Path, default=Path("runs/bench-check"), help="folder of the new results"
    )
    args = parser.parse_args(arguments)
    chosen = [*args.names, *(names(args.set) if args.set else [])]
    if not chosen:
        parser.error("give configurations, or a set: --set short")
    rows = [row for name in chosen for row in check(Config.read(name), args.output)]
    print(markdown_table(rows, ["number", "committed", "now", "tolerance", "verdict"]))
    bad = [row for row in rows if row["verdict"] != "fine"]
    if bad:
        raise SystemExit(
            f"{len(bad)} of {len(rows)} numbers are not what was committed: "
            + "; ".join(f"{row['number']} ({row['verdict']})" for row in bad)
        )


if __name__ == "__main__":
    main()
