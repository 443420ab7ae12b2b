"""Starting several processes of one run, as torchrun does, to test distributed training."""

import contextlib
import os
import socket
import subprocess
import sys

import pytest


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
def joined(arguments, rank=0):
    """Be one process of two, while another one runs ``arguments`` (of the interpreter).

    Gives the other one.
    """
    port = free_port()
    other = subprocess.Popen(
        [sys.executable, "-W", "ignore", *map(str, arguments)],
        text=True,
        env=environment(**variables(1 - rank, port)),
        stderr=subprocess.PIPE,
    )
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables(rank, port).items():
            patch.setenv(name, value)
        try:
            yield other
        finally:
            try:
                other.errors = other.communicate(timeout=60)[1]
            except subprocess.TimeoutExpired:  # it stands still
                other.kill()
                other.errors = other.communicate()[1]
