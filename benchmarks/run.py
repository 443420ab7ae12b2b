"""Run benchmarks by the names of their configurations.

    python -m benchmarks.run speed_one_norm certified --reference FOLDER
    python -m benchmarks.run --set short
    python -m benchmarks.run --list

A configuration is ``benchmarks/configs/NAME.json``; its results are
``benchmarks/results/NAME.jsonl``: a line with configuration and environment, then a line per task,
written as it ends. A run that was interrupted goes on where it was, if configuration and
environment are the same.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, NamedTuple

from tqdm import tqdm

from lirpa_multinorm import host
from lirpa_multinorm.errors import InvalidArgumentError
from lirpa_multinorm.utils.environment import environment
from lirpa_multinorm.utils.files import append_jsonl, plain

HERE = Path(__file__).parent
CONFIGS, RESULTS = HERE / "configs", HERE / "results"

Task = Callable[[], dict[str, Any]]


class Figure(NamedTuple):
    """A number that is compared with the committed one.

    Args:
        value: The number.
        tolerance: How much worse it may be, as a share of the committed one.
        better: "lower" or "higher".
    """

    value: float
    tolerance: float
    better: str = "lower"


@dataclass(frozen=True)
class Config:
    """What is run: which benchmark with which settings.

    Args:
        name: Its file's name.
        benchmark: A module of this package with a function ``tasks(settings, places)``, which
            returns tasks by key, and maybe ``problems(rows)``, which says what is wrong with what
            came out, and ``figures(rows)``, the :class:`Figure` by name that are compared with the
            committed ones.
        shows: One sentence.
        minutes: How long it takes on two cores, about.
        settings: What the benchmark is told.
        sets: Names under which several are run.
        needs: Which places must be given: "reference", "runs", "official", "ctrain" or "data_dir".
    """

    name: str
    benchmark: str
    shows: str
    minutes: float
    settings: dict[str, Any]
    sets: Sequence[str] = ()
    needs: Sequence[str] = ()

    @classmethod
    def read(cls, name: str) -> Config:
        """Return the configuration of a name, or raise InvalidArgumentError."""
        try:
            return cls(name, **json.loads((CONFIGS / f"{name}.json").read_text()))
        except FileNotFoundError:
            raise InvalidArgumentError(
                f"name: there is no configuration {name!r}; use {', '.join(names())}"
            ) from None
        except (json.JSONDecodeError, TypeError) as error:
            raise InvalidArgumentError(f"{name}.json: {error}") from error


@dataclass(frozen=True)
class Places:
    """Where things are that are no part of this project.

    Args:
        reference: Folder of published networks and their images.
        runs: Folder of training runs.
        official: Checkout of the official code that the benchmark names (SABR's or CGT's).
        data_dir: Folder of the data sets; None: where they are downloaded to.
        ctrain: Folder into which CTRAIN was installed.
    """

    reference: Path | None = None
    runs: Path | None = None
    official: Path | None = None
    data_dir: Path | None = None
    ctrain: Path | None = None


def names(of_set: str | None = None) -> list[str]:
    """Return the names of all configurations, or of those of a set."""
    every_name = sorted(path.stem for path in CONFIGS.glob("*.json"))
    return (
        every_name
        if of_set is None
        else [name for name in every_name if of_set in Config.read(name).sets]
    )


def run(config: Config, places: Places = Places(), folder: Path = RESULTS) -> Path:
    """Run a configuration's tasks, or those that an interrupted run has left.

    Returns:
        The results file.

    Raises:
        InvalidArgumentError: A place that it needs is not given.
    """
    missing = [need for need in config.needs if getattr(places, need) is None]
    if missing:
        options = ", ".join(f"--{need.replace('_', '-')}" for need in missing)
        raise InvalidArgumentError(f"{config.name} needs {options}; see benchmarks/README.md")
    path, part = folder / f"{config.name}.jsonl", folder / f"{config.name}.part.jsonl"
    header = plain(
        {
            "config": config.name,
            "benchmark": config.benchmark,
            "settings": config.settings,
            "environment": dict(environment(), host=host.version),
        }
    )
    done = _done(part, header)
    if done is None:
        part.unlink(missing_ok=True)
        folder.mkdir(parents=True, exist_ok=True)
        append_jsonl(part, header)
    tasks: dict[str, Task] = module_of(config.benchmark).tasks(config.settings, places)
    for key, task in tqdm(tasks.items(), desc=config.name, unit="task"):
        if key not in (done or ()):
            append_jsonl(part, {"key": key, **task()})
    os.replace(part, path)
    return path


def problems(config: Config, rows: list[dict[str, Any]]) -> list[str]:
    """Return what is wrong with results, as their benchmark sees it."""
    return getattr(module_of(config.benchmark), "problems", lambda rows: [])(rows)


def module_of(benchmark: str):
    """Return the module of a benchmark."""
    return importlib.import_module(f"benchmarks.{benchmark}")


def _done(part: Path, header: dict) -> set | None:
    """Return the task keys of an interrupted run, or None if there is none of the same header."""
    try:
        lines = read(part)
    except (FileNotFoundError, json.JSONDecodeError, IndexError):
        return None
    before, now = lines.header.get("environment", {}), header["environment"]
    same = all(lines.header.get(name) == header[name] for name in ("benchmark", "settings"))
    same = same and all(before.get(name) == now[name] for name in ("git_commit", "host", "torch"))
    return {row["key"] for row in lines.rows} if same else None


@dataclass(frozen=True)
class Results:
    """A results file: its first line, and the others."""

    header: dict[str, Any]
    rows: list[dict[str, Any]] = field(default_factory=list)

    def row(self, key: str) -> dict[str, Any]:
        """Return the row of a key, or raise KeyError."""
        return next(row for row in self.rows if row["key"] == key)


def read(path: Path) -> Results:
    """Return the contents of a results file; a last line that was cut off is left out."""
    lines = path.read_text().splitlines(keepends=True)
    header, *rows = [json.loads(line) for line in lines if line.endswith("\n")]
    return Results(header, rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what the command line names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="configurations")
    parser.add_argument("--set", help="run all configurations of a set")
    parser.add_argument("--list", action="store_true", help="say what there is")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the results files")
    parser.add_argument(
        "--reference", type=Path, help="folder of published networks and their images"
    )
    parser.add_argument("--runs", type=Path, help="folder of training runs")
    parser.add_argument(
        "--official", type=Path, help="checkout of the official code that a benchmark names"
    )
    parser.add_argument(
        "--data-dir", type=Path, help="folder of the data sets (otherwise they are downloaded)"
    )
    parser.add_argument("--ctrain", type=Path, help="folder into which CTRAIN was installed")
    args = parser.parse_args(arguments)
    chosen = [*args.names, *(names(args.set) if args.set else [])]
    if args.list or not chosen:
        for name in names():
            config = Config.read(name)
            print(
                f"{name:28} {config.minutes:>5g} min  {config.shows}"
                + "".join(f"  (needs --{need.replace('_', '-')})" for need in config.needs)
            )
        return
    places = Places(args.reference, args.runs, args.official, args.data_dir, args.ctrain)
    wrong: list[str] = []
    for config in [Config.read(name) for name in chosen]:
        path = run(config, places, args.output)
        print(path)
        wrong.extend(f"{config.name}: {problem}" for problem in problems(config, read(path).rows))
    if wrong:
        raise SystemExit("\n".join(wrong))


if __name__ == "__main__":
    main()
