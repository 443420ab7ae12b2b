"""The trainer: seeded, logged, and safe to interrupt at any moment."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lirpa_multinorm import BoundedModule, MultiNormLoss, certify
from lirpa_multinorm.errors import InvalidArgumentError, NaNBoundError, OutputFolderError
from lirpa_multinorm.losses import LOSSES, build_loss
from lirpa_multinorm.training import ModelSpec, Schedule, load_checkpoint, train
from lirpa_multinorm.training.partial import EpochLog
from lirpa_multinorm.training.step import TrainingStep
from tests.toy import CONFIG, SETS, SPEC, data


def run(output=None, images=None, sets=SETS, spec=SPEC, overwrite=False, **changes):
    config = dataclasses.replace(CONFIG, **changes)
    return train(
        spec,
        data() if images is None else images,
        sets,
        config,
        output,
        progress=False,
        overwrite=overwrite,
    )


def log_of(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def same(first, second):
    one, other = first.state_dict(), second.state_dict()
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


# --- what a run does ------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", LOSSES)
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
    found = certify(model, images.x_test, images.y_test, SETS).summary()
    assert found["certified_union"] > 0.8 > fresh["certified_union"]
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
    found = json.loads((tmp_path / "config.json").read_text())
    assert found["train"]["learning_rate"] == 0.01 and found["model"]["options"] == {"hidden": [8]}
    assert (found["data"], found["n_train"]) == ("toy", 40)
    assert [one["eps"] for one in found["perturbations"]] == [0.05, 0.1]
    assert found["environment"]["torch"] == torch.__version__ and found["processes"] == 1
    assert len(found["data_sha256"]) == 64 and found["initial_sha256"] is None


def test_no_output_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(epochs=1)
    assert not list(tmp_path.iterdir())


def test_the_checkpoint_is_the_returned_network(tmp_path):
    model = run(tmp_path)
    found = load_checkpoint(tmp_path / "checkpoint.pt")
    assert same(model, found.model) and found.epoch == 3


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
    for one, other in zip(model.parameters(), twin.parameters()):
        assert torch.allclose(one.grad, other.grad, atol=1e-6)
        assert torch.allclose(one, other - 0.01 * other.grad / (other.grad.abs() + 1e-8), atol=1e-5)


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
    found = []
    for epoch in range(4):
        step.start_epoch(epoch)
        found.append(step.optimizer.param_groups[0]["lr"] / 0.01)
    assert found == pytest.approx(rates)


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


# --- interruptions and errors ---------------------------------------------------------------------


class Stop:
    """Replaces the training step: acts normally for some steps, then raises."""

    def __init__(self, monkeypatch, after, error):
        original, self.calls = TrainingStep.__call__, 0

        def stepped(step, *args):
            self.calls += 1
            if self.calls > after:
                raise error
            return original(step, *args)

        monkeypatch.setattr(TrainingStep, "__call__", stepped)


def test_interruption_within_an_epoch_keeps_the_last_whole_one(tmp_path, monkeypatch):
    Stop(monkeypatch, after=3, error=KeyboardInterrupt())  # two steps per epoch
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    monkeypatch.undo()
    found = load_checkpoint(tmp_path / "checkpoint.pt")
    assert found.epoch == 1 and len(log_of(tmp_path)) == 1
    assert same(found.model, run(epochs=1))


def test_interruption_in_the_first_epoch_leaves_no_checkpoint(tmp_path, monkeypatch):
    Stop(monkeypatch, after=1, error=KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".run.lock", "config.json"]


def poison(monkeypatch, after):
    """From some step on the network's outputs are NaN."""
    original, calls = TrainingStep.__call__, []

    def stepped(step, *args):
        calls.append(1)
        if len(calls) > after:
            nn.init.constant_(step.model[-1].bias, math.nan)
        return original(step, *args)

    monkeypatch.setattr(TrainingStep, "__call__", stepped)


@pytest.mark.parametrize("after", [3, 5], ids=["second_epoch", "third_epoch"])
def test_nan_stops_and_keeps_the_checkpoint(tmp_path, monkeypatch, after):
    poison(monkeypatch, after)
    with pytest.raises(NaNBoundError) as caught:
        run(tmp_path)
    for words in (
        f"step {after + 1} (epoch {after // 2 + 1})",
        "weights of 3 (3.bias)",
        "learning_rate",
        f"{tmp_path / 'checkpoint.pt'}' (epoch {after // 2})",
    ):
        assert words in str(caught.value)
    found = load_checkpoint(tmp_path / "checkpoint.pt")
    assert found.epoch == after // 2
    assert all(torch.isfinite(value).all() for value in found.model.state_dict().values())


