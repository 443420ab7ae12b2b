"""Starting several processes of one run, as torchrun does, to test distributed training."""

import contextlib
import json
import os
import socket
import sys

import pytest
import torch

from tests.processes import Process

#: The marks of tests of two processes.
TWO_PROCESSES = [
    pytest.mark.skipif(
        not torch.distributed.is_available() or not torch.distributed.is_gloo_available(),
        reason="torch without gloo",
    ),
    pytest.mark.usefixtures("no_tensorboard"),
]


def environment(**variables):
    path = os.pathsep.join([*sys.path, *filter(None, [os.environ.get("PYTHONPATH")])])
    return dict(os.environ, PYTHONPATH=path, OMP_NUM_THREADS="1", **variables)


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return str(server.getsockname()[1])


def variables(rank, port):
    """What torchrun sets in a process of two."""
    return {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "WORLD_SIZE": "2",
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
    }


@contextlib.contextmanager
def joined(function, *arguments, rank=0):
    """Be one process of two, while another one calls a function.

    Gives the other one, which has ``code`` and ``errors`` when it has ended.
    """
    port = free_port()
    other = Process(function, *arguments, **variables(1 - rank, port))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables(rank, port).items():
            patch.setenv(name, value)
        try:
            yield other
        finally:
            other.code, other.errors = other.ended()


def log_of(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
