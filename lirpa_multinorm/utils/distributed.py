"""Training in several processes that follows the same path as one process would.

Every process holds the whole network and its rows of each batch. Whatever is averaged over the
batch (losses, BatchNorm statistics, regularisers) is summed over all processes, differentiably, so
that each of them computes the loss of the whole batch; the average of their gradients is then the
gradient of that loss.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import os
import re
from collections.abc import Iterable, Iterator

import torch
import torch.distributed as dist
from torch import Tensor

from ..errors import InvalidArgumentError, LirpaMultinormError, ProcessGroupError

TIMEOUT_SECONDS = 600.0


def is_active() -> bool:
    """Return whether this process is one of several."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def world_size() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if is_active() else 1


def rank() -> int:
    """Return this process's number, from 0."""
    return dist.get_rank() if is_active() else 0


@contextlib.contextmanager
def process_group(device: str = "cpu", timeout: float = TIMEOUT_SECONDS) -> Iterator[None]:
    """Join the processes that ``torchrun`` has started; without torchrun nothing happens.

    Args:
        device: Where tensors live: "cpu" uses gloo, "cuda" nccl and a GPU per process of this
            machine.
        timeout: Seconds to wait for the others in any exchange.

    Raises:
        ProcessGroupError: A process is missing, or was lost on the way.
        InvalidArgumentError: The machine has fewer GPUs than processes, or the timeout is not
            positive.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1 or is_active():
        yield
        return
    if not 0 < timeout < float("inf"):
        raise InvalidArgumentError(f"timeout={timeout} must be positive and finite, in seconds")
    on_gpu = torch.device(device).type == "cuda"
    if on_gpu and torch.device(device).index is None:
        _take_gpu(int(os.environ.get("LOCAL_RANK", 0)))
    with explained():
        try:
            dist.init_process_group(
                "nccl" if on_gpu else "gloo", timeout=datetime.timedelta(seconds=timeout)
            )
        except ValueError as error:  # variables that torchrun sets are missing
            raise ProcessGroupError(
                f"WORLD_SIZE={os.environ['WORLD_SIZE']} asks for several processes, which cannot "
                f"be joined ({error}); start them with torchrun, or unset WORLD_SIZE"
            ) from error
    try:
        with explained():
            yield
    finally:
        dist.destroy_process_group()


def _take_gpu(number: int) -> None:
    """Make "cuda" mean this process's GPU."""
    if number >= torch.cuda.device_count():
        raise InvalidArgumentError(
            f"device='cuda': process {number} of this machine finds {torch.cuda.device_count()} "
            "GPUs; start at most one process per GPU"
        )
    torch.cuda.set_device(number)


def _first_sentence(error: Exception) -> str:
    """Return what a library says, without its place in the source and its advice."""
    return re.sub(r"^\[[^]]*\] ", "", (str(error).splitlines() or [""])[0]).partition(". ")[0]


