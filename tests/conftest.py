"""Fixtures and options shared by all tests."""

from __future__ import annotations

import contextlib

import pytest
import torch

from tests.cli.runs import checkpoint, file, no_figures  # noqa: F401  (fixtures)
from tests.devices.factories import forgotten_devices_on_meta

#: Left when the tests end.
_PATCHES = contextlib.ExitStack()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the slow tests as well")
    parser.addoption("--device", default="cpu", help="where tests/devices runs")
    parser.addoption(
        "--forgotten",
        choices=("meta", "cpu"),
        default="meta",
        help="where tensors land that the package makes without a device (tests/devices)",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the slow tests out unless asked for, by --slow or by a -m that names them."""
    if config.getoption("--slow") or "slow" in (config.getoption("-m") or ""):
        return
    slow = [item for item in items if item.get_closest_marker("slow")]
    if slow:
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if not item.get_closest_marker("slow")]


def pytest_configure(config: pytest.Config) -> None:
    # The tensors here are tiny: a second thread costs more than it gives.
    torch.set_num_threads(1)
    # All tests prove that this package forgets no device, at no cost.
    if config.getoption("--forgotten") == "meta":
        _PATCHES.enter_context(forgotten_devices_on_meta())


def pytest_unconfigure(config: pytest.Config) -> None:
    _PATCHES.close()


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    torch.manual_seed(0)
