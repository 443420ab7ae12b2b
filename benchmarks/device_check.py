"""What a device does: the marked tests, bounds beside the CPU's, times and memory.

    make device-check DEVICE=cuda
    python -m benchmarks.device_check --device cuda --output FOLDER

It needs no data and no network, and at most 10 minutes. Networks and images are random: times are
of the work, and accuracies say nothing. Results go to ``device_NAME.jsonl``, NAME being the
device's. A batch that does not fit into the memory is halved until it does, which its row says.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Callable

import torch

from lirpa_multinorm import CertifySettings, PerturbationL2Box, PerturbationLinf, certify
from lirpa_multinorm.attacks import AttackSettings
from lirpa_multinorm.errors import InvalidArgumentError
from lirpa_multinorm.losses import LOSSES, build_loss
from lirpa_multinorm.training import Schedule, TrainConfig
from lirpa_multinorm.training.step import TrainingStep
from lirpa_multinorm.utils.environment import environment
from lirpa_multinorm.utils.memory import is_out_of_memory
from tests.devices.cases import CASES

from .common import find_device, interleaved, network_and_batch, waiting
from .run import RESULTS, Config, Places, Task, read, run

SETS = [PerturbationLinf(0.1), PerturbationL2Box(0.5)]
IN_SHAPE = (1, 28, 28)
#: Attacks of the joint loss by what they run with.
ATTACKS: dict[str, dict[str, Any]] = {
    "float32": {"precision": "float32"},
    "tf32": {"precision": "tf32"},
    "bfloat16": {"precision": "bfloat16"},
    "float32, usual layout": {"channels_last": False},
}
#: A difference to the CPU that is more than rounding.
TOLERANCE = 1e-3


def described(device: torch.device) -> dict[str, Any]:
    """Return the device's name, memory and versions."""
    row: dict[str, Any] = {"environment": environment(device)}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        row["memory GiB"] = round(properties.total_memory / 2**30, 1)
        row["free GiB"] = round(torch.cuda.mem_get_info(device)[0] / 2**30, 1)
        row["cuda"], row["cudnn"] = torch.version.cuda, torch.backends.cudnn.version()
    return row


def marked_tests(device: torch.device) -> dict[str, Any]:
    """Run the tests with the mark ``device`` there, and return what pytest says."""
    if importlib.util.find_spec("pytest") is None:
        return {"tests": "pytest is not installed; the cases are compared all the same"}
    command = [sys.executable, "-m", "pytest", "-q", "-m", "device", "--device", str(device)]
    command += ["-p", "no:cacheprovider", "--tb=short", "tests/devices"]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=Path(__file__).parents[1], timeout=400
    )
    lines = done.stdout.strip().splitlines()
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    return {"tests": lines[-1] if lines else done.stderr[-300:], "failed": failed}


def compared(device: torch.device) -> dict[str, Any]:
    """Return by how much the bounds of each case differ from those on the CPU."""
    differences = {}
    for name, case in CASES.items():
        if not name.startswith("bounds"):
            continue
        here, there = case(device), case(torch.device("cpu"))
        differences[name] = max(
            float(((a.cpu() - b).abs() / (1 + b.abs())).max()) for a, b in zip(here, there)
        )
    return {"largest difference to the CPU": differences}


def fitting(
    batch: int, device: torch.device, measure: Callable[[int], dict[str, Any]]
) -> dict[str, Any]:
    """Measure with a batch, or with the largest half, quarter, ... of it that fits the memory.

    Args:
        batch: How many images.
        device: Where.
        measure: Maps a number of images to a row.

    Raises:
        InvalidArgumentError: Not even one image fits.
    """
    size = batch
    while size:
        try:
            _forget_peak(device)
            row = {"batch": size, **measure(size), "peak MiB": _peak(device)}
            return row if size == batch else {"does not fit": batch, **row}
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            size //= 2
            if device.type == "cuda":
                torch.cuda.empty_cache()
    raise InvalidArgumentError(
        f"device={str(device)!r} has no memory for a single image; end what else runs there, or "
        "use --small"
    )


def _forget_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def _peak(device: torch.device) -> float | None:
    """Return the largest memory of torch's tensors, or None on a CPU."""
    if device.type != "cuda":
        return None
    return round(torch.cuda.max_memory_allocated(device) / 2**20, 1)


