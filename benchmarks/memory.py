"""Peak memory of one norm and of two, each in a process of its own.

    python -m benchmarks.memory

IBP forward and backward of CNN7 at batch 32, and CROWN of a small CNN at batch 8; the peak is what the process grew
by over the state before the first bound.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import threading
import time

import torch

from lirpa_multinorm import BoundedModule, PerturbationL2Box, PerturbationLinf, margin_matrix
from lirpa_multinorm.models import build_model

from .common import write_result

SETS = {"l_inf": [PerturbationLinf(2 / 255)], "l_2 ball": [PerturbationL2Box(0.25, clip=None)],
        "l_2 with pixel range": [PerturbationL2Box(0.25)],
        "both": [PerturbationLinf(2 / 255), PerturbationL2Box(0.25, clip=None)],
        "both, l_2 with pixel range": [PerturbationLinf(2 / 255), PerturbationL2Box(0.25)]}
CASES = {"IBP, CNN7, batch 32": ("IBP", "cnn7", (3, 32, 32), 32), "CROWN, small CNN, batch 8":
         ("CROWN", "cnn_small", (1, 28, 28), 8)}


def resident_mib() -> float:
    """Return the process's resident memory."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * 4096 / 2 ** 20


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


def measure(case: str, sets: str) -> float:
    """Return by how many MiB one forward and backward grows this process."""
    method, name, in_shape, batch = CASES[case]
    torch.manual_seed(0)
    bounded = BoundedModule(build_model(name, in_shape, 10), perturbations=SETS[sets])
    x, C = torch.rand(batch, *in_shape), margin_matrix(torch.randint(0, 10, (batch,)), 10)
    with torch.no_grad():
        bounded(x)
    before, peak = resident_mib(), Peak()
    peak.start()
    sum(lower.sum() for lower, _ in bounded.compute_norm_bounds(x, C=C, method=method)).backward()
    peak.running = False
    peak.join()
    return peak.highest - before


def main() -> None:
    """Measure every case in fresh processes and write benchmarks/results/memory.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--one", nargs=2, metavar=("CASE", "SETS"), help="measure one case in this process")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    if args.one:
        print(measure(*args.one))
        return
    result = {}
    for case in CASES:
        peaks = {sets: sorted(_in_process(case, sets) for _ in range(args.repeats)) for sets in SETS}
        middle = {sets: values[len(values) // 2] for sets, values in peaks.items()}
        ball = max(middle["l_inf"], middle["l_2 ball"])
        cut = max(middle["l_inf"], middle["l_2 with pixel range"])
        result[case] = {"MiB": peaks, "ratio": middle["both"] / ball,
                        "ratio with pixel range": middle["both, l_2 with pixel range"] / cut}
        print(f"{case}: both norms {result[case]['ratio']:.2f}x the larger single one ({ball:.0f} MiB), "
              f"with pixel range {result[case]['ratio with pixel range']:.2f}x ({cut:.0f} MiB)")
    write_result("memory", {"repeats": args.repeats}, result)


def _in_process(case: str, sets: str) -> float:
    done = subprocess.run([sys.executable, "-W", "ignore", "-m", "benchmarks.memory", "--one", case, sets], check=True,
                          capture_output=True, text=True)
    return float(done.stdout.strip().splitlines()[-1])


if __name__ == "__main__":
    main()
