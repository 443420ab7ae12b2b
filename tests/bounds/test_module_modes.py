"""BoundedModule in training and evaluation mode: BatchNorm's statistics, and dropout."""

import copy

import pytest
import torch
from torch import nn

from lirpa_multinorm import BoundedModule, PerturbationL2Box
from lirpa_multinorm.audit import build_graph
from tests.bounds.small_network import BATCH, METHODS, SETS, bounds_of, images, network
from tests.checks import assert_same, assert_sound, differ


@pytest.mark.parametrize("traced", [False, True], ids=["untraced", "traced"])
def test_train_and_eval(traced):
    model = network(True)
    bounded = BoundedModule(model, perturbations=SETS)
    if traced:
        bounded.compute_bounds(images(), method="IBP")
    for call, mode in (
        (bounded.train, True),
        (bounded.eval, False),
        (lambda: bounded.train(False), False),
    ):
        assert call() is bounded
        assert bounded.training is mode
        assert all(module.training is mode for module in model.modules())


def train_steps(forward, model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(4):
        x = images(seed=step)
        loss = nn.functional.cross_entropy(forward(x), torch.arange(BATCH) % 3)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def test_batch_norm_statistics_follow_training_through_the_graph():
    plain = network(True).train()
    model = copy.deepcopy(plain)
    bounded = BoundedModule(model, perturbations=SETS)
    train_steps(plain, plain)
    train_steps(bounded, bounded)
    for key, value in plain.state_dict().items():
        assert torch.allclose(bounded.state_dict()[key].float(), value.float(), atol=1e-5), key
    x = images()
    assert torch.allclose(bounded.eval()(x), plain.eval()(x), atol=1e-5)
    assert_same(bounds_of(bounded, x), bounds_of(BoundedModule(plain, perturbations=SETS), x))


def test_bounds_in_training_leave_the_statistics_alone():
    model, x = network(True).train(), images()
    bounded = BoundedModule(model, perturbations=SETS)
    bounded(x)
    before = copy.deepcopy(model.state_dict())
    for method in ("IBP", "CROWN-IBP"):
        bounded.compute_bounds(x, method=method)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("sets", [SETS[:1], SETS], ids=["one_set", "two_sets"])
def test_bounds_in_training_use_the_statistics_of_the_last_clean_pass(sets):
    """Interval arithmetic by hand with mean and variance of the clean batch, for the l_inf set."""
    model, x = network(True).train(), images()
    bounded = BoundedModule(model, perturbations=sets)
    bounded(x)
    result, *_ = bounded.compute_norm_bounds(x, method="IBP")
    conv, norm = model[0], model[1]
    clean = conv(x)
    mean, variance = (
        clean.mean((0, 2, 3), keepdim=True),
        clean.var((0, 2, 3), unbiased=False, keepdim=True),
    )
    scale = norm.weight.view(1, -1, 1, 1) / (variance + norm.eps).sqrt()
    lo, hi = (x - 0.05).clamp(0, 1), (x + 0.05).clamp(0, 1)
    centre = conv((lo + hi) / 2)
    radius = nn.functional.conv2d((hi - lo) / 2, conv.weight.abs(), padding=1)
    lo, hi = (
        ((end - mean) * scale + norm.bias.view(1, -1, 1, 1)).relu().flatten(1)
        for end in (centre - radius, centre + radius)
    )
    for layer in (model[4], model[6]):
        centre, radius = layer((lo + hi) / 2), ((hi - lo) / 2).matmul(layer.weight.abs().t())
        lo, hi = centre - radius, centre + radius
        if layer is model[4]:
            lo, hi = lo.relu(), hi.relu()
    assert_same([end.detach() for end in result], (lo.detach(), hi.detach()), 1e-4)


def test_a_frozen_batch_norm_stays_frozen_in_training():
    model, x = network(True).train(), images()
    model[1].eval()
    frozen = copy.deepcopy(model[1].state_dict())
    bounded = BoundedModule(model, perturbations=SETS)
    assert torch.allclose(bounded(x), model(x), atol=1e-5)
    bounds = bounds_of(bounded, x)
    assert all(torch.equal(value, frozen[key]) for key, value in model[1].state_dict().items())
    assert [module.training for module in model.modules()][:3] == [True, True, False]
    # Every other layer is the same in both modes, so are the bounds.
    assert_same(bounds, bounds_of(bounded.eval(), x))


def test_a_batch_norm_at_the_input_is_sound_in_training():
    """In training it is no constant scale, in evaluation it is.

    Switching back and forth keeps both sound.
    """
    model, x = build_graph("batch_norm_first"), torch.rand(4, 2, 6, 6)
    bounded = BoundedModule(model, perturbations=[PerturbationL2Box(0.5)])
    before = bounds_of(bounded, x)
    bounded.train()
    clean = bounded(x).detach()
    lower, upper = bounds_of(bounded, x)
    assert (
        (lower <= clean + 1e-5).all()
        and (upper >= clean - 1e-5).all()
        and (upper - lower).min() > 1e-3
    )
    bounded.eval()
    after = bounds_of(bounded, x)
    assert_sound(model, x, PerturbationL2Box(0.5), after)
    assert differ(before, after)  # the running statistics moved


def test_dropout_in_evaluation():
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(32, 8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, 3)
    ).eval()
    without = nn.Sequential(model[0], model[1], model[3], model[4])
    x = images()
    for method in METHODS[:3]:
        assert_same(
            bounds_of(BoundedModule(model, perturbations=SETS), x, method),
            bounds_of(BoundedModule(without, perturbations=SETS), x, method),
        )