def trained(
    loss: str, attack: dict[str, Any], settings: dict, device: torch.device, batch: int
) -> dict[str, Any]:
    """Time training steps of a loss after annealing."""
    case = {"network": "cnn7", "in_shape": IN_SHAPE, "batch": batch, "options": settings["options"]}
    model, x, y = network_and_batch(case, device)
    options = {"attack": attack} if attack else {}
    config = TrainConfig(loss=loss, batch_size=batch, schedule=Schedule(0, 0))
    step = TrainingStep(model, build_loss(loss, SETS, **options), SETS, config)
    step.start_epoch(0)
    wait = waiting(device)
    timing = interleaved({loss: lambda: step(x, y, 1.0)}, settings["repeats"], 2, wait)
    return {"seconds": timing[loss]["median"], "quartiles": timing[loss]["quartiles"]}


def certified(settings: dict, device: torch.device, count: int) -> dict[str, Any]:
    """Time a certification by interval and linear bounds behind an attack."""
    case = {"network": "cnn7", "in_shape": IN_SHAPE, "batch": count, "options": settings["options"]}
    model, x, y = network_and_batch(case, device)
    sets = [PerturbationLinf(1e-4), PerturbationL2Box(1e-3)]
    how = CertifySettings(
        methods=("IBP", "CROWN-IBP"), attack=AttackSettings(steps=10), batch_size=min(count, 128)
    )
    with torch.no_grad():
        y = model.eval()(x).argmax(1)
    certify(model, x[:2], y[:2], sets, how)  # traces
    started = time.perf_counter()
    certification = certify(model, x, y, sets, how)
    seconds = time.perf_counter() - started
    share = float(certification.is_status("certified").float().mean())
    return {"seconds": seconds, "images per second": count / seconds, "certified": share}


def tasks(settings: dict, places: Places) -> dict[str, Task]:
    """Return the device, the tests, the comparison, and a task per loss, attack and batch."""
    device = find_device(settings["device"])
    result: dict[str, Task] = {
        "device": partial(described, device),
        "tests": partial(marked_tests, device),
        "bounds": partial(compared, device),
    }
    kinds: dict[str, tuple[str, dict]] = {
        loss: (loss, {}) for loss in LOSSES if loss != "linf_dist"
    }
    kinds.update({f"joint, attack in {name}": ("joint", ATTACKS[name]) for name in ATTACKS})
    for batch in settings["batches"]:
        for name, (loss, attack) in kinds.items():
            measure = partial(trained, loss, attack, settings, device)
            result[f"training, batch {batch}: {name}"] = partial(fitting, batch, device, measure)
    measure = partial(certified, settings, device)
    result["certification"] = partial(fitting, settings["images"], device, measure)
    first = {"device": result.pop("device")}
    deadline = time.monotonic() + settings["seconds"]
    late = {"left out": f"the {settings['seconds']} seconds of the check were over"}
    return {
        **first,
        **{key: partial(_in_time, deadline, task, late) for key, task in result.items()},
    }


def _in_time(deadline: float, task: Task, late: dict[str, Any]) -> dict[str, Any]:
    """Return a task's row, or the row that says that there was no time for it."""
    return task() if time.monotonic() < deadline else late


def problems(rows: list[dict]) -> list[str]:
    """Return failed tests and bounds that differ from the CPU's by more than rounding."""
    wrong = []
    for row in rows:
        wrong += row.get("failed", [])
        differences = row.get("largest difference to the CPU", {})
        wrong += [
            f"{name} differ from those on the CPU by {size:.2g}"
            for name, size in differences.items()
            if not size <= TOLERANCE
        ]
    return wrong


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what the command line names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, cpu, ...")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the results file")
    parser.add_argument("--small", action="store_true", help="a narrow network and small batches")
    args = parser.parse_args(arguments)
    try:
        device = find_device(args.device)
    except InvalidArgumentError as error:
        raise SystemExit(f"error: {error}") from None
    small = args.small or device.type == "cpu"
    config = Config.read("device_check_small" if small else "device_check")
    name = re.sub(r"[^a-z0-9]+", "_", environment(device)["device_name"].lower()).strip("_")
    settings = {**config.settings, "device": args.device}
    path = run(replace(config, name=f"device_{name}", settings=settings), Places(), args.output)
    print(path)
    wrong = problems(read(path).rows)
    if wrong:
        raise SystemExit("\n".join(wrong))


if __name__ == "__main__":
    main()