def test_weights_broken_by_the_last_update_are_not_saved(tmp_path, monkeypatch):
    """No loss of the epoch sees them any more, and they must not be saved."""
    original = TrainingStep.__call__

    def stepped(step, *args):
        values = original(step, *args)
        nn.init.constant_(step.model[-1].bias, math.inf)
        return values

    monkeypatch.setattr(TrainingStep, "__call__", stepped)
    with pytest.raises(
        NaNBoundError, match=r"step 1 \(epoch 1\).*3.bias are NaN or infinite.*learning_rate"
    ):
        run(tmp_path, images=data(16), epochs=1)  # a single step
    assert not (tmp_path / "checkpoint.pt").exists()


def test_an_unwritable_folder_is_found_before_training(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    stop = Stop(monkeypatch, after=0, error=AssertionError("training has started"))
    with pytest.raises(OutputFolderError, match="cannot write to the folder"):
        run(tmp_path / "file" / "run")
    assert stop.calls == 0


def test_a_batch_larger_than_the_data_is_refused_and_old_files_stay(tmp_path):
    run(tmp_path, epochs=1)
    before = contents(tmp_path)
    with pytest.raises(
        InvalidArgumentError, match="batch_size=41 is larger than the 40 training images"
    ):
        run(tmp_path, batch_size=41, overwrite=True)
    assert contents(tmp_path) == before


def test_a_batch_as_large_as_the_data_works(tmp_path):
    run(tmp_path, batch_size=40, epochs=2)
    assert len(log_of(tmp_path)) == 2


def test_wrong_losses_are_found_before_training(tmp_path):
    with pytest.raises(InvalidArgumentError, match="'maxx' is unknown"):
        run(tmp_path, loss="maxx")
    with pytest.raises(InvalidArgumentError, match="no set of norm 2"):
        run(tmp_path, loss="cure_l2", sets=SETS[:1])


WRONG_DATA = {
    "images": (
        lambda: dataclasses.replace(data(), x_test=torch.rand(12, 1, 5, 5)),
        {},
        r"images \(1, 5, 5\); the ",
    ),
    "classes": (
        lambda: dataclasses.replace(data(), num_classes=4),
        {},
        "4 classes; the network has 3 outputs",
    ),
    "larger": (
        lambda: dataclasses.replace(data(), x_train=torch.rand(40, 1, 6, 6)),
        {},
        "choose another augmentation",
    ),
    "crops": (data, {"augment": "tinyimagenet"}, r"\(1, 56, 56\) do not fit"),
}


@pytest.mark.parametrize("make, changes, words", WRONG_DATA.values(), ids=WRONG_DATA)
def test_data_that_do_not_fit_the_network_are_refused_before_training(
    make, changes, words, tmp_path
):
    with pytest.raises(InvalidArgumentError, match=words):
        run(tmp_path / "run", images=make(), **changes)
    assert not (tmp_path / "run").exists()


def test_random_crops_train_a_network_for_smaller_images():
    """As on TinyImageNet: BatchNorm statistics are those of the middles."""
    images = dataclasses.replace(
        data(16), x_train=torch.rand(16, 1, 64, 64), x_test=torch.rand(12, 1, 56, 56)
    )
    spec = ModelSpec("cnn3", (1, 56, 56), 3, options={"width": 2})
    model = run(images=images, spec=spec, augment="tinyimagenet", precise_bn=True, epochs=1)
    assert torch.allclose(
        model[1].running_mean, model[0](images.x_train[:, :, 4:60, 4:60]).mean((0, 2, 3)), atol=1e-5
    )


def test_numpy_settings_leave_a_checkpoint_that_can_be_read(tmp_path):
    config = dataclasses.replace(
        CONFIG, learning_rate=np.logspace(-4, -2, 3)[1], decay=np.float32(0.5), milestones=(1,)
    )
    train(SPEC, data(), SETS, config, tmp_path, progress=False)
    assert load_checkpoint(tmp_path / "checkpoint.pt").config.learning_rate == pytest.approx(1e-3)


def test_the_log_of_natural_training_says_what_was_trained(tmp_path):
    train(SPEC, data(), SETS, dataclasses.replace(CONFIG, loss="natural"), tmp_path, progress=False)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert {(line["eps_scale"], line["kappa"]) for line in lines} == {(0, 1)}
