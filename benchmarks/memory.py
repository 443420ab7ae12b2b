"""Peak memory of one norm and of two, each in a process of its own (Linux).

    python -m benchmarks.run memory memory_long

The peak of a forward and a backward pass is what the process grew by over the state before the
first bound. The ratio is that of both norms in one call to the larger of the single ones.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from statistics import median

from lirpa_multinorm import PerturbationL2Box, PerturbationLinf, margin_matrix

from .common import CLASSES, EPS_2, EPS_INF, TOLERANCE, network_and_batch, our_module
from .run import Figure, Places, Task

SETS = {
    "l_inf": [PerturbationLinf(EPS_INF)],
    "l_2 ball": [PerturbationL2Box(EPS_2, clip=None)],
    "l_2 with pixel range": [PerturbationL2Box(EPS_2)],
    "both": [PerturbationLinf(EPS_INF), PerturbationL2Box(EPS_2, clip=None)],
    "both, l_2 with pixel range": [PerturbationLinf(EPS_INF), PerturbationL2Box(EPS_2)],
}


def resident_mib() -> float:
    """Return the process's resident memory."""
    with open("/proc/self/status", encoding="ascii") as file:
        (kib,) = (line.split()[1] for line in file if line.startswith("VmRSS:"))
    return int(kib) / 1024


class Peak(threading.Thread):
    """Samples the resident memory every millisecond."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.highest, self.running = resident_mib(), True

    def run(self) -> None:
        """Sample until stopped."""
        while self.running:
            self.highest = max(self.highest, resident_mib())
            time.sleep(0.001)


def measure(case: dict, sets: str) -> float:
    """Return by how many MiB one forward and backward grows this process."""
    model, x, y = network_and_batch(case)
    bounded, C = our_module(model, x, SETS[sets]), margin_matrix(y, CLASSES)
    before, peak = resident_mib(), Peak()
    peak.start()
    sum(
        lower.sum() for lower, _ in bounded.compute_norm_bounds(x, C=C, method=case["method"])
    ).backward()
    peak.running = False
    peak.join()
    return peak.highest - before


def in_process(case: dict, sets: str) -> float:
    """Return what :func:`measure` finds in a fresh process."""
    done = subprocess.run(
        [
            sys.executable,
            "-W",
            "ignore",
            "-m",
            "benchmarks.memory",
            "--one",
            json.dumps(case),
            sets,
        ],
        cwd=Path(__file__).resolve().parents[1],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(
            f"{case}, {sets}: the process ended with {done.returncode}:\n{done.stderr}"
        )
    return float(done.stdout.strip().splitlines()[-1])


def ratios(peaks: dict[str, list[float]]) -> dict[str, float]:
    """Return the median peak of both norms over the larger one of a single norm, by the l_2 set."""
    middle = {sets: median(values) for sets, values in peaks.items()}
    return {
        "ratio": middle["both"] / max(middle["l_inf"], middle["l_2 ball"]),
        "ratio with pixel range": (
            middle["both, l_2 with pixel range"]
            / max(middle["l_inf"], middle["l_2 with pixel range"])
        ),
    }


def compare(case: dict, repeats: int) -> dict:
    """Measure one case with all sets, in turn."""
    peaks: dict[str, list[float]] = {sets: [] for sets in SETS}
    for _ in range(repeats):
        for sets, values in peaks.items():
            values.append(in_process(case, sets))
    return {"MiB": peaks, **ratios(peaks), "settings": case}


def tasks(settings: dict, places: Places) -> dict[str, Task]:
    """Return one task per case."""
    return {
        key: partial(compare, case, settings["repeats"]) for key, case in settings["cases"].items()
    }


def problems(rows: list[dict]) -> list[str]:
    """Return the peaks that are no growth at all."""
    return [
        f"{row['key']}, {sets}: a peak of {value} MiB was measured"
        for row in rows
        for sets, values in row["MiB"].items()
        for value in values
        if not value > 0
    ]


def figures(rows: list[dict]) -> dict[str, Figure]:
    """Return the ratios of both norms to the larger single one."""
    return {
        f"{row['key']}: {name}": Figure(row[name], TOLERANCE)
        for row in rows
        for name in ("ratio", "ratio with pixel range")
    }


def main() -> None:
    """Measure one case in this process, for :func:`in_process`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--one",
        nargs=2,
        required=True,
        metavar=("CASE", "SETS"),
        help="a case of the configuration as JSON, and one of: " + "; ".join(SETS),
    )
    case, sets = parser.parse_args().one
    print(measure(json.loads(case), sets))


if __name__ == "__main__":
    main()
