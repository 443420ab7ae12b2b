"""The trainer: seeded, logged, and safe to interrupt at any moment."""

import dataclasses
import json
import math

import pytest
import torch
import torch.nn.functional as F

from lirpa_multinorm import BoundedModule, MultiNormLoss, certify
from lirpa_multinorm.losses import LOSSES, build_loss
from lirpa_multinorm.training import ModelSpec, Schedule, load_checkpoint
from lirpa_multinorm.training.partial import EpochLog
from lirpa_multinorm.training.step import TrainingStep
from tests.toy import CONFIG, SETS, SPEC, data
from tests.training.loops import log_of, run, same

# --- what a run does ------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", [loss for loss in LOSSES if loss != "linf_dist"])
def test_two_runs_are_bit_identical(loss):
    spec = dataclasses.replace(
        SPEC, options={"hidden": [8, 8]}
    )  # TAPS needs a ReLU before and behind its cut
    first = run(loss=loss, spec=spec)
    torch.rand(5)  # other use of torch's own generator must not matter
    assert same(first, run(loss=loss, spec=spec))


def test_another_seed_gives_another_network():
    assert not same(run(), run(seed=1))


def test_training_makes_a_certifiable_network():
    images = data(60, 30)
    options = {"ratio_2": 0.5, "region_2": "ball"}
    model = run(images=images, loss="max", loss_options=options, epochs=25, schedule=Schedule(2, 8))
    fresh = certify(SPEC.build(), images.x_test, images.y_test, SETS).summary()
    loaded = certify(model, images.x_test, images.y_test, SETS).summary()
    assert loaded["certified_union"] > 0.8 > fresh["certified_union"]
    assert not model.training


def test_log_has_a_line_per_epoch(tmp_path):
    run(tmp_path, epochs=4, schedule=Schedule(1, 2), milestones=(2,), decay=0.1)
    lines = log_of(tmp_path)
    assert [line["epoch"] for line in lines] == [1, 2, 3, 4]
    assert [line["learning_rate"] for line in lines] == pytest.approx([0.01, 0.01, 0.001, 0.001])
    assert [line["eps_scale"] for line in lines] == pytest.approx([0, 0.384615, 1, 1], abs=1e-5)
    assert ["robust_loss" in line for line in lines] == [False, True, True, True]
    assert all(math.isfinite(line["natural_loss"]) and line["seconds"] >= 0 for line in lines)
    shares = ("accuracy", "region_proved_0", "region_proved_1")
    assert all(0 <= line[name] <= 1 for line in lines[1:] for name in shares)


def test_configuration_is_recorded(tmp_path):
    run(tmp_path, epochs=1)
    loaded = json.loads((tmp_path / "config.json").read_text())
    assert loaded["train"]["learning_rate"] == 0.01 and loaded["model"]["options"] == {
        "hidden": [8]
    }
    assert (loaded["data"], loaded["n_train"]) == ("toy", 40)
    assert [entry["eps"] for entry in loaded["perturbations"]] == [0.05, 0.1]
    assert loaded["environment"]["torch"] == torch.__version__ and loaded["processes"] == 1
    assert len(loaded["data_sha256"]) == 64 and loaded["initial_sha256"] is None


def test_no_output_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(epochs=1)
    assert not list(tmp_path.iterdir())


def test_the_checkpoint_is_the_returned_network(tmp_path):
    model = run(tmp_path)
    loaded = load_checkpoint(tmp_path / "checkpoint.pt")
    assert same(model, loaded.model) and loaded.epoch == 3


def test_images_of_bytes_train_like_floats():
    images = data()
    x = (images.x_train * 255).round()
    assert same(
        run(images=dataclasses.replace(images, x_train=x.byte())),
        run(images=dataclasses.replace(images, x_train=x / 255)),
    )


def test_batch_norm_statistics_move_once_per_step():
    spec = ModelSpec("cnn3", (1, 4, 4), 3, options={"width": 2})
    model = run(spec=spec, loss="max")
    counts = [
        int(value)
        for name, value in model.state_dict().items()
        if name.endswith("num_batches_tracked")
    ]
    assert counts == [6, 6]  # two whole batches of 16 in 40 images, three epochs


