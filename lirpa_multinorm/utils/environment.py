"""The machine, versions and commit that made a result."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch


def environment(device: str | torch.device | None = None) -> dict[str, Any]:
    """Describe the machine and the versions, to be stored beside every result.

    Args:
        device: The device that did the work; ``None`` means the CPU.

    Returns:
        Plain values under ``python``, ``platform``, ``cpu_count``, ``threads``, one version per
        library (``None`` if it is missing), ``device``, ``device_name`` and ``git_commit``. The
        commit ends in ``-dirty`` if tracked files differ from it, and is ``None`` outside a
        checkout.

    Example:
        >>> environment()["device"]
        'cpu'
    """
    device = torch.device("cpu" if device is None else device)
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "torchvision": version_of("torchvision"),
        "numpy": np.__version__,
        "auto_LiRPA": version_of("auto_LiRPA"),
        "lirpa_multinorm": import_module("lirpa_multinorm").__version__,
        "device": str(device),
        "device_name": _device_name(device),
        "git_commit": git_commit(Path(__file__).resolve().parent),
    }


def version_of(name: str) -> str | None:
    """Return the version of the library in use, or None; nothing is imported for it."""
    if name in sys.modules:  # first, for a source checkout may shadow the installed one
        return getattr(sys.modules[name], "__version__", None)
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()


def git_commit(folder: Path) -> str | None:
    """Return the commit of the checkout that tracks this file, or None.

    Asking for the file itself keeps a virtual environment that lies inside some other
    repository from reporting that one's commit.
    """
    git = ["git", "-C", str(folder)]
    describe = ["describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        for command in (["ls-files", "--error-unmatch", "environment.py"], describe):
            done = subprocess.run(
                git + command, capture_output=True, text=True, timeout=10, check=True
            )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
