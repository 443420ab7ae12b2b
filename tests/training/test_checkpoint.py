"""Checkpoints come back as they were, or not at all."""

import os

import numpy as np
import pytest
import torch

from lirpa_multinorm import PerturbationL2Box, PerturbationLinf
from lirpa_multinorm.errors import CheckpointError
from lirpa_multinorm.training import (
    ModelSpec,
    Schedule,
    TrainConfig,
    initial_weights,
    load_checkpoint,
    load_weights,
    save_checkpoint,
)
from lirpa_multinorm.utils.seal import is_sealed

SPEC = ModelSpec("cnn3", (1, 8, 8), 3, (0.3,), (0.5,), {"width": 2})
SETS = [PerturbationLinf(0.1), PerturbationL2Box(0.5, clip=None)]
CONFIG = TrainConfig(
    loss="joint",
    loss_options={"ratio_inf": 0.6},
    epochs=3,
    milestones=(1, 2),
    schedule=Schedule(2, 7),
)


def trained(dtype=torch.float32):
    """A network whose BatchNorm statistics are not the initial ones."""
    model = SPEC.build().to(dtype).train()
    model(torch.rand(4, 1, 8, 8, dtype=dtype))
    return model


def saved(path, model=None, epoch=3):
    save_checkpoint(path, trained() if model is None else model, SPEC, SETS, CONFIG, epoch)
    return path


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_everything_comes_back(tmp_path, dtype):
    model = trained(dtype)
    result = load_checkpoint(saved(tmp_path / "new" / "checkpoint.pt", model))
    assert (result.spec, result.config, result.epoch) == (SPEC, CONFIG, 3)
    assert [(item.norm, item.eps, item.clip) for item in result.perturbations] == [
        (float("inf"), 0.1, (0.0, 1.0)),
        (2, 0.5, None),
    ]
    ours, back = model.state_dict(), result.model.state_dict()
    assert list(ours) == list(back)
    for name in ours:
        assert ours[name].dtype == back[name].dtype and torch.equal(ours[name], back[name]), name
    x = torch.rand(3, 1, 8, 8, dtype=dtype)
    assert not result.model.training and torch.equal(result.model(x), model.eval()(x))


def test_settings_made_with_numpy_can_be_read(tmp_path):
    config = TrainConfig(
        loss_options={"ratio_inf": np.float64(0.5)},
        learning_rate=np.float32(0.25),
        seed=np.int64(3),
    )
    save_checkpoint(tmp_path / "c.pt", trained(), SPEC, SETS, config, 1)
    result = load_checkpoint(tmp_path / "c.pt").config
    assert (result.loss_options, result.learning_rate, result.seed) == ({"ratio_inf": 0.5}, 0.25, 3)