# --- one step, by hand ----------------------------------------------------------------------------


def step_for(model, **changes):
    config = dataclasses.replace(CONFIG, **changes)
    step = TrainingStep(model, build_loss(config.loss, SETS, **config.loss_options), SETS, config)
    step.start_epoch(0)
    return step


def test_a_step_minimises_kappa_natural_plus_robust_plus_l1():
    """Adam's first step is lr * g / (|g| + eps).

    Its gradient is worked out from the losses separately.
    """
    model, twin = SPEC.build(), SPEC.build()
    twin.load_state_dict(model.state_dict())
    images, schedule = data(), Schedule(0, 4, kappa_start=0.75, kappa_end=0.25)
    x, y = images.x_train[:16], images.y_train[:16]
    step = step_for(model, loss="ibp", schedule=schedule, l1=0.01)
    values = step(x, y, 2.0)  # half-way: kappa 0.5
    robust = build_loss("ibp", SETS)(
        BoundedModule(twin), x, y, eps_scale=schedule.eps_scale(2.0)
    ).value
    natural = F.cross_entropy(twin(x), y)
    total = 0.5 * natural + 0.5 * robust + 0.01 * sum(p.abs().sum() for p in twin.parameters())
    total.backward()
    assert (values["natural_loss"], values["robust_loss"]) == pytest.approx(
        (natural.item(), robust.item()), rel=1e-5
    )
    for entry, other in zip(model.parameters(), twin.parameters()):
        assert torch.allclose(entry.grad, other.grad, atol=1e-6)
        assert torch.allclose(
            entry, other - 0.01 * other.grad / (other.grad.abs() + 1e-8), atol=1e-5
        )


@pytest.mark.parametrize(
    "loss, now, called",
    [("natural", 5.0, False), ("joint", 0.5, False), ("joint", 1.0, True)],
    ids=["natural_loss", "natural_epoch", "robust_epoch"],
)
def test_no_bounds_are_computed_where_they_do_not_count(monkeypatch, loss, now, called):
    calls, original = [], MultiNormLoss.__call__
    monkeypatch.setattr(
        MultiNormLoss, "__call__", lambda *args, **kw: calls.append(1) or original(*args, **kw)
    )
    images = data()
    step_for(SPEC.build(), loss=loss)(images.x_train[:8], images.y_train[:8], now)
    assert bool(calls) == called


@pytest.mark.parametrize(
    "milestones, rates",
    [
        ((), [1, 1, 1, 1]),
        ((2,), [1, 1, 0.1, 0.1]),
        ((1, 3), [1, 0.1, 0.1, 0.01]),
        ((0,), [0.1] * 4),
    ],
    ids=str,
)
def test_learning_rate_falls_at_milestones(milestones, rates):
    step = step_for(SPEC.build(), milestones=milestones, decay=0.1)
    loaded = []
    for epoch in range(4):
        step.start_epoch(epoch)
        loaded.append(step.optimizer.param_groups[0]["lr"] / 0.01)
    assert loaded == pytest.approx(rates)


def test_epochs_see_whole_shuffled_batches_of_different_order():
    step, images = step_for(SPEC.build()), data()
    orders = []
    for _ in range(2):
        seen = [x for x, _ in step.batches(images)]
        assert [len(x) for x in seen] == [16, 16]
        orders.append(torch.cat(seen).flatten(1)[:, 0])
    assert not torch.equal(*orders)
    available = [x.item() for x in images.x_train[:, 0, 0, 0]]
    for order in orders:  # without replacement
        assert all(
            order.tolist().count(value) <= available.count(value) for value in order.tolist()
        )


def test_means_count_only_batches_that_have_the_value():
    log = EpochLog()
    log.add(3, {"natural_loss": torch.tensor(1.0)})
    log.add(1, {"natural_loss": torch.tensor(5.0), "robust_loss": torch.tensor(7.0)})
    assert log.means() == {"natural_loss": 2.0, "robust_loss": 7.0}
