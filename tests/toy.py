"""A tiny data set and network for the tests of whole runs."""

import numpy as np
import torch

from lirpa_multinorm import PerturbationL2Box, PerturbationLinf
from lirpa_multinorm.data import ImageData
from lirpa_multinorm.errors import OutputFolderError
from lirpa_multinorm.training import ModelSpec, Schedule, TrainConfig
from lirpa_multinorm.utils.files import exclusive

SETS = [PerturbationLinf(0.05), PerturbationL2Box(0.1)]
SPEC = ModelSpec("mlp", (1, 4, 4), 3, options={"hidden": [8]})
# Many tests look at the first epoch alone, with the schedule of the whole.
CONFIG = TrainConfig(
    loss="joint",
    epochs=3,
    batch_size=16,
    learning_rate=0.01,
    milestones=(),
    schedule=Schedule(1, 1),
    partial_radius=True,
)


def images(count, seed=0):
    """Each class has its own bright rows, plus noise."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(count) % 3
    x = torch.full((count, 1, 4, 4), 0.2)
    for row in range(3):
        x[y == row, :, row] = 0.8
    return (x + 0.05 * torch.randn(x.shape, generator=generator)).clamp(0, 1), y


def data(n_train=40, n_test=12):
    (x_train, y_train), (x_test, y_test) = images(n_train, 0), images(n_test, 1)
    return ImageData("toy", 3, (0.0,), (1.0,), x_train, y_train, x_test, y_test)


def write_npz(path, n_test=12, **changes):
    """Write the data to a file, with some arrays changed, or left out (None)."""
    (x_train, y_train), (x_test, y_test) = images(40, 0), images(n_test, 1)
    arrays = {"x_train": x_train, "y_train": y_train, "x_test": x_test, "y_test": y_test}
    np.savez(
        path,
        **{
            key: np.asarray(value)
            for key, value in {**arrays, **changes}.items()
            if value is not None
        },
    )
    return path


def is_locked(folder):
    """Whether a run holds the lock of its folder."""
    try:
        with exclusive(folder / "run"):
            return False
    except OutputFolderError:
        return True
