"""ReceptiveFields of poolings against torch's own poolings."""

import itertools

import pytest
import torch
from torch.nn import functional as F

from lirpa_multinorm.verifier.network.pooling import adaptive_windows, strided_windows


@pytest.mark.parametrize(
    "side, kernel, stride, padding, dilation, ceil_mode",
    [
        case
        for case in itertools.product(
            (4, 5, 7), (1, 2, 3, 4), (1, 2, 3, 5), (0, 1, 2), (1, 2), (False, True)
        )
        if case[3] <= (case[4] * (case[1] - 1) + 1) // 2
        and case[0] + 2 * case[3] >= case[4] * (case[1] - 1) + 1
    ],
)
def test_windows_are_those_of_torch(side, kernel, stride, padding, dilation, ceil_mode):
    x = torch.randn(1, 3, side)
    try:
        expected = F.max_pool1d(x, kernel, stride, padding, dilation, ceil_mode)
    except RuntimeError:  # torch itself refuses the combination
        return
    windows = strided_windows(side, kernel, stride, padding, dilation, ceil_mode)
    if windows is None:
        assert expected.isinf().any()
    else:
        assert torch.equal(x[..., windows].amax(-1), expected)


@pytest.mark.parametrize("side", range(1, 8))
@pytest.mark.parametrize("count", range(1, 9))
def test_adaptive_windows_are_those_of_torch(side, count):
    x = torch.randn(1, 3, side)
    assert torch.equal(
        x[..., adaptive_windows(side, count)].amax(-1), F.adaptive_max_pool1d(x, count)
    )
