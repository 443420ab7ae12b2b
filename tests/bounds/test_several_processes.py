"""BatchNorm of several processes."""

import pytest
import torch
from torch import nn

from lirpa_multinorm import BoundedModule
from lirpa_multinorm.utils import distributed
from tests.bounds.interval_cases import assert_close
from tests.checks import assert_same


@pytest.mark.parametrize("shape", [(6, 4), (5, 4, 3, 3)], ids=["dense", "conv"])
def test_batch_norm_over_all_processes_is_torchs(monkeypatch, shape):
    """With one process that believes it were several.

    Output, statistics and gradients are those of the layer.
    """
    make = nn.BatchNorm1d if len(shape) == 2 else nn.BatchNorm2d
    model = nn.Sequential(make(4, momentum=0.3)).double().train()
    with torch.no_grad():
        model[0].weight.normal_()
        model[0].bias.normal_()
    twin = nn.Sequential(make(4, momentum=0.3)).double().train()
    twin.load_state_dict(model.state_dict())
    x = torch.randn(shape, dtype=torch.float64)
    bounded = BoundedModule(model)
    bounded.eval()(x)
    bounded.train()
    monkeypatch.setattr(distributed, "is_active", lambda: True)
    monkeypatch.setattr(distributed, "all_sum", lambda value: value)
    leaves = [x.clone().requires_grad_() for _ in range(2)]
    values = [network(leaf) for network, leaf in zip((bounded, twin), leaves)]
    assert_close(*values)
    for value in values:
        (value.sin() * torch.arange(4.0).view(1, 4, *[1] * (x.ndim - 2))).sum().backward()
    gradients, expected = (
        [leaf.grad, *[parameter.grad for parameter in network.parameters()]]
        for leaf, network in zip(leaves, (model, twin))
    )
    assert_close(gradients, expected)
    assert_same(model.buffers(), twin.buffers(), 1e-8, 1e-12)
