"""A run that becomes NaN says where and when, and leaves weights and checkpoint as they were."""

import dataclasses
import json
import math

import pytest
import torch
from torch import nn

from lirpa_multinorm.errors import InvalidArgumentError, NaNBoundError
from lirpa_multinorm.losses import LossTerm
from lirpa_multinorm.training import ModelSpec, Projection, Schedule, load_checkpoint, loop, train
from lirpa_multinorm.training.step import TrainingStep
from tests.toy import CONFIG, SETS, SPEC, data

BATCH_NORM = ModelSpec("cnn3", (1, 4, 4), 3, options={"width": 2})
STEPS = 2  # per epoch


def run(output, spec=SPEC, images=None, **changes):
    config = dataclasses.replace(CONFIG, schedule=Schedule(1, 0), **changes)
    return train(spec, data() if images is None else images, SETS, config, output, progress=False)


# --- poisons: each breaks something just before a step --------------------------------------------


def weights(step, x):
    nn.init.constant_(step.model[-1].weight, math.nan)
    return x


def infinite_weights(step, x):
    nn.init.constant_(step.model[-1].bias, math.inf)
    return x


def inputs(step, x):
    x = x.clone()
    x[1, 0, 2, 2] = math.nan
    return x


def gradient(step, x):
    step.model[-1].weight.register_hook(lambda loaded: loaded * math.nan)
    return x


def bounds(step, x):
    step.bounded(x)  # traced
    for node in step.bounded.children():
        if type(node).__name__ == "BoundRelu":
            node.interval_propagate = lambda ends: (ends[0] * math.nan, ends[1])
    return x


def overflow(step, x):
    with torch.no_grad():
        step.model[1].weight.fill_(3e38)
        step.model[1].bias.zero_()
    return x


POISONS = {
    weights: r"the weights of 3 \(3.weight\) are NaN or infinite",
    infinite_weights: r"the weights of 3 \(3.bias\) are NaN or infinite",
    inputs: "the inputs are NaN or infinite",
    gradient: r"the gradient of layer 3 \(3.weight\) is NaN or infinite",
    bounds: "the bounds of node .* are NaN or infinite",
    overflow: "the output of layer 1 is NaN or infinite",
}


class Watched:
    """Poisons a step, and remembers the network's state as it was before."""

    def __init__(self, monkeypatch, poison, at):
        original, self.calls = TrainingStep.__call__, 0

        def stepped(step, x, y, now):
            self.calls += 1
            if self.calls == at:
                x = poison(step, x)
                self.model, self.before = (
                    step.model,
                    [p.detach().clone() for p in step.model.parameters()],
                )
            return original(step, x, y, now)

        monkeypatch.setattr(TrainingStep, "__call__", stepped)

    def unchanged(self):
        return all(
            torch.equal(item.nan_to_num(), other.nan_to_num())
            for item, other in zip(self.model.parameters(), self.before)
        )


CASES = [
    (poison, at, loss)
    for poison in POISONS
    for at in (1, 4)
    for loss in ("natural", "max")
    if poison is not bounds or (at, loss) == (4, "max")
]  # there are no bounds before


@pytest.mark.parametrize(
    "poison, at, loss", CASES, ids=[f"{item.__name__}-{at}-{loss}" for item, at, loss in CASES]
)
def test_a_poisoned_step_is_named_with_its_layer(poison, at, loss, tmp_path, monkeypatch):
    watched = Watched(monkeypatch, poison, at)
    with pytest.raises(NaNBoundError, match=POISONS[poison]) as caught:
        run(tmp_path, loss=loss)
    monkeypatch.undo()
    message, epoch = str(caught.value), (at - 1) // STEPS
    assert f"diverged in step {at} (epoch {epoch + 1})" in message
    assert ("Lower learning_rate" in message) == (poison is not inputs)
    assert watched.calls == at and watched.unchanged()
    if epoch == 0:
        assert "no checkpoint was written" in message and not (tmp_path / "checkpoint.pt").exists()
        return
    assert f"the last good checkpoint is '{tmp_path / 'checkpoint.pt'}' (epoch {epoch})" in message
    loaded = load_checkpoint(tmp_path / "checkpoint.pt")
    assert loaded.epoch == epoch and all(
        bool(torch.isfinite(p).all()) for p in loaded.model.state_dict().values()
    )


