"""Start two trainings in one folder at the same moment, again and again.

For tests/training/test_one_folder.py. The processes are forked from one that has imported
everything and has taken no step, so that a repetition is cheap.
"""

import contextlib
import json
import multiprocessing
import os
import sys
from pathlib import Path

import numpy as np
import torch

import lirpa_multinorm.experiments.table as table_module
import lirpa_multinorm.training.runlog as runlog_module
from lirpa_multinorm import BoundedModule
from lirpa_multinorm.cli import main
from tests.toy import SETS, SPEC, images


def start(barrier, file, folder, number):
    """One of the two: its exit code and what it says on stderr."""
    with (
        open(folder.with_name(f"{folder.name}.{number}.err"), "w") as errors,
        open(os.devnull, "w") as nothing,
    ):
        with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(nothing):
            barrier.wait()
            code = main(
                [
                    "train",
                    "--data",
                    str(file),
                    "--model",
                    "mlp",
                    "--epochs",
                    "2",
                    "--batch-size",
                    "16",
                    "--losses",
                    "natural",
                    "--no-progress",
                    "--seeds",
                    str(number),
                    "--output",
                    str(folder),
                ]
            )
    os._exit(code)


def race(file, folder):
    """Let two processes start in one folder; returns exit codes and errors."""
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(2)
    processes = [
        context.Process(target=start, args=(barrier, file, folder, number)) for number in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return {
        "folder": str(folder),
        "codes": [process.exitcode for process in processes],
        "errors": [
            folder.with_name(f"{folder.name}.{number}.err").read_text() for number in range(2)
        ],
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.modules["torch.utils.tensorboard"] = None
    table_module.grouped_bars = lambda *_, **__: None
    runlog_module.learning_curves = lambda *_: None
    place, count = Path(sys.argv[1]), int(sys.argv[2])
    torch.optim.Adam(SPEC.build().parameters())  # loads what is loaded late, and so does this:
    BoundedModule(SPEC.build(), perturbations=SETS)(images(2)[0])
    (x_train, y_train), (x_test, y_test) = images(40, 0), images(12, 1)
    np.savez(place / "toy.npz", x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
    print(json.dumps([race(place / "toy.npz", place / f"run{number}") for number in range(count)]))
