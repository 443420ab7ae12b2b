"""A run folder holds one run, says which, and is written by one process."""

import dataclasses
from pathlib import Path

import pytest

import lirpa_multinorm
from lirpa_multinorm.errors import InvalidArgumentError, OutputFolderError
from lirpa_multinorm.training import load_checkpoint
from lirpa_multinorm.training.run_folder import identity_of
from lirpa_multinorm.training.step import TrainingStep
from lirpa_multinorm.utils.files import exclusive
from tests.toy import SPEC, data, is_locked
from tests.training.folders import config_of, contents, run
from tests.training.runs import log_of, same

pytestmark = pytest.mark.usefixtures("plain_logs")


REMEDIES = ("--resume (resume=True)", "--overwrite (overwrite=True)")


# --- whose folder it is ---------------------------------------------------------------------------


def test_every_file_names_the_run(tmp_path):
    run(tmp_path)
    described, checkpoint = (
        config_of(tmp_path),
        load_checkpoint(tmp_path / "checkpoint.pt").run["origin"]["run"],
    )
    assert (
        len(described["run_sha256"]) == 64 and described["version"] == lirpa_multinorm.__version__
    )
    assert {line["run_sha256"] for line in log_of(tmp_path)} == {described["run_sha256"]}
    assert checkpoint["run_sha256"] == described["run_sha256"] and checkpoint["continuations"] == []


def test_the_identity_is_of_settings_data_and_version(tmp_path, monkeypatch):
    changes = [
        {},
        {"seed": 1},
        {"images": data(48)},
        {"spec": dataclasses.replace(SPEC, options={"hidden": [9]})},
    ]
    names = []
    for index, change in enumerate(changes):
        run(tmp_path / str(index), epochs=1, **change)
        names.append(config_of(tmp_path / str(index))["run_sha256"])
    run(tmp_path / "again", epochs=1)
    assert len(set(names)) == 4 and config_of(tmp_path / "again")["run_sha256"] == names[0]
    before = identity_of({"train": 1})
    monkeypatch.setattr(lirpa_multinorm, "__version__", "9.9")
    assert identity_of({"train": 1})["run_sha256"] != before["run_sha256"]


@pytest.mark.parametrize(
    "changes", [{}, {"seed": 1}, {"epochs": 1}], ids=["same", "seed", "shorter"]
)
def test_a_folder_with_a_run_is_refused(changes, tmp_path):
    run(tmp_path)
    before = contents(tmp_path)
    with pytest.raises(OutputFolderError, match="holds a run already") as caught:
        run(tmp_path, **changes)
    assert contents(tmp_path) == before
    assert all(words in str(caught.value) for words in (repr(str(tmp_path)), *REMEDIES))


