"""A run killed at any moment goes on from its last whole epoch, to the same weights bit for bit."""

import contextlib
import dataclasses
import errno
import os
import signal
import subprocess
import sys

import pytest
import torch

import lirpa_multinorm.training.checkpoint as checkpoint_module
import lirpa_multinorm.training.loop as loop_module
import lirpa_multinorm.training.run as run_module
import lirpa_multinorm.training.run_folder as folder_module
import lirpa_multinorm.training.runlog as runlog_module
from lirpa_multinorm import PerturbationL2Box, PerturbationLinf
from lirpa_multinorm.errors import CheckpointError, OutputFolderError
from lirpa_multinorm.training import Projection, load_checkpoint
from lirpa_multinorm.training.step import TrainingStep
from lirpa_multinorm.utils.files import temporary_beside
from tests.toy import SETS, data
from tests.training.runs import CONFIG, OPTIONS, SPEC, STEPS, log_of, run, same


class Killed(BaseException):
    """What stands for SIGKILL within this process."""


@pytest.fixture(autouse=True)
def plain_logs(monkeypatch):
    """Drawing and TensorBoard, which have tests of their own, take most of a run's time."""
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    monkeypatch.setattr(
        runlog_module, "learning_curves", lambda lines, path, title: path.write_bytes(b"curves")
    )


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("uninterrupted")
    return run(folder), log_of(folder)


def assert_same_run(folder, model, uninterrupted):
    """Whether an interrupted run came to what the uninterrupted one did."""
    expected, lines = uninterrupted
    assert same(model, expected) and same(load_checkpoint(folder / "checkpoint.pt").model, expected)
    timeless = [
        [{name: value for name, value in line.items() if "seconds" not in name} for line in log]
        for log in (log_of(folder), lines)
    ]
    assert timeless[0] == timeless[1] and [line["epoch"] for line in lines] == [1, 2, 3, 4, 5]
    names = {path.name for path in folder.iterdir()} - {"tensorboard"}
    assert names == {".run.lock", "checkpoint.pt", "config.json", "curves.png", "log.jsonl"}


# --- moments at which a run is killed -------------------------------------------------------------


def counted(module, name, after, before=None, instead=None):
    """Wrap a function so that call ``after`` (from 0) does something else first, or instead."""
    original, calls = getattr(module, name), [0]

    def wrapped(*args, **kwargs):
        calls[0] += 1
        if calls[0] == after + 1:
            if instead is not None:
                return instead(original, *args, **kwargs)
            before()
        return original(*args, **kwargs)

    setattr(module, name, wrapped)


