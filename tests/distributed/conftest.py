"""Fixtures of the tests of several processes."""

import sys

import pytest


@pytest.fixture
def no_tensorboard(monkeypatch):
    """It is slow to import."""
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
