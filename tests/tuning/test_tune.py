"""The command ``tune``: trials, front, resuming, several processes, the chosen point, bad input."""

import json
import sys
import time

import pytest
import torch

import lirpa_multinorm.experiments.table as table_module
import lirpa_multinorm.training.runlog as runlog_module
from lirpa_multinorm.data import ImageData
from tests.cli.runs import error_of
from tests.processes import Process
from tests.toy import write_npz
from tests.tuning.studies import FLAGS, front, trials, tune, tune_in_a_process

pytest.importorskip("optuna")


@pytest.fixture(autouse=True)
def no_curves(monkeypatch):
    """Figures of single runs are slow, and have tests of their own."""
    monkeypatch.setattr(runlog_module, "learning_curves", lambda *_: None)
    monkeypatch.setattr(table_module, "grouped_bars", lambda *_, **__: None)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A study of two trials; tests that change it take a copy."""
    folder = tmp_path_factory.mktemp("tuning") / "study"
    assert tune(folder, "--trials", 2) == 0
    return folder


def test_the_front_is_a_table_a_file_and_a_figure(study):
    result = front(study)
    assert {point["trial"] for point in result["trials"]} == {0, 1}
    assert result["front"] and result["test images used"] == 0
    assert (result["n"], result["n_train"]) == (8, 32)
    assert {"environment", "space", "train", "certification", "perturbations"} <= result.keys()
    text = (study / "front.md").read_text()
    assert "8 images held out" in text and "No test image was used" in text
    assert (study / "front.png").stat().st_size > 1000
    for point in result["trials"]:
        config = json.loads((study / "trials" / f"{point['trial']:04d}/config.json").read_text())
        assert config["train"]["learning_rate"] == point["values"]["learning-rate"]
        assert config["n_train"] == 32


def test_the_first_trial_is_the_settings_themselves(study):
    first = front(study)["trials"][0]["values"]
    assert first["ratio-inf"] == 0.6 and first["weights.1"] == 0.5 and first["l1"] == 0.0


def test_the_same_command_goes_on_and_does_nothing_twice(study, tmp_path, capsys):
    import shutil

    folder = tmp_path / "study"
    shutil.copytree(study, folder)
    shutil.copyfile(study.parent / "toy.npz", tmp_path / "toy.npz")
    before = front(folder)["trials"]
    assert tune(folder, "--trials", 2) == 0 and front(folder)["trials"] == before
    assert tune(folder, "--trials", 3) == 0
    assert front(folder)["trials"][:2] == before and trials(folder) == [0, 1, 2]


def test_no_trial_sees_a_test_image(tmp_path, monkeypatch):
    split = ImageData.split

    def without_test_images(self, *arguments):
        poisoned = ImageData.__new__(ImageData)
        poisoned.__dict__.update(self.__dict__, y_test=torch.full_like(self.y_test, 99))
        poisoned.__dict__.update(x_test=torch.full_like(self.x_test, float("nan")))
        return split(poisoned, *arguments)

    monkeypatch.setattr(ImageData, "split", without_test_images)
    assert tune(tmp_path / "study", "--trials", 1) == 0
    assert front(tmp_path / "study")["n"] == 8


def test_two_processes_share_the_trials(tmp_path):
    write_npz(tmp_path / "toy.npz")
    both = [Process(tune_in_a_process, tmp_path / "study", 4) for _ in range(2)]
    assert [process.ended(300) for process in both] == [(0, ""), (0, "")]
    assert trials(tmp_path / "study") == [0, 1, 2, 3]


def test_a_trial_whose_process_was_killed_is_run_again(tmp_path):
    folder = tmp_path / "study"
    write_npz(tmp_path / "toy.npz")
    process = Process(tune_in_a_process, folder, 3)
    deadline = time.monotonic() + 240
    while not (folder / "trials" / "0001" / "config.json").is_file():
        assert process.is_alive() and time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.ended()
    assert tune(folder, "--trials", 3) == 0
    assert trials(folder) == [0, 1, 2]


def test_half_a_line_of_a_killed_process_does_no_harm(study, tmp_path):
    import shutil

    folder = tmp_path / "study"
    shutil.copytree(study, folder)
    shutil.copyfile(study.parent / "toy.npz", tmp_path / "toy.npz")
    with open(folder / "study.journal", "ab") as file:
        file.write(b'{"op_code": 6, "wor')
    assert tune(folder, "--trials", 3) == 0 and trials(folder) == [0, 1, 2]


def test_a_trial_that_diverges_counts_and_has_no_place_on_the_front(tmp_path):
    more = ["--search", "learning-rate=1e30:1e33", "--trials", 2]
    assert tune(tmp_path / "study", *more) == 2  # none has a result
    points = sorted((tmp_path / "study" / "trials").glob("*/point.json"))
    assert len(points) == 2 and all("error" in json.loads(path.read_text()) for path in points)


def test_the_chosen_trial_is_trained_on_all_images_and_certified_on_the_test_images(study, capsys):
    data = study.parent / "toy.npz"
    choose = ["--choose", 1, "--no-progress"]
    assert tune(study, *choose, data=data, flags=[]) == 0
    assert "trained on all 40 training images and certified on 12 test images" in (
        capsys.readouterr().out
    )
    folder = study / "chosen_1"
    (row,) = json.loads((folder / "table.json").read_text())["rows"]
    assert row["n"] == 12
    config = json.loads((folder / "trial_1" / "config.json").read_text())
    point = front(study)["trials"][1]
    assert config["n_train"] == 40
    assert config["train"]["learning_rate"] == point["values"]["learning-rate"]
    error = error_of(capsys, tune(study, *choose, data=data, flags=[]))
    assert "--resume" in error
    assert tune(study, *choose, "--resume", data=data, flags=[]) == 0


@pytest.mark.parametrize(
    "more, words",
    [
        (["--choose", "7"], "no finished trial of this number"),
        (["--choose", "1", "--epochs", "3"], "--epochs contradicts --choose"),
        (["--choose", "1", "--search", "l1=0:1"], "--search contradicts --choose"),
        (["--choose", "1", "--train-best"], "contradict each other"),
        (["--choose", "1", "--n-train", "20"], "are not those of the study"),
        (["--resume"], "goes with --choose"),
    ],
    ids=lambda value: "_".join(value) if isinstance(value, list) else "",
)
def test_choices_that_cannot_be(study, more, words, capsys):
    data = study.parent / "toy.npz"
    assert words in error_of(capsys, tune(study, *more, "--no-progress", data=data, flags=[]))


@pytest.mark.parametrize(
    "more, words",
    [
        (["--search", "ratio-inf=0.1:0.5"], "other settings: space."),
        (["--loss", "Max"], "train.loss: 'joint' -> 'max'"),
        (["--validation", "10"], "n: 8 -> 10"),
        (["--validation", "40"], "--validation: 40 of the 40 training images"),
        (["--validation", "30"], "batch_size=16 is larger than the 10"),
        (["--search", "ratio-inf=0.5:3"], "--search ratio-inf: 3.0 cannot be used"),
        (["--search", "defualt"], "did you mean default?"),
        (["--loss", "Finetune"], "starts from another row's network"),
        (["--trials", "0"], "--trials 0: give 1 or more"),
        (["--preset", "mnist-uni"], "nearest: mnist-union"),
    ],
    ids=lambda value: "_".join(value) if isinstance(value, list) else "",
)
def test_studies_that_cannot_be(study, more, words, capsys):
    assert words in error_of(capsys, tune(study, *more))


def test_a_damaged_study_file_is_named(tmp_path, capsys):
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "study.journal").write_text("what\nis\nthis\n")
    assert "study.journal' cannot be read" in error_of(capsys, tune(tmp_path / "study"))


def test_a_folder_without_a_study_has_nothing_to_choose(tmp_path, capsys):
    flags = ["--choose", "0", "--no-progress"]
    assert "holds no study" in error_of(capsys, tune(tmp_path / "study", *flags, flags=[]))


def test_without_optuna_it_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "optuna", None)
    error = error_of(capsys, tune(tmp_path / "study"))
    assert "pip install lirpa-multinorm[tune]" in error and FLAGS