def half_written(kill):
    def write(original, path, content):
        temporary_beside(path).write_bytes(content[: len(content) // 2])
        kill()

    return write


def just_written(kill):
    def write(original, path, content):
        original(path, content)
        kill()

    return write


def half_a_line(kill):
    def append(original, path, line):
        with open(path, "a") as file:
            file.write('{"epoch": 9, "natural_lo')
        kill()

    return append


# Name -> (module, function, how many calls pass, what happens then)
MOMENTS = {
    "first_step": (TrainingStep, "__call__", 0, None),
    "within_an_annealing_epoch": (TrainingStep, "__call__", 4, None),
    "within_a_projected_certified_epoch": (TrainingStep, "__call__", 3 * STEPS + 1, None),
    "within_a_natural_epoch": (TrainingStep, "_update", 4 * STEPS + 2, None),
    "before_the_weights_are_merged": (loop_module, "merge_epochs", 1, None),
    "within_a_line_of_the_log": (runlog_module, "append_jsonl", 2, half_a_line),
    "between_log_and_checkpoint": (run_module, "save_checkpoint", 3, None),
    "within_the_first_checkpoint": (checkpoint_module, "write_bytes", 0, half_written),
    "within_a_checkpoint": (checkpoint_module, "write_bytes", 3, half_written),
    "after_a_checkpoint": (checkpoint_module, "write_bytes", 2, just_written),
    "within_the_last_checkpoint": (checkpoint_module, "write_bytes", 4, half_written),
    "after_the_last_checkpoint": (checkpoint_module, "write_bytes", 4, just_written),
}


def arm(moment, kill):
    module, name, after, make = MOMENTS[moment]
    counted(module, name, after, kill, None if make is None else make(kill))


def kill_here():
    raise Killed


def interrupt(folder, monkeypatch, moment):
    module, name, *_ = MOMENTS[moment]
    with monkeypatch.context() as patch:
        patch.setattr(module, name, getattr(module, name))  # undone afterwards
        # A killed process closes nothing.
        patch.setattr(loop_module._Run, "logging", lambda _: contextlib.nullcontext())
        arm(moment, kill_here)
        with pytest.raises(Killed):
            run(folder, resume=True)
    torch.rand(7)  # whatever happens in between must not matter


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_run_goes_on_bit_for_bit(moment, tmp_path, monkeypatch, uninterrupted):
    interrupt(tmp_path, monkeypatch, moment)
    assert_same_run(tmp_path, run(tmp_path, resume=True), uninterrupted)


def test_killed_many_times(tmp_path, monkeypatch, uninterrupted):
    """Each moment counts from the resumed start, so the run advances about an epoch at a time."""
    for moment in (
        "within_the_first_checkpoint",
        "within_an_annealing_epoch",
        "within_a_line_of_the_log",
        "within_the_first_checkpoint",
    ):
        interrupt(tmp_path, monkeypatch, moment)
    assert_same_run(tmp_path, run(tmp_path, resume=True), uninterrupted)


CHILD = """
import os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
import tests.training.test_resume as tests
tests.arm(sys.argv[2], lambda: os.kill(os.getpid(), signal.SIGKILL))
tests.run(Path(sys.argv[1]), resume=True)
"""


def test_sigkill_twice(tmp_path, uninterrupted):
    """Two processes, killed for good; a third one, which is this, ends the run."""
    for moment, epoch in (("within_a_checkpoint", 3), ("within_the_first_checkpoint", 3)):
        path = os.pathsep.join(sys.path)
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", CHILD, str(tmp_path), moment],
            text=True,
            capture_output=True,
            env=dict(os.environ, PYTHONPATH=path, OMP_NUM_THREADS="1"),
        )
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert load_checkpoint(tmp_path / "checkpoint.pt").epoch == epoch
        assert len(list(tmp_path.glob(".checkpoint.pt.*.tmp"))) == 1
    assert_same_run(tmp_path, run(tmp_path, resume=True), uninterrupted)


# --- what resuming does without a whole run behind it ---------------------------------------------


def test_an_empty_folder_starts_anew(tmp_path, uninterrupted):
    assert_same_run(tmp_path / "new", run(tmp_path / "new", resume=True), uninterrupted)


def test_a_finished_run_does_no_work(tmp_path, monkeypatch, uninterrupted):
    run(tmp_path)
    monkeypatch.setattr(TrainingStep, "__call__", lambda *_: pytest.fail("training goes on"))
    before = (tmp_path / "checkpoint.pt").read_bytes()
    for _ in range(2):
        assert_same_run(tmp_path, run(tmp_path, resume=True), uninterrupted)
    assert (tmp_path / "checkpoint.pt").read_bytes() == before


# --- other settings -------------------------------------------------------------------------------


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


# --- a full disk ----------------------------------------------------------------------------------


def disk_full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_full_disk_while_saving_leaves_the_last_checkpoint(
    function, tmp_path, monkeypatch, uninterrupted
):
    original = checkpoint_module.write_bytes

    def write(*args):
        if write.calls == 2:
            monkeypatch.setattr(os, function, disk_full)
        write.calls += 1
        return original(*args)

    write.calls = 0
    monkeypatch.setattr(checkpoint_module, "write_bytes", write)
    with pytest.raises(
        OutputFolderError, match="checkpoint.*No space left.*the previous one is intact"
    ):
        run(tmp_path)
    monkeypatch.undo()
    assert load_checkpoint(tmp_path / "checkpoint.pt").epoch == 2 and not list(
        tmp_path.glob(".*.tmp")
    )
    assert_same_run(tmp_path, run(tmp_path, resume=True), uninterrupted)


@pytest.mark.parametrize("place", ["config.json", "log.jsonl", "curves.png"])
def test_a_full_disk_elsewhere_is_the_same_error(place, tmp_path, monkeypatch, uninterrupted):
    module, name = {
        "config.json": (folder_module, "write_json"),
        "log.jsonl": (runlog_module, "append_jsonl"),
        "curves.png": (runlog_module, "learning_curves"),
    }[place]
    monkeypatch.setattr(module, name, disk_full)
    with pytest.raises(OutputFolderError, match=f"{place}.*No space left"):
        run(tmp_path)
    monkeypatch.undo()
    assert_same_run(tmp_path, run(tmp_path, resume=True), uninterrupted)


def test_the_first_of_two_errors_is_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint_module, "write_bytes", disk_full)
    monkeypatch.setattr(runlog_module, "learning_curves", disk_full)
    with pytest.raises(OutputFolderError, match="the checkpoint"):
        run(tmp_path)


