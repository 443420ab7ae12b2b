"""Residual networks: layers as published, and sound bounds through both hosts."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lirpa_multinorm import BoundedModule, PerturbationL2Box, PerturbationLinf
from lirpa_multinorm.attacks import AttackSettings
from lirpa_multinorm.audit import largest_violation
from lirpa_multinorm.models import BasicBlock, build_model, resnet2b, resnet4b

SETS = [PerturbationLinf(0.02), PerturbationL2Box(0.2)]
FACTORIES = {"resnet2b": resnet2b, "resnet4b": resnet4b}
every_resnet = pytest.mark.parametrize("name", FACTORIES)


def published(name):
    """Shapes (out, in, kernel) of the verifier's models for CIFAR-10, in order.

    Convolutions, then linear layers.
    """
    if name == "resnet2b":
        blocks, first, features = [(8, 16, True), (16, 16, False)], 8, 16 * 8 * 8
    else:
        blocks, first, features = (
            [(16, 32, True), (32, 32, False), (32, 32, True), (32, 32, False)],
            16,
            32 * 4 * 4,
        )
    shapes = [(first, 3, 3, 3)]
    for before, after, changes in blocks:
        shapes += [(after, before, 3, 3), (after, after, 3, 3)] + [(after, before, 1, 1)] * changes
    return [*shapes, (100, features), (10, 100)]


@every_resnet
def test_layers_are_the_published_ones(name):
    model = FACTORIES[name]((3, 32, 32), 10)
    weights = [
        layer.weight for layer in model.modules() if isinstance(layer, (nn.Conv2d, nn.Linear))
    ]
    assert [tuple(weight.shape) for weight in weights] == published(name)
    convs = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d)]
    assert all(conv.bias is None for conv in convs)
    assert len(convs) == sum(isinstance(layer, nn.BatchNorm2d) for layer in model.modules())


def test_a_block_adds_its_input():
    x = torch.randn(2, 3, 5, 5)
    block = BasicBlock(3, 3, 1).eval()
    nn.init.zeros_(block.conv2.weight)
    assert torch.equal(block(x), x.relu())
    block = BasicBlock(3, 4, 2).eval()
    nn.init.zeros_(block.conv2.weight)
    conv, norm = block.shortcut
    assert torch.allclose(
        block(x), F.conv2d(x, conv.weight, stride=2).div((1 + norm.eps) ** 0.5).relu(), atol=1e-6
    )
    assert block(x).shape == (2, 4, 3, 3)


def trained(name):
    """A network whose BatchNorm statistics and slopes are not the initial ones."""
    model = build_model(name, (3, 8, 8), 4, (0.4, 0.5, 0.6), (0.2, 0.25, 0.3), width=4, hidden=12)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, -1.5, 1.5)
            nn.init.uniform_(layer.bias, -0.3, 0.3)
    with torch.no_grad():
        for _ in range(20):
            model(torch.rand(16, 3, 8, 8))
    return model


def frozen_at_batch(model, x):
    """A copy in eval mode whose BatchNorm layers have the statistics of a training pass over x."""
    model = copy.deepcopy(model).train()

    def keep(layer, inputs):
        layer.batch = inputs[0].mean((0, 2, 3)), inputs[0].var((0, 2, 3), unbiased=False)

    norms = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
    hooks = [layer.register_forward_pre_hook(keep) for layer in norms]
    with torch.no_grad():
        clean = model(x)
    for layer, hook in zip(norms, hooks):
        layer.running_mean, layer.running_var = layer.batch
        hook.remove()
    model.eval()
    assert torch.allclose(model(x), clean, atol=1e-4)
    return model


def points_in(perturbation, x, count=200):
    """Random points of a set, half of them at its edge."""
    for index in range(count):
        step = torch.randn_like(x) if perturbation.norm == 2 else 2 * torch.rand_like(x) - 1
        if index % 2:
            step = step.sign()
        length = (
            step.flatten(1).norm(dim=1) if perturbation.norm == 2 else step.flatten(1).abs().amax(1)
        )
        yield (x + perturbation.eps * step / length.view(-1, 1, 1, 1)).clamp(0, 1)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("method", ["IBP", "CROWN-IBP"])
@every_resnet
def test_bounds_hold_in_both_modes(name, method, training):
    model, x = trained(name), torch.rand(6, 3, 8, 8)
    fixed = frozen_at_batch(model, x) if training else copy.deepcopy(model).eval()
    bounded = BoundedModule(model.train(training), perturbations=SETS)
    with torch.no_grad():
        assert torch.allclose(bounded(x), fixed(x), atol=1e-4)
        bounds = bounded.compute_norm_bounds(x, method=method)
    for item, (lower, upper) in zip(SETS, bounds):
        assert (lower < upper).all() and torch.isfinite(upper - lower).all()
        with torch.no_grad():
            for point in points_in(item, x):
                logits = fixed(point)
                assert (logits >= lower - 1e-4).all() and (logits <= upper + 1e-4).all()
        settings = AttackSettings(steps=10, restarts=1)
        assert largest_violation(fixed, x, item, (lower, upper), settings=settings) <= 1e-4


@pytest.mark.parametrize("method", ["IBP", "CROWN-IBP"])
def test_crown_ibp_is_tighter_and_bounds_can_be_trained(method):
    model, x = trained("resnet2b").train(), torch.rand(4, 3, 8, 8)
    bounded = BoundedModule(model, perturbations=SETS)
    bounded(x)
    lower, upper = bounded.compute_bounds(x, method=method)
    interval = bounded.compute_bounds(x, method="IBP")
    assert float((upper - lower).mean()) <= float((interval[1] - interval[0]).mean()) * 1.0001
    (upper - lower).mean().backward()
    without = [key for key, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    # The last bias moves both ends alike.
    assert [key for key in without if "bias" not in key] == []
