"""Interruptions of a run, NaNs, and what is refused before it begins."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from torch import nn

from lirpa_multinorm.errors import InvalidArgumentError, NaNBoundError, OutputFolderError
from lirpa_multinorm.training import ModelSpec, load_checkpoint, train
from lirpa_multinorm.training.step import TrainingStep
from tests.toy import CONFIG, SETS, SPEC, data
from tests.training.loops import contents, log_of, run, same


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
    loaded = load_checkpoint(tmp_path / "checkpoint.pt")
    assert loaded.epoch == 1 and len(log_of(tmp_path)) == 1
    assert same(loaded.model, run(epochs=1))


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
    loaded = load_checkpoint(tmp_path / "checkpoint.pt")
    assert loaded.epoch == after // 2
    assert all(torch.isfinite(value).all() for value in loaded.model.state_dict().values())


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
