"""The generators of random numbers that belong to the process."""

from __future__ import annotations

import contextlib
import random
from typing import Iterator

import numpy
import torch


@contextlib.contextmanager
def randomness_kept() -> Iterator[None]:
    """Leave the generators of torch, on every device in use, of NumPy and of Python as they were."""
    python, array = random.getstate(), numpy.random.get_state()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python)
        numpy.random.set_state(array)


def random_states() -> tuple:
    """Return the states of those generators; they are equal if none has drawn a number in between."""
    states = [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [])]
    name, keys, *rest = numpy.random.get_state()
    return [state.numpy().tobytes() for state in states], random.getstate(), name, keys.tobytes(), rest