def test_an_unfinished_run_is_refused_too(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(TrainingStep, "__call__", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(tmp_path)
    assert not (tmp_path / "checkpoint.pt").exists()
    with pytest.raises(OutputFolderError, match=r"holds a run already \(config.json\)"):
        run(tmp_path)
    with pytest.raises(
        OutputFolderError, match="train.seed: 0 -> 1"
    ):  # nor is it another one's to resume
        run(tmp_path, resume=True, seed=1)
    assert same(run(tmp_path, resume=True), run())


def test_files_of_others_are_no_run_and_stay(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "tensorboard").mkdir()
    (tmp_path / "tensorboard" / "notes.txt").write_text("mine too")
    run(tmp_path)
    run(tmp_path, overwrite=True, seed=1)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert (tmp_path / "tensorboard" / "notes.txt").read_text() == "mine too"


def test_overwriting_leaves_nothing_of_the_old_run(tmp_path):
    run(tmp_path / "old")
    for name in ("result.json", "table.json", "table.md", "table.png"):
        (tmp_path / "old" / name).write_text("old")
    (tmp_path / "old" / "tensorboard").mkdir()
    (tmp_path / "old" / "tensorboard" / "events.out.tfevents.1").write_text("old")
    model = run(tmp_path / "old", overwrite=True, epochs=1, seed=1)
    assert same(model, run(tmp_path / "new", epochs=1, seed=1))
    assert contents(tmp_path / "old").keys() == contents(tmp_path / "new").keys()
    assert len(log_of(tmp_path / "old")) == 1 and config_of(tmp_path / "old")["train"]["seed"] == 1


def test_an_overwriting_that_is_killed_never_mixes(tmp_path, monkeypatch):
    """At every file that it removes: what is left is refused, or is resumed as the old run."""
    for kill_at in range(9):
        folder = tmp_path / str(kill_at)
        run(folder, epochs=1)
        (folder / "result.json").write_text("{}")
        calls, unlink = [], Path.unlink

        def remove(path, missing_ok=False):
            calls.append(path)
            if len(calls) == kill_at + 1:
                raise KeyboardInterrupt
            unlink(path, missing_ok=missing_ok)

        with monkeypatch.context() as patch:
            patch.setattr(
                Path,
                "unlink",
                lambda path, missing_ok=False: (
                    remove(path, missing_ok)
                    if not path.name.endswith(".tmp") and "write-test" not in path.name
                    else unlink(path, missing_ok=missing_ok)
                ),
            )
            try:
                run(folder, overwrite=True, epochs=1, seed=1)
                continue  # there were fewer files
            except KeyboardInterrupt:
                pass
        assert config_of(folder)["train"]["seed"] == 0
        with pytest.raises(OutputFolderError, match="train.seed: 0 -> 1"):
            run(folder, resume=True, epochs=1, seed=1)
        assert same(run(folder, resume=True, epochs=1), run(epochs=1)) and len(log_of(folder)) == 1


@pytest.mark.parametrize(
    "choices, words",
    [
        ({"resume": True, "overwrite": True}, "overwrite: .*--resume.*--overwrite.*only one"),
        ({"extend": True}, "extend: .*--resume"),
        ({"overwrite": True, "extend": True}, "extend: .*--resume"),
    ],
    ids=str,
)
def test_choices_that_contradict_each_other(choices, words, tmp_path):
    with pytest.raises(InvalidArgumentError, match=words):
        run(tmp_path / "run", **choices)
    assert not (tmp_path / "run").exists()


def test_files_of_two_runs_are_refused(tmp_path):
    for seed in (0, 1):
        run(tmp_path / str(seed), seed=seed)
    (tmp_path / "0" / "config.json").replace(tmp_path / "1" / "config.json")
    with pytest.raises(OutputFolderError, match="are of two runs"):
        run(tmp_path / "1", resume=True, seed=1)


def test_a_log_that_nothing_describes_is_refused(tmp_path):
    run(tmp_path)
    for name in ("config.json", "checkpoint.pt"):
        (tmp_path / name).unlink()
    with pytest.raises(OutputFolderError, match=r"nothing in the folder .*log.jsonl.*--overwrite"):
        run(tmp_path, resume=True)


def test_another_version_warns_and_goes_on(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(lirpa_multinorm, "__version__", "0.0.9")
        run(tmp_path, epochs=3)
    name = config_of(tmp_path)["run_sha256"]
    with pytest.warns(
        UserWarning, match=f"begun by version 0.0.9 .* with {lirpa_multinorm.__version__}"
    ):
        run(tmp_path, epochs=3, resume=True)
    assert config_of(tmp_path)["run_sha256"] == name and config_of(tmp_path)["version"] == "0.0.9"


# --- the lock -------------------------------------------------------------------------------------


def test_a_locked_folder_is_refused(tmp_path):
    with exclusive(tmp_path / "run"):
        for choices in ({}, {"resume": True}, {"overwrite": True}):
            with pytest.raises(OutputFolderError, match="another process has a run") as caught:
                run(tmp_path, **choices)
            assert all(words in str(caught.value) for words in (repr(str(tmp_path)), *REMEDIES))
    run(tmp_path)


def test_the_lock_is_held_as_long_as_the_run(tmp_path, monkeypatch):
    original, held = TrainingStep.__call__, []

    def step(*args):
        held.append(is_locked(tmp_path))
        return original(*args)

    monkeypatch.setattr(TrainingStep, "__call__", step)
    run(tmp_path)
    assert held == [True] * 6 and not is_locked(tmp_path)
