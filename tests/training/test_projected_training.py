"""Gradient projection in training, against a replay with two networks and two optimisers."""

import copy
import dataclasses

import pytest
import torch
import torch.nn.functional as F

import lirpa_multinorm.training.loop as loop_module
from lirpa_multinorm import BoundedModule
from lirpa_multinorm.data import batches
from lirpa_multinorm.losses import build_loss
from lirpa_multinorm.training import Projection, Schedule
from lirpa_multinorm.training.step import TrainingStep
from lirpa_multinorm.utils.distributed import SharedGenerator
from tests.toy import SETS, data
from tests.training import runs
from tests.training.runs import STEPS, log_of, run, same

PLAIN = {
    "l1": 0.0,
    "regularizer": 0.0,
    "clip_norm": None,
    "average_from": None,
    "precise_bn": False,
    "augment": "none",
    "initialization": "default",
    "schedule": Schedule(1, 1),
    "milestones": (3,),
}


def merged(start, natural, certified, beta, statistics, parameters):
    """Equations 5 to 8 of the paper, tensor by tensor, in plain arithmetic."""
    result = {}
    for name, theta in start.items():
        counted = statistics == "mixed" and theta.is_floating_point() and theta.ndim > 0
        if name not in parameters and not counted:
            result[name] = certified[name]
            continue
        g_n, g_c = natural[name] - theta, certified[name] - theta
        lengths = g_n.norm() * g_c.norm()
        cosine = max(0.0, float((g_n * g_c).sum() / lengths)) if lengths > 0 else 0.0
        result[name] = theta + beta * cosine * g_n + (1 - beta) * g_c
    return result


def replay(config, images):
    """Train with a certified and a natural network of their own.

    Only the losses are the package's.
    """
    torch.manual_seed(config.seed)
    certified = runs.SPEC.build()
    natural = copy.deepcopy(certified)
    wholes = {item: BoundedModule(item, perturbations=SETS) for item in (certified, natural)}
    optimizers = {
        item: torch.optim.Adam(item.parameters(), lr=config.learning_rate)
        for item in (certified, natural)
    }
    loss = build_loss(config.loss, SETS, **config.loss_options)
    order, starts = torch.Generator().manual_seed(config.seed), SharedGenerator(config.seed + 1)
    projection, rates = config.projection, []
    for epoch in range(config.epochs):
        for optimizer in optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * (
                    config.decay if epoch >= config.milestones[0] else 1
                )
        start = copy.deepcopy(certified.state_dict())
        moments = copy.deepcopy(optimizers[certified].state_dict())
        certified.train(), natural.train()
        loaded = batches(
            images.x_train, images.y_train, config.batch_size, generator=order, drop_last=True
        )
        for index, (x, y) in enumerate(loaded):
            now = epoch + index / STEPS
            value = F.cross_entropy(wholes[certified](x), y)
            if epoch >= 1:
                value = loss(
                    wholes[certified],
                    x,
                    y,
                    eps_scale=config.schedule.eps_scale(now),
                    generator=starts,
                ).value
            optimizers[certified].zero_grad()
            value.backward()
            optimizers[certified].step()
        if epoch < 2:  # the radius has not reached its full size before
            continue
        natural.load_state_dict(start)
        if projection.optimizer == "copy":
            optimizers[natural].load_state_dict(moments)
        natural.zero_grad()
        for x, y in batches(
            images.x_train, images.y_train, config.batch_size, generator=order, drop_last=True
        ):
            if not projection.accumulate:
                natural.zero_grad()
            F.cross_entropy(wholes[natural](x), y).backward()
            optimizers[natural].step()
        rates.append(optimizers[natural].param_groups[0]["lr"])
        certified.load_state_dict(
            merged(
                start,
                natural.state_dict(),
                copy.deepcopy(certified.state_dict()),
                projection.beta,
                projection.statistics,
                dict(certified.named_parameters()),
            )
        )
    return certified, rates


CASES = {
    "paper": Projection(0.5),
    "share": Projection(0.2),
    "mixed": Projection(0.5, "mixed"),
    "copy": Projection(0.5, optimizer="copy"),
    "accumulate": Projection(0.5, accumulate=True),
    "released": Projection(0.8, "mixed", "copy", True),
}


