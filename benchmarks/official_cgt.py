"""The verifier of CGT's official code, and its networks, run on images of ours.

Its script ``certify.py`` runs as it is, with the options of its command line. What is put in its
place: the images, the CPU for the GPU, and processor time for its clock.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import runpy
import sys
import time
import timeit
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import torch
from torch import Tensor
from torch.utils import data

from lirpa_multinorm.host.trace import tracing


class Verified(NamedTuple):
    """What its verifier reports.

    Args:
        clean: How many images are classified correctly.
        certified: How many are certified.
        seconds: Processor time of its certification, without the time to read the network.
    """

    clean: int
    certified: int
    seconds: float


class OfficialCgt:
    """The official code at a path.

    Args:
        path: A checkout of uiuc-arc/CGT.
    """

    def __init__(self, path: Path) -> None:
        if str(path) not in sys.path:
            sys.path.insert(0, str(path))
        self._script = path / "certify.py"
        self._networks = path / "networks" / "mnist"
        self._config = importlib.import_module("configs.mnist_config")
        self._grids = importlib.import_module("geometric.interval_perturbations")

    def weights(self, network: str) -> dict[str, Tensor]:
        """Return the state dict of one of its MNIST networks."""
        path = self._networks / f"{network}.pt"
        return torch.load(path, weights_only=True, map_location="cpu")

    def verified(self, network: str, config: int, x: Tensor, y: Tensor, batch: int) -> Verified:
        """Certify images by its own verifier.

        Args:
            network: One of its MNIST networks.
            config: Which of its transforms, by its numbers.
            x: Images in [0, 1].
            y: Labels.
            batch: How many images it bounds at once.
        """
        options = f"-b {batch} -d mnist -c {config} --np -p".split()
        arguments = [str(self._script), *options, str(self._networks / f"{network}.pt")]
        with self._replaced(x, y), mock.patch.object(sys, "argv", arguments):
            script = runpy.run_path(str(self._script), run_name="__main__")
        return Verified(script["num_correct"], script["num_robust"], script["certify_time"])

    @contextlib.contextmanager
    def _replaced(self, x: Tensor, y: Tensor) -> Iterator[None]:
        """Give its script the images, the CPU, and processor time, for the block."""
        dataset, loader, load = data.TensorDataset(x, y), data.DataLoader, torch.load
        patched = [
            mock.patch.object(self._config, "get_dataset", lambda **_: dataset),
            mock.patch.object(
                data, "DataLoader", lambda source, batch_size, **_: loader(source, batch_size)
            ),
            mock.patch.object(torch, "load", partial(load, map_location="cpu", weights_only=True)),
            mock.patch.object(timeit, "default_timer", time.process_time),
            # The device is the only argument with a default.
            mock.patch.object(self._grids.make_interp_grid, "__defaults__", ("cpu",)),
            mock.patch.object(self._grids.spatial, "__defaults__", ("cpu",)),
        ]
        with contextlib.ExitStack() as stack:
            for patch in patched:
                stack.enter_context(patch)
            silent = io.StringIO()
            stack.enter_context(contextlib.redirect_stderr(silent))
            stack.enter_context(contextlib.redirect_stdout(silent))
            stack.enter_context(warnings.catch_warnings())
            stack.enter_context(tracing())  # what its auto_LiRPA misses in today's torch
            yield
