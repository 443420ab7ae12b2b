"""The command line: what it writes, and one line for each thing a user can get wrong."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from toy import CONFIG, SETS, SPEC, images

import lirpa_multinorm.experiment as experiment_module
from lirpa_multinorm.cli import main
from lirpa_multinorm.training import ModelSpec, load_checkpoint, save_checkpoint

pytest.importorskip("sklearn")  # for the data set "digits"

TINY = ["--n-train", "64", "--n-test", "6", "--epochs", "2", "--batch-size", "32", "--width", "2", "--no-progress",
        "--natural-epochs", "1", "--anneal-epochs", "1", "--milestones", "1"]


@pytest.fixture
def file(tmp_path):
    """An .npz file of the toy images."""
    return write_npz(tmp_path / "toy.npz")


def write_npz(path, **changes):
    (x_train, y_train), (x_test, y_test) = images(40, 0), images(12, 1)
    arrays = {"x_train": x_train, "y_train": y_train, "x_test": x_test, "y_test": y_test}
    np.savez(path, **{key: np.asarray(value) for key, value in {**arrays, **changes}.items() if value is not None})
    return path


@pytest.fixture
def checkpoint(tmp_path):
    save_checkpoint(tmp_path / "toy.pt", SPEC.build(), SPEC, SETS, CONFIG, 1)
    return tmp_path / "toy.pt"


def train_on(file, output, *arguments):
    return main(["train", "--data", str(file), "--model", "mlp", "--epochs", "2", "--batch-size", "16", "--no-progress",
                 "--output", str(output), *map(str, arguments)])


def error_of(capsys, code):
    """The one line on stderr that comes with exit code 2."""
    assert code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ")
    return lines[0]


# --- what works ---------------------------------------------------------------------------------------------------

def test_train_and_certify_digits(tmp_path, capsys):
    output = tmp_path / "run"
    assert main(["train", "--output", str(output), "--methods", "natural", "Max", *TINY]) == 0
    printed = capsys.readouterr().out
    assert "| natural" in printed and "| Max" in printed and "certified union" in printed and str(output) in printed
    rows = json.loads((output / "table.json").read_text())["rows"]
    assert [(row["method"], row["n"]) for row in rows] == [("natural", 6), ("Max", 6)]
    found = load_checkpoint(output / "max" / "checkpoint.pt")
    assert (found.spec.name, found.spec.options, found.epoch) == ("cnn_small", {"width": 2}, 2)
    assert (found.config.loss, found.config.milestones, found.config.batch_size) == ("max", (1,), 32)
    assert found.config.loss_options == {"ratio_inf": 0.4, "ratio_2": 1e-5, "region_2": "box"}

    result = tmp_path / "results" / "result.json"
    assert main(["certify", str(output / "max" / "checkpoint.pt"), "--n-test", "6", "--batch-size", "4",
                 "--output", str(result), "--no-progress"]) == 0
    assert "certified l_inf 0.1" in capsys.readouterr().out
    written = json.loads(result.read_text())
    assert written["result"]["n"] == 6 and written["data"] == "digits"
    assert [one["eps"] for one in written["perturbations"]] == [0.1, 0.5]  # those of the checkpoint
    assert 100 * written["result"]["clean"] == pytest.approx(rows[1]["clean"], abs=0.01)
    assert 100 * written["result"]["certified_union"] == pytest.approx(rows[1]["certified union"], abs=0.01)


def test_certify_against_radii_of_ones_own(checkpoint, file, tmp_path, capsys):
    result = tmp_path / "r.json"
    assert main(["certify", str(checkpoint), "--data", str(file), "--eps-2", "0.25", "--output", str(result),
                 "--no-progress"]) == 0
    assert [(one["norm"], one["eps"]) for one in json.loads(result.read_text())["perturbations"]] == [("2", 0.25)]
    assert "certified l_2 0.25" in capsys.readouterr().out


def test_options_reach_the_training(file, tmp_path):
    assert train_on(file, tmp_path / "run", "--methods", "Joint", "--ratio-inf", 0.7, "--ratio-2", 0.3, "--region-2",
                    "ball", "--l1", 1e-4, "--seed", 3, "--learning-rate", 0.01, "--eps-inf", 0.02, "--eps-2", 0.1) == 0
    found = load_checkpoint(tmp_path / "run" / "joint" / "checkpoint.pt")
    assert found.config.loss_options == {"ratio_inf": 0.7, "ratio_2": 0.3, "region_2": "ball"}
    assert (found.config.l1, found.config.seed, found.config.learning_rate) == (1e-4, 3, 0.01)
    assert [one.eps for one in found.perturbations] == [0.02, 0.1]


def test_the_same_seed_gives_the_same_table(file, tmp_path):
    tables = []
    for name in ("first", "second"):
        assert train_on(file, tmp_path / name, "--methods", "Random") == 0
        row, = json.loads((tmp_path / name / "table.json").read_text())["rows"]
        tables.append({key: value for key, value in row.items() if key != "seconds"})
    assert tables[0] == tables[1]


def test_running_the_package_as_a_program():
    done = subprocess.run([sys.executable, "-m", "lirpa_multinorm", "certify", "nowhere.pt"], capture_output=True,
                          text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: checkpoint nowhere.pt cannot be read")


@pytest.mark.parametrize("command", [[], ["train"], ["certify"]], ids=["all", "train", "certify"])
def test_help(command, capsys):
    with pytest.raises(SystemExit) as caught:
        main([*command, "--help"])
    assert caught.value.code == 0 and "usage: lirpa-multinorm" in capsys.readouterr().out


# --- what goes wrong ----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_a_data_set_that_is_not_there(name, tmp_path, capsys):
    empty = tmp_path / "empty"
    empty.mkdir()
    line = error_of(capsys, main(["train", "--data", name, "--data-dir", str(empty), "--no-download", "--output",
                                  str(tmp_path / "run")]))
    assert name in line and str(empty) in line and "digits" in line and "npz" in line


@pytest.mark.parametrize("arguments, words", [
    (["--data", "minst"], ["'minst'", "'mnist'", ".npz"]),
    (["--data", "nowhere.npz"], ["no file", "nowhere.npz"]),
    (["--model", "cnn77"], ["'cnn77'", "cnn7"]),
    (["--eps-inf", "-0.1"], ["eps=-0.1", "not negative"]),
    (["--eps-2", "nan"], ["eps=nan"]),
    (["--epochs", "0"], ["epochs=0"]),
    (["--batch-size", "1000"], ["batch_size=1000", "40"]),
    (["--learning-rate", "-1"], ["learning_rate=-1"]),
    (["--natural-epochs", "nan"], ["natural_epochs=nan"]),
    (["--ratio-inf", "2", "--methods", "Max"], ["ratio=2", "(0, 1]"]),
    (["--n-test", "0"], ["n_test"]),
    (["--width", "3"], ["width", "mlp"]),
    (["--device", "nonsense"], ["device='nonsense'", "cpu"]),
], ids=lambda value: "_".join(value) if value and str(value[0]).startswith("--") else "")
def test_unusable_arguments_of_train(arguments, words, file, tmp_path, capsys):
    line = error_of(capsys, train_on(file, tmp_path / "run", *arguments))
    assert all(word in line for word in words)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the device is there")
def test_a_device_that_is_not_there(file, tmp_path, capsys):
    assert "--device cpu" in error_of(capsys, train_on(file, tmp_path / "run", "--device", "cuda"))


WRONG_FILES = {"missing_key": ({"y_test": None}, "y_test"), "labels": ({"y_train": np.full(40, -1)}, "negative"),
               "range": ({"x_test": np.full((12, 1, 4, 4), 255.0)}, "[0, 1]"),
               "shape": ({"x_train": np.zeros((40, 16))}, "(N, C, H, W)")}


@pytest.mark.parametrize("changes, word", WRONG_FILES.values(), ids=WRONG_FILES)
def test_an_npz_file_with_wrong_content(changes, word, tmp_path, capsys):
    file = write_npz(tmp_path / "wrong.npz", **changes)
    assert word in error_of(capsys, train_on(file, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", ["train", "certify"])
def test_an_unwritable_output(command, file, checkpoint, tmp_path, capsys):
    (tmp_path / "taken").write_text("")
    output = tmp_path / "taken" / "run" / "result.json"
    code = train_on(file, output) if command == "train" else main(
        ["certify", str(checkpoint), "--data", str(file), "--output", str(output)])
    line = error_of(capsys, code)
    assert "cannot write" in line and str(tmp_path / "taken") in line


def test_certify_will_not_write_over_a_folder(file, checkpoint, tmp_path, capsys):
    assert "is a folder" in error_of(capsys, main(["certify", str(checkpoint), "--data", str(file), "--output",
                                                   str(tmp_path)]))


@pytest.mark.parametrize("method", ["max", ""], ids=["lower_case", "empty"])
def test_unknown_methods_are_refused_by_the_parser(method, file, tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        train_on(file, tmp_path / "run", "--methods", method)
    assert caught.value.code == 2 and "SABR l_inf" in capsys.readouterr().err


def remove(path):
    path.unlink()


def truncate(path):
    path.write_bytes(path.read_bytes()[:300])


def change_architecture(path):
    content = torch.load(path, weights_only=True)
    content["spec"]["options"] = {"hidden": [9]}
    torch.save(content, path)


@pytest.mark.parametrize("damage, words", [(remove, "missing"), (truncate, "damaged"),
                                           (change_architecture, "another architecture")],
                         ids=["missing", "truncated", "architecture"])
def test_a_checkpoint_that_cannot_be_used(damage, words, file, checkpoint, capsys):
    damage(checkpoint)
    line = error_of(capsys, main(["certify", str(checkpoint), "--data", str(file)]))
    assert str(checkpoint) in line and words in line


def test_a_checkpoint_of_another_image_shape(checkpoint, capsys):
    line = error_of(capsys, main(["certify", str(checkpoint), "--data", "digits"]))
    assert "(1, 8, 8)" in line and "(1, 4, 4)" in line and "'digits'" in line


def test_a_checkpoint_with_too_few_classes(file, tmp_path, capsys):
    spec = ModelSpec("mlp", (1, 4, 4), 2)
    save_checkpoint(tmp_path / "two.pt", spec.build(), spec, SETS, CONFIG, 1)
    line = error_of(capsys, main(["certify", str(tmp_path / "two.pt"), "--data", str(file), "--no-progress"]))
    assert "labels run from 0 to 2" in line and "2 outputs" in line


@pytest.mark.parametrize("arguments, word", [(["--batch-size", "0"], "batch_size=0"), (["--eps-inf", "-1"], "eps=-1"),
                                             (["--n-test", "99"], "n_test")], ids=["batch_size", "eps", "n_test"])
def test_unusable_arguments_of_certify(arguments, word, file, checkpoint, capsys):
    code = main(["certify", str(checkpoint), "--data", str(file), "--no-progress", *arguments])
    assert word in error_of(capsys, code)


def test_broken_weights_are_reported(file, checkpoint, tmp_path, capsys):
    model = SPEC.build()
    torch.nn.init.constant_(model[-1].bias, float("nan"))
    save_checkpoint(checkpoint, model, SPEC, SETS, CONFIG, 1)
    result = tmp_path / "r.json"
    code = main(["certify", str(checkpoint), "--data", str(file), "--output", str(result), "--no-progress"])
    assert code == 0 and json.loads(result.read_text())["result"]["certified_union"] == 0


def test_interruption_keeps_the_finished_rows(file, tmp_path, monkeypatch, capsys):
    original = experiment_module.train

    def interrupted(spec, data, sets, config, *rest):
        if config.loss == "joint":
            raise KeyboardInterrupt
        return original(spec, data, sets, config, *rest)

    monkeypatch.setattr(experiment_module, "train", interrupted)
    assert train_on(file, tmp_path / "run", "--methods", "natural", "Joint") == 130
    assert "interrupted" in capsys.readouterr().err
    assert len(json.loads((tmp_path / "run" / "table.json").read_text())["rows"]) == 1


def test_output_is_refused_before_training(file, tmp_path, monkeypatch, capsys):
    (tmp_path / "taken").write_text("")
    monkeypatch.setattr(experiment_module, "train", lambda *_: pytest.fail("training has started"))
    assert "taken" in error_of(capsys, train_on(file, tmp_path / "taken"))
