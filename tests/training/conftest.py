"""Fixtures that several tests of training share."""

import sys

import pytest
import torch

import lirpa_multinorm.training.runlog as runlog_module
from tests.training.runs import log_of, run


def draw_nothing(patch):
    patch.setitem(sys.modules, "torch.utils.tensorboard", None)
    patch.setattr(
        runlog_module, "learning_curves", lambda lines, path, title: path.write_bytes(b"curves")
    )


@pytest.fixture
def plain_logs(monkeypatch):
    """Drawing and TensorBoard, which have tests of their own, take most of a run's time."""
    draw_nothing(monkeypatch)


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory):
    """The network and the log of a run that nothing interrupts."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("uninterrupted")
    with pytest.MonkeyPatch.context() as patch:
        draw_nothing(patch)
        return run(folder), log_of(folder)
