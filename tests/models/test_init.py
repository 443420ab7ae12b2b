"""Initialisation for certified training: spread per layer, what is left alone, repeatable."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from lirpa_multinorm.models import build_model, shi_init_


def layers_of(model):
    return [layer for layer in model.modules() if isinstance(layer, (nn.Conv2d, nn.Linear))]


@pytest.mark.parametrize("name", ["cnn7", "resnet4b"])
def test_every_layer_has_its_own_spread(name):
    model = build_model(name, (3, 16, 16), 10, width=32)
    assert shi_init_(model) is model
    for layer in layers_of(model)[:-1]:
        weight = layer.weight.detach()
        inputs = (
            layer.in_channels * math.prod(layer.kernel_size)
            if isinstance(layer, nn.Conv2d)
            else layer.in_features
        )
        std = math.sqrt(2 * math.pi / inputs**2)
        # Six standard errors of the mean and of the standard deviation of n normal numbers.
        n = weight.numel()
        assert abs(float(weight.mean())) < 6 * std / math.sqrt(n)
        assert float(weight.std()) == pytest.approx(std, rel=6 / math.sqrt(2 * n))
        # Normal: 68 % within one standard deviation (uniform numbers would have 58 %).
        assert float((weight.abs() < std).float().mean()) == pytest.approx(
            0.6827, abs=3 / math.sqrt(n)
        )


@pytest.mark.parametrize("name", ["cnn7", "resnet2b", "mlp"])
def test_last_layer_biases_and_batch_norm_stay(name):
    model = build_model(name, (1, 8, 8), 10)
    before = copy.deepcopy(model.state_dict())
    shi_init_(model)
    redrawn = {
        f"{key}.weight" for key, layer in model.named_modules() if layer in layers_of(model)[:-1]
    }
    assert redrawn and len(redrawn) == len(layers_of(model)) - 1
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]) is (key not in redrawn), key


def test_a_convolution_after_the_last_linear_is_drawn_too():
    model = nn.Sequential(nn.Linear(4, 9), nn.Unflatten(1, (1, 3, 3)), nn.Conv2d(1, 2, 3))
    before = [layer.weight.clone() for layer in layers_of(model)]
    shi_init_(model)
    assert [torch.equal(layer.weight, old) for layer, old in zip(layers_of(model), before)] == [
        True,
        False,
    ]


def test_groups_count_their_own_inputs_only():
    conv = shi_init_(
        nn.Sequential(nn.Conv2d(64, 64, 3, groups=64), nn.Flatten(), nn.Linear(64, 2))
    )[0]
    assert float(conv.weight.detach().std()) == pytest.approx(math.sqrt(2 * math.pi) / 9, rel=0.15)


def test_draws_follow_torchs_seed_and_keep_gradients_on():
    states = []
    for seed in (1, 1, 2):
        torch.manual_seed(3)
        model = build_model("cnn3", (1, 8, 8), 10, width=4)
        torch.manual_seed(seed)
        states.append(shi_init_(model)[0].weight)
    assert torch.equal(states[0], states[1]) and not torch.equal(states[0], states[2])
    assert states[0].requires_grad and states[0].is_leaf
