"""A run is not resumed with other settings, or from what is damaged."""

import dataclasses

import pytest
import torch

import lirpa_multinorm.training.run as run_module
from lirpa_multinorm import PerturbationL2Box, PerturbationLinf
from lirpa_multinorm.errors import CheckpointError, OutputFolderError
from lirpa_multinorm.training import Projection
from tests.toy import data
from tests.training.interruptions import Killed, counted, interrupt, kill_here
from tests.training.runs import CONFIG, OPTIONS, SPEC, STEPS, run, same

pytestmark = pytest.mark.usefixtures("plain_logs")


def other_label():
    images = data(8 * STEPS + 2)
    y = images.y_train.clone()
    y[3] = (y[3] + 1) % 3
    return dataclasses.replace(images, y_train=y)


def other_pixel():
    images = data(8 * STEPS + 2)
    x = images.x_train.clone()
    x[3, 0, 0, 0] += 1 / 255
    return dataclasses.replace(images, x_train=x)


CHANGES = {
    "learning_rate": ({"learning_rate": 0.02}, ["train.learning_rate: 0.01 -> 0.02"]),
    "more_epochs": ({"epochs": 6}, ["train.epochs: 5 -> 6"]),
    "seed": ({"seed": 1}, ["train.seed: 0 -> 1"]),
    "loss": (
        {"loss": "max", "loss_options": OPTIONS},
        ["train.loss: 'cure' -> 'max'", "train.loss_options.eta: 0.5 -> None"],
    ),
    "loss_option": (
        {"loss_options": {**CONFIG.loss_options, "ratio_2": 0.25}},
        ["train.loss_options.ratio_2: 0.5 -> 0.25"],
    ),
    "beta": ({"projection": Projection(0.75)}, ["train.projection.beta: 0.5 -> 0.75"]),
    "no_projection": ({"projection": None}, ["train.projection: {'beta': 0.5", "-> None"]),
    "two": (
        {"l1": 0.0, "milestones": (3, 4)},
        ["train.l1: 0.0001 -> 0.0", "train.milestones: [4] -> [3, 4]"],
    ),
    "model": (
        {"spec": dataclasses.replace(SPEC, options={"width": 3})},
        ["model.options.width: 2 -> 3"],
    ),
    "radius": (
        {"sets": [PerturbationLinf(0.05), PerturbationL2Box(0.2)]},
        ["perturbations", "0.1", "0.2"],
    ),
    "label": ({"images": other_label()}, ["data_sha256"]),
    "pixel": ({"images": other_pixel()}, ["data_sha256"]),
    "number_of_images": ({"images": data(8 * STEPS)}, [f"n_train: {8 * STEPS + 2} -> {8 * STEPS}"]),
}


@pytest.fixture(scope="module")
def half_done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("half_done")
    with pytest.MonkeyPatch.context() as patch:
        interrupt(folder, patch, "between_log_and_checkpoint")
    return folder


@pytest.mark.parametrize("changes, words", CHANGES.values(), ids=CHANGES)
def test_other_settings_are_named_and_nothing_is_touched(changes, words, half_done):
    before = {path.name: path.read_bytes() for path in half_done.iterdir() if path.is_file()}
    with pytest.raises(OutputFolderError, match="resume: the run in") as caught:
        run(half_done, resume=True, **changes)
    assert all(word in str(caught.value) for word in words) and str(half_done) in str(caught.value)
    assert {
        path.name: path.read_bytes() for path in half_done.iterdir() if path.is_file()
    } == before


def test_only_the_settings_that_differ_are_named(half_done):
    with pytest.raises(OutputFolderError) as caught:
        run(half_done, resume=True, learning_rate=0.02, l1=0.5)
    assert str(caught.value).count("->") == 2


def test_other_initial_weights_are_another_run(tmp_path, monkeypatch):
    for seed in (0, 1):
        torch.manual_seed(seed)
        torch.save(SPEC.build().state_dict(), tmp_path / f"{seed}.pt")
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "save_checkpoint", run_module.save_checkpoint)
        counted(run_module, "save_checkpoint", 1, kill_here)
        with pytest.raises(Killed):
            run(folder, initial=tmp_path / "0.pt")
    for initial in (tmp_path / "1.pt", None):
        with pytest.raises(OutputFolderError, match="initial_sha256: "):
            run(folder, resume=True, initial=initial)
    expected = run(initial=tmp_path / "0.pt")
    (tmp_path / "0.pt").rename(tmp_path / "moved.pt")  # the content counts, not the name
    assert same(run(folder, resume=True, initial=tmp_path / "moved.pt"), expected)


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-100],
        lambda content: content[:100],
        lambda _: b"",
        lambda content: b"x" * len(content),
    ],
    ids=["tail", "head", "empty", "garbage"],
)
def test_a_damaged_checkpoint_is_refused(damage, half_done, tmp_path):
    content = (half_done / "checkpoint.pt").read_bytes()
    (tmp_path / "checkpoint.pt").write_bytes(damage(content))
    with pytest.raises(CheckpointError, match="cannot be read.*Train again"):
        run(tmp_path, resume=True)


def test_a_checkpoint_without_its_state_is_refused(half_done, tmp_path):
    content = torch.load(half_done / "checkpoint.pt", weights_only=True)
    torch.save(dict(content, state=None), tmp_path / "checkpoint.pt")
    with pytest.raises(CheckpointError, match="no state to resume from"):
        run(tmp_path, resume=True)
