"""Clipping, averaging, precise BatchNorm, initialisation and regularisers against definitions."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import lirpa_multinorm.training.loop as loop_module
import lirpa_multinorm.training.run as run_module
import lirpa_multinorm.training.step as step_module
from lirpa_multinorm import BoundedModule, PerturbationLinf
from lirpa_multinorm.losses import build_loss, shi_regularizer
from lirpa_multinorm.models import shi_init_
from lirpa_multinorm.perturbations import Region
from lirpa_multinorm.training import ModelSpec, Schedule, load_checkpoint, train
from lirpa_multinorm.training.averaging import WeightAverage, recompute_statistics
from lirpa_multinorm.training.step import TrainingStep
from tests.toy import CONFIG, SETS, SPEC, data
from tests.training.runs import log_of, same

BATCH_NORM = ModelSpec("cnn3", (1, 4, 4), 3, options={"width": 2})


def run(output=None, spec=BATCH_NORM, images=None, initial=None, **changes):
    config = dataclasses.replace(CONFIG, **changes)
    return train(
        spec,
        data() if images is None else images,
        SETS,
        config,
        output,
        progress=False,
        initial=initial,
    )


def step_for(model, **changes):
    config = dataclasses.replace(CONFIG, **changes)
    step = TrainingStep(model, build_loss(config.loss, SETS, **config.loss_options), SETS, config)
    step.start_epoch(0)
    return step


def twins():
    entry, other = SPEC.build(), SPEC.build()
    other.load_state_dict(entry.state_dict())
    return entry, other


def gradients(model):
    return torch.cat([p.grad.flatten() for p in model.parameters()])


# --- clip_norm ------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.1, 0.999, 1.001, 100.0])
def test_gradients_longer_than_clip_norm_are_shortened(share):
    images, (model, twin) = data(), twins()
    x, y = images.x_train[:16], images.y_train[:16]
    step_for(model)(x, y, 1.5)
    whole = gradients(model)
    step_for(twin, clip_norm=share * float(whole.norm()))(x, y, 1.5)
    assert torch.allclose(gradients(twin), whole * min(1.0, share), atol=1e-7)


def test_a_gradient_of_zero_can_be_clipped():
    model = SPEC.build()
    nn.init.zeros_(model[-1].weight)
    step = step_for(model, loss="natural", clip_norm=1e-3)
    step.update(sum(0.0 * p.sum() for p in model.parameters()), data().x_train[:4])
    assert not gradients(model).any() and all(
        bool(torch.isfinite(p).all()) for p in model.parameters()
    )


# --- average_from and precise_bn ------------------------------------------------------------------


class Watched:
    """Keeps the weights at the end of every epoch, before anything is averaged."""

    def __init__(self, monkeypatch):
        original, self.states = loop_module.Training.check_weights, []

        def check(entry):
            self.states.append(
                {name: value.clone() for name, value in entry.model.state_dict().items()}
            )
            return original(entry)

        monkeypatch.setattr(loop_module.Training, "check_weights", check)


def statistics_of(model, x, batch_size):
    """Mean and variance of each BatchNorm's input over a set's whole batches, layer after layer."""
    loaded, layers = [], [layer for layer in model if isinstance(layer, nn.BatchNorm2d)]
    for entry in layers:
        means, variances = [], []
        for start in range(0, len(x) - batch_size + 1, batch_size):
            value = x[start : start + batch_size]
            for layer in model:
                if layer is entry:
                    means.append(value.mean((0, 2, 3)))
                    variances.append(value.var((0, 2, 3)))
                    break
                if isinstance(layer, nn.BatchNorm2d):
                    value = F.batch_norm(
                        value, None, None, layer.weight, layer.bias, training=True, eps=layer.eps
                    )
                else:
                    value = layer(value)
        loaded.append((torch.stack(means).mean(0), torch.stack(variances).mean(0)))
    return loaded


def check_statistics(model, x, batch_size):
    with torch.no_grad():
        expected = statistics_of(model, x, batch_size)
    layers = [layer for layer in model if isinstance(layer, nn.BatchNorm2d)]
    assert len(expected) == len(layers) == 2
    for layer, (mean, variance) in zip(layers, expected):
        assert torch.allclose(layer.running_mean, mean, atol=1e-6)
        assert torch.allclose(layer.running_var, variance, atol=1e-6)


@pytest.mark.parametrize("first", [0, 2, 3])
def test_weights_are_the_mean_over_the_last_epochs(first, tmp_path, monkeypatch):
    watched, images = Watched(monkeypatch), data()
    model = run(tmp_path, epochs=4, average_from=first, images=images)
    for name, value in model.named_parameters():
        mean = torch.stack([state[name] for state in watched.states[first:]]).mean(0)
        assert torch.allclose(value, mean, atol=1e-6)
    check_statistics(model, images.x_train, 16)
    assert same(load_checkpoint(tmp_path / "checkpoint.pt").model, model)


def test_averaging_does_not_change_the_path(monkeypatch):
    watched = Watched(monkeypatch)
    run(epochs=3, average_from=0)
    run(epochs=3)
    for entry, other in zip(watched.states[:3], watched.states[3:]):
        assert all(torch.equal(entry[name], other[name]) for name in entry)


def test_the_mean_does_not_depend_on_the_number_of_epochs():
    layer = nn.Linear(1, 1)
    average = WeightAverage(layer)
    for value in (1.0, 2.0, 6.0, 7.0):
        nn.init.constant_(layer.weight, value)
        average.add(layer)
    nn.init.constant_(layer.weight, 100.0)
    average.apply_to(layer)
    assert layer.weight.item() == pytest.approx(4.0)


@pytest.mark.parametrize("batch_size", [16, 40], ids=["batches", "whole_set"])
def test_precise_statistics_are_those_of_the_training_set(batch_size):
    images = data()
    model = run(images=images, precise_bn=True, batch_size=batch_size, epochs=2)
    check_statistics(model, images.x_train, batch_size)
    first = model[0](
        images.x_train[: 40 // batch_size * batch_size]
    )  # the first layer sees what it sees at any size
    assert torch.allclose(model[1].running_mean, first.mean((0, 2, 3)), atol=1e-6)


def test_precise_statistics_ignore_the_augmentation_and_take_bytes():
    model, images = BATCH_NORM.build(), data()
    x = (images.x_train * 255).round().byte()
    recompute_statistics(model.eval(), x, 16)
    assert not model.training
    check_statistics(model, x.float() / 255, 16)
    check_statistics(
        run(images=images, precise_bn=True, augment="cifar", epochs=1), images.x_train, 16
    )


def test_every_checkpoint_has_precise_statistics(tmp_path, monkeypatch):
    images, seen, original = data(), [], run_module.save_checkpoint

    def save(path, model, *rest):
        check_statistics(model, images.x_train, 16)
        seen.append(1)
        return original(path, model, *rest)

    monkeypatch.setattr(run_module, "save_checkpoint", save)
    run(tmp_path, images=images, precise_bn=True, epochs=3)
    assert len(seen) == 3


# --- initialization -------------------------------------------------------------------------------


def start(initialization, initial=None):
    config = dataclasses.replace(CONFIG, initialization=initialization, seed=3)
    return loop_module.Training(BATCH_NORM, data(), SETS, config, None, "cpu", initial, False).model


def test_shi_initialisation_is_for_training_from_scratch(tmp_path):
    torch.manual_seed(3)
    plain = BATCH_NORM.build()
    torch.save(plain.state_dict(), tmp_path / "plain.pt")
    torch.manual_seed(3)
    shi = shi_init_(BATCH_NORM.build())
    assert same(start("default"), plain) and same(start("shi"), shi) and not same(shi, plain)
    assert same(start("shi", tmp_path / "plain.pt"), plain)


# --- regularizer ----------------------------------------------------------------------------------


def test_regulariser_counts_less_as_the_radius_grows(monkeypatch):
    """The gradient is worked out from the parts separately."""
    images, (model, twin) = data(), twins()
    x, y, schedule = images.x_train[:16], images.y_train[:16], Schedule(0, 4, 0.5, 0.5)
    step = step_for(model, loss="ibp", schedule=schedule, regularizer=0.7, l1=0.01)
    values = step(x, y, 3.0)
    scale, bounded = schedule.eps_scale(3.0), BoundedModule(twin)
    assert 0 < scale < 1
    natural = F.cross_entropy(bounded(x), y)
    robust = build_loss("ibp", SETS)(bounded, x, y, eps_scale=scale)
    regularizer = shi_regularizer(robust.hidden)
    length = sum(p.abs().sum() for p in twin.parameters())
    (
        0.5 * natural + 0.5 * robust.value + 0.7 * (1 - scale) * regularizer + 0.01 * length
    ).backward()
    assert values["regularizer"].item() == pytest.approx(regularizer.item()) and regularizer > 0
    assert torch.allclose(gradients(model), gradients(twin), atol=1e-6)


def test_regulariser_acts_in_the_natural_warm_up():
    """There is no radius yet.

    The bounds of a box of half-width 1e-6 show how the network spreads them.
    """
    images, (model, twin) = data(), twins()
    x, y = images.x_train[:16], images.y_train[:16]
    values = step_for(model, loss="max", regularizer=0.7)(x, y, 0.5)
    bounded = BoundedModule(twin)
    natural = F.cross_entropy(bounded(x), y)
    region = Region(x, PerturbationLinf(1e-6))
    (bounds,) = bounded.compute_region_bounds([region], None, "IBP")
    regularizer = shi_regularizer(bounds.intermediate)
    (natural + 0.7 * regularizer).backward()
    assert (
        values["regularizer"].item() == pytest.approx(regularizer.item())
        and "robust_loss" not in values
    )
    assert torch.allclose(gradients(model), gradients(twin), atol=1e-6)


@pytest.mark.parametrize(
    "changes, now, there",
    [
        ({"loss": "max", "regularizer": 0.5}, 0.5, True),
        ({"loss": "max", "regularizer": 0.5}, 1.5, True),
        ({"loss": "max", "regularizer": 0.5}, 2.0, False),
        ({"loss": "max", "regularizer": 0.5}, 7.5, False),
        ({"loss": "max"}, 1.5, False),
        ({"loss": "natural", "regularizer": 0.5}, 0.5, False),
    ],
    ids=["warm_up", "annealing", "just_after", "after", "no_weight", "natural_loss"],
)
def test_where_the_regulariser_is_computed(changes, now, there, monkeypatch):
    calls, original = [], step_module.shi_regularizer
    monkeypatch.setattr(
        step_module, "shi_regularizer", lambda hidden: calls.append(1) or original(hidden)
    )
    images = data()
    values = step_for(SPEC.build(), **changes)(images.x_train[:8], images.y_train[:8], now)
    assert bool(calls) == there == ("regularizer" in values)


def test_regulariser_is_logged_where_it_acts(tmp_path):
    run(tmp_path, loss="max", regularizer=0.5, epochs=4, schedule=Schedule(1, 1))
    assert ["regularizer" in line for line in log_of(tmp_path)] == [True, True, False, False]
