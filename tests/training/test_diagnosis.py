"""What is broken in a network, and where."""

import math

import pytest
import torch
from torch import nn

from lirpa_multinorm import BoundedModule
from lirpa_multinorm.losses import build_loss
from lirpa_multinorm.training.diagnosis import nonfinite_place
from tests.toy import SETS


def small(*layers):
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 4), *layers, nn.ReLU(), nn.Linear(4, 3))


X = torch.rand(4, 1, 4, 4)


class Residual(nn.Module):
    """A block with a layer below it."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(4, 4))

    def forward(self, x):
        return x + self.inner(x)


def test_nothing_is_found_where_nothing_is_wrong():
    assert (
        nonfinite_place(BoundedModule(small(), perturbations=SETS), X)
        == "no layer by itself: the loss overflows"
    )


@pytest.mark.parametrize(
    "name, layer", [("1.weight", "1"), ("4.bias", "4"), ("2.inner.0.weight", "2.inner.0")]
)
def test_a_broken_parameter(name, layer):
    model = small(Residual())
    with torch.no_grad():
        dict(model.named_parameters())[name].view(-1)[1] = math.nan
    expected = f"the weights of {layer} ({name}) are NaN or infinite"
    assert nonfinite_place(BoundedModule(model, perturbations=SETS), X) == expected


def test_broken_statistics_of_batch_norm():
    model = small(nn.BatchNorm1d(4))
    model[2].running_var[0] = math.inf
    assert "of 2 (2.running_var)" in nonfinite_place(BoundedModule(model, perturbations=SETS), X)


def test_the_first_layer_that_overflows_and_nothing_is_changed():
    model = small(Residual())
    with torch.no_grad():
        model[2].inner[0].weight.fill_(3e38)
        model[1].weight.fill_(1.0)
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    spot = nonfinite_place(BoundedModule(model, perturbations=SETS), X)
    assert spot == "the output of layer 2.inner.0 is NaN or infinite"
    assert model.training and all(
        torch.equal(value, before[name]) for name, value in model.state_dict().items()
    )
    assert not any(layer._forward_hooks for layer in model.modules())


def test_bounds_of_a_node():
    model = small()
    bounded = BoundedModule(model, perturbations=SETS)
    loss = build_loss("ibp", SETS)
    loss(bounded, X, torch.tensor([0, 1, 2, 0]))
    node = next(node for node in bounded.children() if type(node).__name__ == "BoundRelu")
    node.lower = node.lower * math.nan
    assert nonfinite_place(bounded, X) == f"the bounds of node {node.name} are NaN or infinite"
