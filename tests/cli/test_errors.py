"""The command line's help, and one line for each thing a user can get wrong in ``train``."""

import subprocess
import sys

import numpy as np
import pytest
import torch

import lirpa_multinorm.experiments.comparison as experiment_module
from lirpa_multinorm.cli import main
from tests.cli.runs import error_of, train_on
from tests.toy import write_npz

pytestmark = pytest.mark.usefixtures("no_figures")


@pytest.mark.parametrize(
    "command",
    [[], ["train"], ["finetune"], ["presets"], ["certify"]],
    ids=["all", "train", "finetune", "presets", "certify"],
)
def test_help(command, capsys):
    with pytest.raises(SystemExit) as caught:
        main([*command, "--help"])
    assert caught.value.code == 0 and "usage: lirpa-multinorm" in capsys.readouterr().out


def test_running_the_package_as_a_program():
    done = subprocess.run(
        [sys.executable, "-m", "lirpa_multinorm", "certify", "nowhere.pt"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: checkpoint nowhere.pt cannot be read")


CONTRADICTIONS = {
    "unknown_preset": (
        ["--preset", "mnist-0.3-1.0-scrach"],
        ["'mnist-0.3-1.0-scrach'", "mnist-0.3-1.0-scratch"],
    ),
    "nonsense_preset": (["--preset", "zzz"], ["'zzz'", "lirpa-multinorm presets"]),
    "released_alone": (["--released"], ["--released needs --preset"]),
    "beta_without_projection": (
        ["--losses", "Max", "Joint", "--beta", "0.3"],
        ["--beta", "projects gradients"],
    ),
    "beta_with_natural": (["--losses", "natural", "--beta", "0.3"], ["--beta"]),
    "beta_in_a_preset_without": (["--preset", "mnist-0.1-0.5-max", "--beta", "0.3"], ["--beta"]),
    "eta_without_alignment": (
        ["--losses", "Max", "Random", "--eta", "0.5"],
        ["--eta", "max, random"],
    ),
    "eta_in_a_preset_without": (
        ["--preset", "mnist-0.1-0.5-joint", "--eta", "0.5"],
        ["--eta", "joint"],
    ),
    "ratio_2_without_l2": (
        ["--losses", "SABR l_inf", "natural", "--ratio-2", "0.3"],
        ["--ratio-2", "sabr, natural"],
    ),
    "ratio_inf_without_linf": (
        ["--losses", "CURE-l2", "--ratio-inf", "0.3"],
        ["--ratio-inf", "cure_l2"],
    ),
    "weights_without_joint": (["--losses", "Max", "--weights", "0.3", "0.7"], ["--weights", "max"]),
    "ratio_1_without_l1": (["--losses", "Max", "--ratio-1", "0.3"], ["ratio_1", "no set"]),
    "finetune_preset_alone": (
        ["--preset", "mnist-0.1-0.5-finetune"],
        ["--initial", "mnist-0.1-0.5-linf"],
    ),
    "finetune_row_alone": (["--losses", "Finetune"], ["'SABR l_inf'", "--initial"]),
    "beta_too_large": (["--losses", "Scratch", "--beta", "1.5"], ["beta=1.5", "[0, 1]"]),
    "beta_nan": (["--losses", "Scratch", "--beta", "nan"], ["beta=nan"]),
    "eta_negative": (["--losses", "Scratch", "--eta", "-1"], ["eta=-1", "negative"]),
    "eta_infinite": (["--losses", "Scratch", "--eta", "inf"], ["eta=inf"]),
    "validation_and_n_test": (["--validation", "5", "--n-test", "5"], ["--n-test", "--validation"]),
    "validation_too_large": (["--validation", "40"], ["40"]),
    "seeds_twice": (["--seeds", "1", "2", "1"], ["seeds=[1, 2, 1]"]),
    "clip_norm": (["--clip-norm", "0"], ["clip_norm=0"]),
    "average_from": (["--average-from", "2"], ["average_from=2", "epochs=2"]),
    "no_initial_file": (
        ["--losses", "Max", "--initial", "nowhere.pt"],
        ["nowhere.pt", "--initial: there is no file"],
    ),
}


@pytest.mark.parametrize("arguments, words", CONTRADICTIONS.values(), ids=CONTRADICTIONS)
def test_arguments_that_cannot_be_used_together(arguments, words, file, tmp_path, capsys):
    line = error_of(capsys, train_on(file, tmp_path / "run", *arguments))
    assert all(word in line for word in words), line
    assert not list(tmp_path.rglob("checkpoint.pt"))


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_a_data_set_that_is_not_there(name, tmp_path, capsys):
    empty = tmp_path / "empty"
    empty.mkdir()
    line = error_of(
        capsys,
        main(
            [
                "train",
                "--data",
                name,
                "--data-dir",
                str(empty),
                "--no-download",
                "--output",
                str(tmp_path / "run"),
            ]
        ),
    )
    assert name in line and str(empty) in line and "digits" in line and "npz" in line


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--data", "minst"], ["'minst'", "'mnist'", ".npz"]),
        (["--data", "nowhere.npz"], ["no file", "nowhere.npz"]),
        (["--model", "cnn77"], ["'cnn77'", "cnn7"]),
        (["--eps-inf", "-0.1"], ["eps=-0.1", "not negative"]),
        (["--eps-2", "nan"], ["eps=nan"]),
        (["--epochs", "0"], ["epochs=0"]),
        (["--batch-size", "1000"], ["batch_size=1000", "40"]),
        (["--learning-rate", "-1"], ["learning_rate=-1"]),
        (["--natural-epochs", "nan"], ["natural_epochs=nan"]),
        (["--ratio-inf", "2", "--losses", "Max"], ["ratio=2", "(0, 1]"]),
        (["--n-test", "0"], ["--n-test: 0"]),
        (["--width", "3"], ["width", "mlp"]),
        (["--device", "nonsense"], ["device='nonsense'", "cpu"]),
    ],
    ids=lambda value: "_".join(value) if value and str(value[0]).startswith("--") else "",
)
def test_unusable_arguments_of_train(arguments, words, file, tmp_path, capsys):
    line = error_of(capsys, train_on(file, tmp_path / "run", *arguments))
    assert all(word in line for word in words)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the device is there")