_SIGNS = ("gloo", "nccl", "connection", "peer", "timed out", "timeout", "socket", "store")


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Turn the raw errors of a lost process into one that says what to do."""
    try:
        yield
    except RuntimeError as error:
        # Some errors of this package are RuntimeErrors as well, and may speak of stores.
        if isinstance(error, LirpaMultinormError):
            raise
        of_processes = isinstance(error, getattr(dist, "DistError", ())) or any(
            sign in str(error).lower() for sign in _SIGNS
        )
        if not of_processes or not (is_active() or int(os.environ.get("WORLD_SIZE", 1)) > 1):
            raise
        raise ProcessGroupError(
            f"a process of the group was lost or did not answer ({_first_sentence(error)}); "
            "see the first error among the processes, and start again with --resume"
        ) from error


def _exchange_device() -> str:
    """Return the device whose tensors the processes can exchange."""
    return "cuda" if dist.get_backend() == "nccl" else "cpu"


def wait_for_all() -> None:
    """Return when every process has come here."""
    if is_active():
        dist.barrier()


def check_same(text: str, subject: str) -> None:
    """Raise InvalidArgumentError in all processes unless they hold the same text.

    Args:
        text: This process's text.
        subject: What the text describes, in words.
    """
    if not is_active():
        return
    number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")
    extremes = torch.tensor([number, -number], device=_exchange_device())
    dist.all_reduce(extremes, dist.ReduceOp.MAX)
    if int(extremes[0]) != -int(extremes[1]):
        raise InvalidArgumentError(
            f"the processes differ in {subject}; start all with the same arguments, the same data "
            "and one output folder that all of them see"
        )


def in_any(flag: bool) -> bool:
    """Return whether a flag is set in any process."""
    if not is_active():
        return flag
    value = torch.tensor([float(flag)], device=_exchange_device())
    dist.all_reduce(value, dist.ReduceOp.MAX)
    return bool(value.item())


@contextlib.contextmanager
def failing_together() -> Iterator[None]:
    """Make this package's errors in one process's block errors of all processes.

    No process then waits for another in vain.

    Raises:
        ProcessGroupError: In the processes whose block has raised nothing.
    """
    error = None
    try:
        yield
    except LirpaMultinormError as raised:
        error = raised
    failed = in_any(error is not None)
    if error is not None:
        raise error
    if failed:
        raise ProcessGroupError(
            "another process of the group was refused; see its error, and start all of them again"
        )


def own_rows(batch: Tensor) -> Tensor:
    """Return this process's rows of a batch that all processes hold.

    Raises:
        InvalidArgumentError: The batch cannot be divided into equal shares.
    """
    count = world_size()
    if len(batch) % count:
        raise InvalidArgumentError(
            f"batch_size={len(batch)} cannot be divided among {count} processes; use a multiple"
        )
    share = len(batch) // count
    return batch[rank() * share : (rank() + 1) * share]


def all_sum(value: Tensor) -> Tensor:
    """Return the sum of a tensor over all processes; gradients flow to every process."""
    return _AllSum.apply(value) if is_active() else value


class _AllSum(torch.autograd.Function):
    """A sum over all processes, whose gradients are summed too: each loss needs all summands."""

    @staticmethod
    def forward(ctx, value: Tensor) -> Tensor:
        return _reduced(value)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return _reduced(gradient)


def _reduced(value: Tensor) -> Tensor:
    total = value.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total)
    return total


def mean(values: Tensor) -> Tensor:
    """Return the mean over all values of all processes."""
    if not is_active():
        return values.mean()
    count = torch.tensor(float(values.numel()), dtype=values.dtype, device=values.device)
    return all_sum(values.sum()) / all_sum(count)


def average_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Replace every gradient by its mean over the processes, in one exchange."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not is_active() or not gradients:
        return
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= world_size()
    for gradient, averaged in zip(
        gradients, flat.split([gradient.numel() for gradient in gradients])
    ):
        gradient.copy_(averaged.view_as(gradient))


class SharedGenerator:
    """A random source that gives each process its rows of the draw for all processes' batches.

    Args:
        seed: The same in all processes.

    Example:
        >>> SharedGenerator(0).rand((2, 1)).shape
        torch.Size([2, 1])
    """

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def rand(self, shape, dtype: torch.dtype | None = None) -> Tensor:
        """Return this process's rows of uniform numbers in [0, 1), on the CPU."""
        return own_rows(
            torch.rand(
                (shape[0] * world_size(), *shape[1:]),
                generator=self.generator,
                dtype=dtype,
                device="cpu",
            )
        )

    def randn(self, shape, dtype: torch.dtype | None = None) -> Tensor:
        """Return this process's rows of standard normal numbers, on the CPU."""
        return own_rows(
            torch.randn(
                (shape[0] * world_size(), *shape[1:]),
                generator=self.generator,
                dtype=dtype,
                device="cpu",
            )
        )

    def get_state(self) -> Tensor:
        """Return the state, to continue from."""
        return self.generator.get_state()

    def set_state(self, state: Tensor) -> None:
        """Continue from a state."""
        self.generator.set_state(state)
