"""Every floor runs on any device: ``--device cuda`` compares with the CPU.

Without a device the cases run like all tests: what the package makes without ``device=`` lands on
torch's meta device, and fails (tests/devices/factories.py).
"""

import pytest
import torch

from tests.devices.cases import CASES, TOLERANCE


@pytest.mark.device
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CASES)
def test_a_device_gives_what_the_cpu_gives(name, pytestconfig):
    device = torch.device(pytestconfig.getoption("--device"))
    results = CASES[name](device)
    assert results and all(bool(torch.isfinite(result).all()) for result in results)
    if device.type == "cpu":
        return
    expected = CASES[name](torch.device("cpu"))
    if name.startswith("attack"):  # signs of tiny gradients differ, and paths with them
        assert all(bool(((item.cpu() >= 0) & (item.cpu() <= 1)).all()) for item in results)
        return
    for result, other in zip(results, expected):
        torch.testing.assert_close(result.cpu(), other, **TOLERANCE)