def test_a_device_that_is_not_there(file, tmp_path, capsys):
    assert "--device cpu" in error_of(capsys, train_on(file, tmp_path / "run", "--device", "cuda"))


WRONG_FILES = {
    "missing_key": ({"y_test": None}, "y_test"),
    "labels": ({"y_train": np.full(40, -1)}, "negative"),
    "range": ({"x_test": np.full((12, 1, 4, 4), 255.0)}, "[0, 1]"),
    "shape": ({"x_train": np.zeros((40, 16))}, "(N, C, H, W)"),
}


@pytest.mark.parametrize("changes, word", WRONG_FILES.values(), ids=WRONG_FILES)
def test_an_npz_file_with_wrong_content(changes, word, tmp_path, capsys):
    file = write_npz(tmp_path / "wrong.npz", **changes)
    assert word in error_of(capsys, train_on(file, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", ["train", "certify"])
def test_an_unwritable_output(command, file, checkpoint, tmp_path, capsys):
    (tmp_path / "taken").write_text("")
    output = tmp_path / "taken" / "run"
    code = (
        train_on(file, output)
        if command == "train"
        else main(["certify", str(checkpoint), "--data", str(file), "--output", str(output)])
    )
    line = error_of(capsys, code)
    assert "cannot write" in line and str(tmp_path / "taken") in line


def test_output_is_refused_before_training(file, tmp_path, monkeypatch, capsys):
    (tmp_path / "taken").write_text("")
    monkeypatch.setattr(experiment_module, "train", lambda *_: pytest.fail("training has started"))
    assert "taken" in error_of(capsys, train_on(file, tmp_path / "taken"))


@pytest.mark.parametrize("method", ["max", ""], ids=["lower_case", "empty"])
def test_unknown_methods_are_refused_by_the_parser(method, file, tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        train_on(file, tmp_path / "run", "--losses", method)
    assert caught.value.code == 2 and "SABR l_inf" in capsys.readouterr().err