def test_the_set_is_named_and_the_last_finite_values(tmp_path, monkeypatch):
    """The term of l_2 alone breaks in step 4, of the second epoch."""
    original, calls = LossTerm.per_example, []

    def per_example(term, *args):
        calls.append(term)  # two terms in the check before the run and in each step
        loss = original(term, *args)
        return loss * math.nan if term.perturbation.norm == 2 and len(calls) > 4 else loss

    monkeypatch.setattr(LossTerm, "per_example", per_example)
    with pytest.raises(NaNBoundError) as caught:
        run(tmp_path, loss="joint")
    message, line = (
        str(caught.value),
        json.loads((tmp_path / "log.jsonl").read_text().splitlines()[0]),
    )
    assert (
        f"the loss is not finite for the set {SETS[1].title()}" in message
        and SETS[0].title() not in message
    )
    assert "step 4 (epoch 2)" in message and f"'{tmp_path / 'checkpoint.pt'}' (epoch 1)" in message
    values = dict(
        part.rsplit(" ", 1)
        for part in message.split("the step before had ")[1].split(";")[0].split(", ")
    )
    assert {"natural_loss", "robust_loss", "accuracy"} <= values.keys()
    assert all(math.isfinite(float(value)) for value in values.values()) and line["epoch"] == 1


def test_no_set_is_named_where_none_breaks(tmp_path, monkeypatch):
    Watched(monkeypatch, gradient, 4)
    with pytest.raises(NaNBoundError) as caught:
        run(tmp_path, loss="joint")
    assert "not finite for the set" not in str(caught.value)


@pytest.mark.parametrize("spec", [SPEC, BATCH_NORM], ids=["plain", "batch_norm"])
def test_a_broken_image_is_called_one(spec, tmp_path, monkeypatch):
    """Also where BatchNorm's statistics have become NaN of it first.

    A smaller learning rate would not help.
    """
    images = data(40)
    images.x_train[[3, 17], 0, 1, 1] = math.nan
    with pytest.raises(InvalidArgumentError, match="NaN.*2 of 40 images, the first at index 3"):
        run(tmp_path, spec=spec, images=images, loss="max", epochs=2)
    monkeypatch.setattr(
        loop, "check_run", lambda spec, images, *args: images
    )  # they become NaN later
    with pytest.raises(NaNBoundError) as caught:
        run(tmp_path, spec=spec, images=images, loss="max", epochs=2)
    assert "pixels of 2 training images are NaN or infinite (x_train[3] is the first)" in str(
        caught.value
    )
    assert "learning_rate" not in str(caught.value)


@pytest.mark.parametrize("poison", [weights, inputs], ids=lambda item: item.__name__)
def test_regularisers_in_the_warm_up_explain_themselves_too(poison, tmp_path, monkeypatch):
    Watched(monkeypatch, poison, 2)
    with pytest.raises(NaNBoundError, match=rf"step 2 \(epoch 1\): .*{POISONS[poison]}"):
        run(tmp_path, loss="max", regularizer=0.5)


def test_a_broken_image_of_the_training_set_is_found_before_training(tmp_path):
    images = data()
    images.x_train[7] = math.inf
    with pytest.raises(
        InvalidArgumentError, match="x_train: has NaN or infinite values in 1 of 40 .* index 7"
    ):
        run(tmp_path / "run", images=images)
    assert not (tmp_path / "run").exists()


def test_a_learning_rate_far_too_large_never_saves_broken_weights(tmp_path):
    with pytest.raises(NaNBoundError, match="NaN or infinite"):
        run(tmp_path, spec=BATCH_NORM, learning_rate=1e30, epochs=3)
    if (tmp_path / "checkpoint.pt").exists():
        state = load_checkpoint(tmp_path / "checkpoint.pt").model.state_dict()
        assert all(bool(torch.isfinite(value).all()) for value in state.values())


def test_a_run_goes_on_after_the_cause_is_gone(tmp_path, monkeypatch):
    expected = run(None, loss="joint").state_dict()
    Watched(monkeypatch, gradient, 4)
    with pytest.raises(NaNBoundError):
        run(tmp_path, loss="joint")
    monkeypatch.undo()
    config = dataclasses.replace(CONFIG, schedule=Schedule(1, 0), loss="joint")
    loaded = train(SPEC, data(), SETS, config, tmp_path, progress=False, resume=True).state_dict()
    assert all(torch.equal(loaded[name], expected[name]) for name in expected)


def test_the_natural_epoch_of_gradient_projection_is_named(tmp_path, monkeypatch):
    original = TrainingStep.update

    def update(step, loss, x, optimizer=None, clear=True):
        if optimizer is not None:
            loss = loss * math.nan
        return original(step, loss, x, *([] if optimizer is None else [optimizer, clear]))

    monkeypatch.setattr(TrainingStep, "update", update)
    with pytest.raises(NaNBoundError, match=r"\(epoch 2\): in the natural epoch: .*\(epoch 1\)"):
        run(tmp_path, projection=Projection(0.5))
    assert load_checkpoint(tmp_path / "checkpoint.pt").epoch == 1