class Code:
    """Pickles to a call that would leave a file behind."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def damage_nothing(path):
    path.unlink()


def damage_truncated(path):
    path.write_bytes(path.read_bytes()[:-200])


def damage_half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def damage_empty(path):
    path.write_bytes(b"")


def damage_garbage(path):
    path.write_bytes(bytes(range(256)) * 10)


def damage_other_object(path):
    torch.save([1, 2], path)


def damage_format(path):
    torch.save(dict(torch.load(path, weights_only=True), format=99), path)


def damage_missing_key(path):
    content = torch.load(path, weights_only=True)
    del content["config"]
    torch.save(content, path)


def damage_settings(path):
    content = torch.load(path, weights_only=True)
    content["config"]["epochs"] = "many"
    torch.save(content, path)


def damage_folder(path):
    path.unlink()
    path.mkdir()


DAMAGE = {
    one.__name__[7:]: one
    for one in (
        damage_nothing,
        damage_truncated,
        damage_half,
        damage_empty,
        damage_garbage,
        damage_other_object,
        damage_format,
        damage_missing_key,
        damage_settings,
        damage_folder,
    )
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_file_is_refused_with_a_remedy(tmp_path, damage):
    path = saved(tmp_path / "checkpoint.pt")
    damage(path)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path)
    message = str(caught.value)
    assert str(path) in message and "Train again, or use an earlier file" in message


@pytest.mark.parametrize("share", [0.0, 1e-3, 0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99, 1.0])
@pytest.mark.parametrize("flip", [1, 128])
def test_one_flipped_byte_is_found(tmp_path, share, flip):
    path = saved(tmp_path / "checkpoint.pt")
    content = bytearray(path.read_bytes())
    content[int(share * (len(content) - 1))] ^= flip
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_checkpoint(path)
    with pytest.raises(CheckpointError, match="cannot be read"):
        initial_weights(path, trained())


def test_a_flipped_weight_is_told_from_another_file(tmp_path):
    """Without the check torch reads such a file without a word."""
    path = saved(tmp_path / "checkpoint.pt", model := trained())
    weight = model.state_dict()["1.weight"].numpy().tobytes()
    content = path.read_bytes()
    assert content.count(weight) == 1
    path.write_bytes(content.replace(weight, bytes([weight[0] ^ 1]) + weight[1:]))
    with pytest.raises(CheckpointError, match="SHA-256.*bytes were changed or lost"):
        load_checkpoint(path)


def test_a_checkpoint_of_an_older_version_still_loads(tmp_path):
    """It carries no SHA-256."""
    path = saved(tmp_path / "checkpoint.pt", model := trained())
    torch.save(torch.load(path, weights_only=True), tmp_path / "old.pt")
    assert is_sealed(path.read_bytes()) and not is_sealed((tmp_path / "old.pt").read_bytes())
    result = load_checkpoint(tmp_path / "old.pt")
    assert all(
        torch.equal(item, other)
        for item, other in zip(result.model.parameters(), model.parameters())
    )


PLAIN = {
    "bare": lambda state: state,
    "model": lambda state: {"model": state, "epoch": 3},
    "model_state_dict": lambda state: {"model_state_dict": state},
    "data_parallel": lambda state: {
        "net": {f"module.{name}": value for name, value in state.items()}
    },
}


@pytest.mark.parametrize("content", PLAIN.values(), ids=PLAIN)
def test_a_plain_state_dict_is_called_one(tmp_path, content):
    torch.save(content(trained().state_dict()), tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match="is a plain state dict.*save_checkpoint") as caught:
        load_checkpoint(tmp_path / "weights.pt")
    assert "damaged" not in str(caught.value) and str(tmp_path / "weights.pt") in str(caught.value)


def test_pickled_code_is_not_run(tmp_path):
    path, trace = saved(tmp_path / "checkpoint.pt"), tmp_path / "trace"
    torch.save(dict(torch.load(path, weights_only=True), epoch=Code(trace)), path)
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_checkpoint(path)
    assert not trace.exists()


@pytest.mark.parametrize(
    "options, words",
    [({"width": 3}, ["instead of"]), ({}, ["instead of", "and more"])],
    ids=["wider", "default_width"],
)
def test_weights_of_another_architecture_are_refused(tmp_path, options, words):
    path = saved(tmp_path / "checkpoint.pt")
    content = torch.load(path, weights_only=True)
    content["spec"]["options"] = options
    torch.save(content, path)
    with pytest.raises(CheckpointError, match="another architecture") as caught:
        load_checkpoint(path)
    assert all(word in str(caught.value) for word in words)


def test_missing_and_unknown_entries_are_named():
    state = trained().state_dict()
    state["surplus"] = state.pop("1.bias")
    with pytest.raises(CheckpointError, match=r"here.*1\.bias \(missing\).*surplus \(unknown\)"):
        load_weights(trained(), state, "here")


def test_a_refused_state_leaves_the_model_alone():
    model = trained()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = dict(trained().state_dict(), **{"1.weight": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"1\.weight \(1,\) instead of \(2, 1, 3, 3\)"):
        load_weights(model, state, "here")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("function", ["replace", "fsync"])
def test_a_crash_while_writing_leaves_the_old_file(tmp_path, monkeypatch, function):
    path = saved(tmp_path / "checkpoint.pt", epoch=1)
    before = path.read_bytes()

    def crash(*_):
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, function, crash)
        with pytest.raises(OSError, match="no space"):
            saved(path, epoch=2)
    assert path.read_bytes() == before and load_checkpoint(path).epoch == 1
    assert [item.name for item in tmp_path.iterdir()] == [
        "checkpoint.pt"
    ]  # nothing half-written is left


def test_writing_again_replaces_the_file(tmp_path):
    path = saved(tmp_path / "checkpoint.pt", epoch=1)
    assert load_checkpoint(saved(path, epoch=2)).epoch == 2
