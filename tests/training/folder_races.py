"""Two trainings that start in one folder at the same moment, again and again."""

import numpy as np

import lirpa_multinorm.experiments.table as table_module
import lirpa_multinorm.training.runlog as runlog_module
from tests.cli.runs import train_on
from tests.processes import CONTEXT, Process
from tests.toy import images


def start(barrier, file, folder, number):
    """One of the two; returns its exit code."""
    table_module.grouped_bars = lambda *_, **__: None
    runlog_module.learning_curves = lambda *_: None
    barrier.wait()
    return train_on(file, folder, "--losses", "natural", "--seeds", number)


def race(file, folder):
    """Let two processes start in one folder; returns exit codes and errors."""
    barrier = CONTEXT.Barrier(2)
    processes = [Process(start, barrier, file, folder, number) for number in range(2)]
    codes, errors = zip(*(process.ended() for process in processes))
    return {"folder": str(folder), "codes": list(codes), "errors": list(errors)}


def races(folder, count):
    """Return what came of some races, each in a folder of its own."""
    (x_train, y_train), (x_test, y_test) = images(40, 0), images(12, 1)
    file = folder / "toy.npz"
    np.savez(file, x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
    return [race(file, folder / f"run{number}") for number in range(count)]
