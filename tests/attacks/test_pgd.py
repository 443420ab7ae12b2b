"""The batched attack: inside its sets, strong, and without traces on the model."""

import dataclasses
import math

import pytest
import torch
from torch import nn

from lirpa_multinorm import PerturbationLinf, PerturbationLpBox
from lirpa_multinorm.attacks import AttackSettings, attack_regions, margin_loss, maximize, pgd
from lirpa_multinorm.attacks.geometry import random_point
from lirpa_multinorm.perturbations import Region
from lirpa_multinorm.perturbations.rows import DenseRows
from tests.attacks.pgd_cases import SETS, batch, network, seeded

SETTINGS = {
    "default": AttackSettings(),
    "one_large_step": AttackSettings(steps=1, step_size=10.0),
    "no_random_start": AttackSettings(steps=5, random_start=False),
    "restarts_ce": AttackSettings(steps=5, restarts=3, loss="ce"),
    "stop_early": AttackSettings(steps=20, stop_early=True),
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_points_lie_in_their_sets(settings):
    model, (x, y) = network(), batch()
    points = pgd(model, x, y, SETS, settings, seeded())
    assert len(points) == len(SETS)
    for point, ball in zip(points, SETS):
        assert ball.contains(point, x, tolerance=1e-6).all()
        assert not point.requires_grad


@pytest.mark.parametrize("ball", SETS[:3], ids=["linf", "l2", "l1"])
def test_better_than_the_best_of_many_random_points(ball):
    model, (x, y) = network(), batch()
    (point,) = pgd(model, x, y, [ball], AttackSettings(steps=20), seeded())
    with torch.no_grad():
        result = margin_loss(model(point), y)
        random = torch.stack(
            [margin_loss(model(random_point(ball, x, seeded(seed))), y) for seed in range(50)]
        )
    assert (result >= random.amax(0) - 1e-6).all()


@pytest.mark.parametrize("norm", [math.inf, 2, 1], ids=["linf", "l2", "l1"])
def test_finds_the_maximum_of_a_linear_function(norm):
    """On one linear layer the exact answer is known from the support function."""
    model, (x, y) = nn.Sequential(nn.Flatten(), nn.Linear(25, 2)), batch()
    y = y % 2
    ball = PerturbationLpBox(norm, 0.3)
    regions = [Region(x, ball)]
    weight = model[1].weight.detach()
    rows = (weight[1 - y] - weight[y]).unsqueeze(1)
    best = (
        ball.extreme(DenseRows(rows), x, 1).squeeze(1)
        + (model[1].bias[1 - y] - model[1].bias[y]).detach()
    )
    (point,) = attack_regions(model, regions, [y], AttackSettings(steps=60), seeded())
    with torch.no_grad():
        gap = best - margin_loss(model(point), y)
    assert gap.min() > -1e-5
    assert gap.max() < 0.02 * best.abs().max()


def objective_of(model, y, sets):
    target = y.repeat(sets)
    return lambda inputs: margin_loss(model(inputs), target)


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_values_are_those_of_the_points_and_never_below_the_centre(settings):
    model, (x, y) = network(), batch()
    points, values = maximize(
        objective_of(model, y, len(SETS)), [Region(x, item) for item in SETS], settings, seeded()
    )
    for point, value in zip(points, values):
        with torch.no_grad():
            assert torch.allclose(margin_loss(model(point), y), value, atol=1e-5)
            assert (value >= margin_loss(model(x), y) - 1e-6).all()
    assert torch.equal(points[-1][0], x[0])  # radius 0


def test_more_restarts_never_lose():
    """With the same generator the first runs are the same, so each further restart can only add."""
    model, (x, y) = network(), batch()
    regions = [Region(x, item) for item in SETS]
    values = [
        torch.stack(
            maximize(
                objective_of(model, y, len(SETS)),
                regions,
                AttackSettings(steps=3, restarts=restarts),
                seeded(),
            )[1]
        )
        for restarts in (1, 2, 4)
    ]
    assert (values[1] >= values[0]).all() and (values[2] >= values[1]).all()
    assert (values[2] > values[0]).any()


def test_best_iterate_counts_not_the_last():
    """The objective of the last step is made worse than that of all before."""
    x, calls = torch.full((1, 2), 0.5), []

    def objective(inputs):
        calls.append(1)
        return inputs.sum(1) * (1.0 if len(calls) < 5 else -1.0) + (
            0.0 if len(calls) < 5 else -100.0
        )

    (point,), (value,) = maximize(
        objective,
        [Region(x, PerturbationLinf(0.1))],
        AttackSettings(steps=8, step_size=0.5, random_start=False, decays=()),
    )
    assert len(calls) > 5
    assert torch.allclose(point, torch.full((1, 2), 0.6))
    assert value.item() == pytest.approx(1.2)


def test_nan_objectives_never_win():
    """Some points of the set give NaN; they are not taken for the best."""
    x = torch.full((1, 2), 0.5)
    (point,), (value,) = maximize(
        lambda z: (0.55 - z[:, 0]).sqrt() * 0 + z[:, 0],
        [Region(x, PerturbationLinf(0.2))],
        AttackSettings(steps=10, step_size=0.1, random_start=False),
    )
    assert torch.isfinite(point).all() and 0.5 <= value.item() <= 0.55


def test_regions_may_differ_in_batch_size_and_labels():
    model, (x, y) = network(), batch()
    points = attack_regions(
        model,
        [Region(x[:2], SETS[0]), Region(x[2:], SETS[1])],
        [y[:2], y[2:]],
        AttackSettings(steps=3),
        seeded(),
    )
    assert [len(point) for point in points] == [2, 4]
    assert SETS[0].contains(points[0], x[:2]).all() and SETS[1].contains(points[1], x[2:]).all()


def test_step_size_per_norm():
    """A step of 0 for one norm leaves its points where they started; the other still moves."""
    model, (x, y) = network(), batch()
    settings = AttackSettings(steps=3, step_size={math.inf: 0.0, 2: 0.5}, random_start=False)
    still, moved = pgd(model, x, y, SETS[:2], settings)
    assert torch.equal(still, x) and not torch.allclose(moved, x)


def test_stop_early_stops():
    model, (x, _) = network(), batch()
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    wrong = model(x).argmax(1).add(1) % 3  # every input is misclassified from the start
    calls.clear()
    pgd(model, x, wrong, SETS[:2], AttackSettings(steps=30, stop_early=True))
    assert len(calls) < 10


def test_stop_early_takes_no_further_pass():
    """Each point is passed once, whether or not the run may end on the way.

    Classes are counted on the way too.
    """
    model, (x, _) = network(), batch()
    right, calls = model(x).argmax(1), []
    model.register_forward_hook(lambda *_: calls.append(1))
    for early in (True, False):
        calls.clear()
        pgd(model, x, right, [PerturbationLinf(1e-6)], AttackSettings(steps=5, stop_early=early))
        assert len(calls) == 1 + 6  # x, the start and 5 steps


def test_stop_early_waits_for_the_best_points():
    """The best point by cross-entropy decides.

    The run that ends is the start of the one that does not.
    """
    model, (x, y) = network(), batch()
    settings = AttackSettings(steps=30, loss="ce", stop_early=True)
    (point,) = pgd(model, x, y, [PerturbationLinf(0.5)], settings, seeded())
    (longer,) = pgd(
        model,
        x,
        y,
        [PerturbationLinf(0.5)],
        dataclasses.replace(settings, stop_early=False),
        seeded(),
    )
    with torch.no_grad():
        reached, more = (
            torch.nn.functional.cross_entropy(model(item), y, reduction="none")
            for item in (point, longer)
        )
    assert (more >= reached - 1e-6).all() and (margin_loss(model(longer), y) > 0).eq(
        margin_loss(model(point), y) > 0
    ).all()


@pytest.mark.parametrize(
    "settings,step,factor",
    [
        (AttackSettings(steps=10), 0, 1.0),
        (AttackSettings(steps=10), 5, 0.3),
        (AttackSettings(steps=10), 8, 0.09),
        (AttackSettings(steps=10, decays=()), 9, 1.0),
    ],
    ids=["start", "half", "late", "none"],
)
def test_decays(settings, step, factor):
    assert settings.decay(step) == pytest.approx(factor)


def test_margin_loss_by_hand():
    logits = torch.tensor([[1.0, 3.0, 2.0], [1.0, 3.0, 2.0]])
    assert margin_loss(logits, torch.tensor([0, 1])).tolist() == [2.0, -1.0]