def test_the_run_is_what_it_says_it_is():
    """The settings of these tests use everything that a run must remember."""
    default = type(CONFIG)()
    used = {
        one.name
        for one in dataclasses.fields(CONFIG)
        if getattr(CONFIG, one.name) != getattr(default, one.name)
    }
    assert {
        "projection",
        "average_from",
        "precise_bn",
        "augment",
        "regularizer",
        "clip_norm",
    } <= used
    assert SETS[0].norm != SETS[1].norm


def test_the_lipschitz_branch_goes_on_bit_for_bit(tmp_path, monkeypatch):
    """Its vectors are part of the checkpoint."""
    changes = {"loss": "joint", "loss_options": {"region_2": "lipschitz", "attack": {"steps": 1}}}
    expected = run(tmp_path / "whole", **changes)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(
            run_module, "save_checkpoint", run_module.save_checkpoint
        )  # undone afterwards
        counted(run_module, "save_checkpoint", 3, kill_here)
        run(tmp_path / "killed", **changes)
    state = torch.load(tmp_path / "killed" / "checkpoint.pt", weights_only=True)["state"]["step"]
    assert state["lipschitz"] and all(
        bool(torch.isfinite(vectors).all()) for vectors in state["lipschitz"].values()
    )
    assert same(run(tmp_path / "killed", resume=True, **changes), expected)


@pytest.mark.parametrize("loss, options", [("staps", {"bounding_2": "TAPS"}), ("crown_ibp", {})])
def test_latent_attacks_and_shares_go_on_bit_for_bit(loss, options, tmp_path, monkeypatch):
    """The starts of TAPS come from the generator of the other attacks."""
    changes = {"loss": loss, "loss_options": {"attack": {"steps": 1}, **options}}
    expected = run(tmp_path / "whole", **changes)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(
            run_module, "save_checkpoint", run_module.save_checkpoint
        )  # undone afterwards
        counted(run_module, "save_checkpoint", 3, kill_here)
        run(tmp_path / "killed", **changes)
    assert same(run(tmp_path / "killed", resume=True, **changes), expected)


def test_a_state_of_before_the_lipschitz_branch_is_read():
    step = TrainingStep(SPEC.build(), None, SETS, dataclasses.replace(CONFIG, projection=None))
    state = {name: value for name, value in step.state_dict().items() if name != "lipschitz"}
    step.load_state_dict(state)
    assert step.bounded.lipschitz_vectors == {}
