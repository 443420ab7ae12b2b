"""A comparison that is killed at any moment loses nothing that is finished, and mixes nothing."""

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest
import torch

import lirpa_multinorm.experiments.comparison as experiment_module
import lirpa_multinorm.experiments.table as table_module
import lirpa_multinorm.training.run as run_module
import lirpa_multinorm.training.runlog as runlog_module
from lirpa_multinorm import AttackSettings, CertifySettings
from lirpa_multinorm.experiments.comparison import Experiment
from lirpa_multinorm.training import Projection, Schedule
from lirpa_multinorm.training.step import TrainingStep
from tests.processes import Process
from tests.toy import CONFIG, SETS, SPEC, data

ROWS = {
    "SABR l_inf": {"loss": "sabr"},
    "Finetune": {"loss": "joint", "initial": "SABR l_inf", "share": 0.7},
}


class Killed(BaseException):
    """What stands for SIGKILL within this process."""


def no_figures(patch):
    patch.setitem(sys.modules, "torch.utils.tensorboard", None)
    patch.setattr(
        table_module, "grouped_bars", lambda table, bars, path, *_, **__: path.write_bytes(b"bars")
    )
    patch.setattr(
        runlog_module, "learning_curves", lambda lines, path, title: path.write_bytes(b"curves")
    )


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    no_figures(monkeypatch)


def compare(folder, resume=False):
    config = dataclasses.replace(
        CONFIG, epochs=3, schedule=Schedule(0, 1), projection=Projection(0.5), average_from=1
    )
    certification = CertifySettings(methods=("IBP",), attack=AttackSettings(steps=2))
    return Experiment(data(), SPEC, SETS, config, certification).run(folder, ROWS, False, resume)


# --- what a folder holds, but for times -----------------------------------------------------------


def without_times(value):
    if isinstance(value, dict):
        return {
            key: without_times(item)
            for key, item in value.items()
            if "seconds" not in key and key != "environment"
        }
    return [without_times(item) for item in value] if isinstance(value, list) else value


def meaning(path):
    """The content of a file, but for times."""
    if path.suffix == ".pt":
        content = torch.load(path, weights_only=True)
        weights = {name: value.tolist() for name, value in content.pop("state_dict").items()}
        return {"weights": weights, "state": repr(content.pop("state")), **content}
    if path.suffix == ".json":
        return without_times(json.loads(path.read_text()))
    if path.suffix == ".jsonl":
        return [without_times(json.loads(line)) for line in path.read_text().splitlines()]
    if path.suffix == ".md":
        return [
            line.split("|")[:-2] for line in path.read_text().splitlines()
        ]  # the last column is seconds
    return path.read_bytes()


def meanings(folder):
    return {
        str(path.relative_to(folder)): meaning(path) for path in folder.rglob("*") if path.is_file()
    }


# --- moments --------------------------------------------------------------------------------------

#: Whatever writes to the disk, counted before and after; every step; the certification of each row.
POINTS = [
    (os, "replace", "before"),
    (os, "replace", "after"),
    (os, "fsync", "before"),
    (TrainingStep, "update", "before"),
    (experiment_module, "certify", "before"),
    (experiment_module, "certify", "after"),
    (experiment_module, "tabulate", "before"),
]


def arm(patch, at_moment):
    """Call ``at_moment`` with the names of the moments that have passed, at each of them."""
    passed = []

    def pass_by(name):
        passed.append(name)
        at_moment(passed)

    for owner, name in dict.fromkeys(point[:2] for point in POINTS):
        original, sides = (
            getattr(owner, name),
            [side for *point, side in POINTS if tuple(point) == (owner, name)],
        )

        def wrapped(*args, original=original, name=name, sides=sides, **kwargs):
            if "before" in sides:
                pass_by(f"{name}, before")
            result = original(*args, **kwargs)
            if "after" in sides:
                pass_by(f"{name}, after")
            return result

        patch.setattr(owner, name, wrapped)


def kill_within(folder, moment, resume=False):
    """Run until a moment, and leave everything as a killed process would."""
    with pytest.MonkeyPatch.context() as patch:

        def kill(passed):
            if len(passed) == moment + 1:
                patch.setattr(Path, "unlink", lambda *_, **__: None)  # it cleans nothing up
                raise Killed

        patch.setattr(run_module.Run, "logging", lambda _: contextlib.nullcontext())
        arm(patch, kill)
        with pytest.raises(Killed):
            compare(folder, resume)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What an uninterrupted comparison leaves, the moments it passes, and its folder at each.

    A process that is killed leaves its folder as it is at that moment.
    """
    torch.set_num_threads(1)
    folder, kept, names = tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("kept"), []

    def keep(passed):
        names[:] = passed
        shutil.copytree(folder, kept / str(len(passed) - 1))

    with pytest.MonkeyPatch.context() as patch:
        no_figures(patch)
        arm(patch, keep)
        compare(folder)
    return meanings(folder), names, kept


COUNT = 69


def test_there_are_moments_in_every_phase(whole):
    assert len(whole[1]) == COUNT and {name.split(",")[0] for name in whole[1]} == {
        "replace",
        "fsync",
        "update",
        "certify",
        "tabulate",
    }


@pytest.mark.parametrize(
    "moment",
    [
        moment if moment % 5 == 0 else pytest.param(moment, marks=pytest.mark.slow)
        for moment in range(COUNT)
    ],
)
def test_a_comparison_killed_at_any_moment_ends_as_if_it_had_not_been(moment, tmp_path, whole):
    shutil.copytree(whole[2] / str(moment), tmp_path, dirs_exist_ok=True)
    finished = {
        str(path.relative_to(tmp_path)): path.read_bytes() for path in tmp_path.rglob("result.json")
    }
    compare(tmp_path, resume=True)
    assert meanings(tmp_path) == whole[0]
    assert all(
        (tmp_path / name).read_bytes() == content for name, content in finished.items()
    )  # not done again


def test_killed_again_and_again(tmp_path, whole):
    for moment in (12, 9, 15, 8, 14, 20):
        kill_within(tmp_path, moment, resume=True)
    compare(tmp_path, resume=True)
    assert meanings(tmp_path) == whole[0]


def compare_until_killed(folder, moment):
    """Of a process of its own: it ends by SIGKILL."""
    patch = pytest.MonkeyPatch()
    no_figures(patch)
    arm(patch, lambda passed: len(passed) == moment + 1 and os.kill(os.getpid(), signal.SIGKILL))
    compare(folder, resume=True)


@pytest.mark.parametrize(
    "moments",
    [
        (30,),
        *(
            pytest.param(some, marks=pytest.mark.slow)
            for some in ((3,), (17, 9), (44,), (52, 4), (61,), (68,))
        ),
    ],
    ids=str,
)
def test_real_kills(moments, tmp_path, whole):
    for moment in moments:
        code, errors = Process(compare_until_killed, tmp_path, moment).ended()
        assert code == -signal.SIGKILL, errors
    compare(tmp_path, resume=True)
    assert meanings(tmp_path) == whole[0]
