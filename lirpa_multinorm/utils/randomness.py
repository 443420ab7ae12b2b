"""The process's generators of random numbers: restored after a block, and who draws from them."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import numpy
import torch
from torch.utils._python_dispatch import TorchDispatchMode


@contextlib.contextmanager
def generators_kept(device: str | torch.device = "cpu") -> Iterator[None]:
    """Restore torch's generators (the CPU's, and all GPUs' if the device is one) after the block.

    Example:
        >>> state = torch.get_rng_state()
        >>> with generators_kept():
        ...     _ = torch.rand(3)
        >>> torch.equal(state, torch.get_rng_state())
        True
    """
    on_gpu = torch.device(device).type == "cuda"
    with torch.random.fork_rng(devices=range(torch.cuda.device_count()) if on_gpu else []):
        yield


def seed_generators(seed: int, device: str | torch.device = "cpu") -> None:
    """Seed the generators that :func:`generators_kept` gives back, and no others."""
    torch.default_generator.manual_seed(seed)
    if torch.device(device).type == "cuda":
        torch.cuda.manual_seed_all(seed)


class _Draws(TorchDispatchMode):
    """Notes the operators of this thread that draw from a generator of torch."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **(kwargs or {}))
        before = _states_of_torch()  # attention without dropout, for one, could draw and does not
        value = func(*args, **(kwargs or {}))
        if (kwargs or {}).get("generator") is not None or _states_of_torch() != before:
            self.names.append(func.overloadpacket.__name__)
        return value


@contextlib.contextmanager
def recorded_draws() -> Iterator[list[str]]:
    """Record what draws random numbers inside the block.

    Yields:
        A list that has, after the block, the names of torch's operators, and "random" or
        "numpy.random" where the generators of Python or NumPy have been used: by the block, or by
        another thread meanwhile.

    Example:
        >>> with recorded_draws() as names:
        ...     _ = torch.nn.functional.dropout(torch.ones(3))
        >>> len(names)
        1
    """
    before = _states_of_others()
    with _Draws() as draws:
        yield draws.names
    draws.names += [name for name, state in _states_of_others().items() if state != before[name]]


def _states_of_torch() -> list[bytes]:
    """Return the states of torch's generators, the CPU's first."""
    states = [torch.get_rng_state()]
    if torch.cuda.is_initialized():
        states += torch.cuda.get_rng_state_all()
    return [state.numpy().tobytes() for state in states]


def _states_of_others() -> dict[str, tuple]:
    """Return the states of Python's and NumPy's generators, by module."""
    name, keys, *rest = numpy.random.get_state(legacy=True)
    return {
        "random": random.getstate(),
        "numpy.random": (name, numpy.asarray(keys).tobytes(), *rest),
    }