@pytest.fixture
def doubles():
    """Adam takes a full step on an all-rounding gradient, such as a bias's before BatchNorm."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("projection", CASES.values(), ids=CASES)
def test_the_loop_does_what_a_replay_does(projection, monkeypatch, doubles):
    rates, original = [], TrainingStep.start_natural

    def watched(step, *args):
        rates.append(step.natural_optimizer.param_groups[0]["lr"])
        return original(step, *args)

    monkeypatch.setattr(TrainingStep, "start_natural", watched)
    images = data(8 * STEPS + 2)
    images = dataclasses.replace(images, x_train=images.x_train.double())
    model = run(images=images, projection=projection, **PLAIN)
    config = dataclasses.replace(runs.CONFIG, projection=projection, **PLAIN)
    expected, expected_rates = replay(config, images)
    for name, value in expected.state_dict().items():
        assert torch.allclose(model.state_dict()[name], value, atol=1e-9), name
    assert len(rates) == 3 and rates == pytest.approx([0.01, 0.002, 0.002])
    assert expected_rates == pytest.approx([0.01, 0.002, 0.002])


def test_the_variants_differ():
    models = [run(projection=projection, **PLAIN) for projection in CASES.values()]
    assert not any(same(item, other) for i, item in enumerate(models) for other in models[:i])


@pytest.mark.parametrize(
    "schedule, first",
    [(Schedule(1, 1), 3), (Schedule(0, 0), 1), (Schedule(1, 1.5), 4), (Schedule(0, 2), 3)],
    ids=["usual", "at_once", "within", "no_warm_up"],
)
def test_projection_starts_after_annealing(schedule, first, tmp_path):
    run(tmp_path, **dict(PLAIN, schedule=schedule))
    lines = log_of(tmp_path)
    assert [line["epoch"] for line in lines if "projection_natural_loss" in line] == list(
        range(first, 6)
    )
    assert all(
        0 < line["projection_seconds"] <= line["seconds"] + 0.001
        for line in lines
        if line["epoch"] >= first
    )
    assert not any("projection_seconds" in line for line in lines if line["epoch"] < first)


def test_beta_0_is_certified_training_on_other_batches(monkeypatch):
    """The natural epoch draws an order of its own; but for that it leaves no trace."""
    images = data(8 * STEPS + 2)
    loaded = run(images=images, projection=Projection(0.0), **PLAIN)
    original = loop_module.Training.certified_epoch

    def drawing(item, bar):
        line = original(item, bar)
        if item.done >= 2:
            torch.randperm(len(images.x_train), generator=item.step.order)
        return line

    monkeypatch.setattr(loop_module.Training, "certified_epoch", drawing)
    assert same(loaded, run(images=images, projection=None, **PLAIN))


def test_the_certified_optimiser_does_not_see_the_natural_epoch(monkeypatch):
    states, original = [], TrainingStep.natural_step

    def watched(step, *args):
        before = copy.deepcopy(step.optimizer.state_dict())
        values = original(step, *args)
        after = step.optimizer.state_dict()
        states.append(
            all(
                torch.equal(before["state"][i][key], after["state"][i][key])
                for i in before["state"]
                for key in ("step", "exp_avg", "exp_avg_sq")
            )
        )
        return values

    def left(step):
        end(step)
        assert all(
            p.grad is None for p in step.model.parameters()
        )  # nothing is left for the next certified step

    end = TrainingStep.end_natural
    monkeypatch.setattr(TrainingStep, "natural_step", watched)
    monkeypatch.setattr(TrainingStep, "end_natural", left)
    run(projection=Projection(0.5, accumulate=True), **PLAIN)
    assert states == [True] * 3 * STEPS


def test_natural_training_has_nothing_to_project(tmp_path):
    """With the natural loss a second natural epoch would be a waste."""
    changes = {**PLAIN, "loss": "natural", "loss_options": {}}
    assert same(run(tmp_path, **changes), run(projection=None, **changes))
    assert not any("projection_seconds" in line for line in log_of(tmp_path))
