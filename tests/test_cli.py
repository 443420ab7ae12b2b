"""The command line: what it writes, and one line for each thing a user can get wrong."""

import dataclasses
import errno
import hashlib
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from toy import CONFIG, SETS, SPEC, images

import lirpa_multinorm.experiment as experiment_module
import lirpa_multinorm.training.runlog as runlog_module
from lirpa_multinorm import distributed, read_records
from lirpa_multinorm.certification import METHODS
from lirpa_multinorm.certification.cascade import Cascade
from lirpa_multinorm.cli import main
from lirpa_multinorm.presets import load_preset, preset_names
from lirpa_multinorm.training import ModelSpec, Schedule, initial_weights, load_checkpoint, save_checkpoint

pytest.importorskip("sklearn")  # for the data set "digits"


@pytest.fixture(autouse=True)
def no_figures(monkeypatch):
    """They are slow, and have tests of their own."""
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    monkeypatch.setattr(experiment_module, "grouped_bars", lambda *_, **__: None)
    monkeypatch.setattr(runlog_module, "learning_curves", lambda *_: None)


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
    assert found.config.loss_options == {"ratio_inf": 0.6}  # the defaults on digits

    result = tmp_path / "results" / "digits"
    assert main(["certify", str(output / "max" / "checkpoint.pt"), "--n-test", "6", "--batch-size", "4",
                 "--output", str(result), "--no-progress"]) == 0
    assert "certified l_inf 0.1" in capsys.readouterr().out
    written = json.loads((result / "summary.json").read_text())
    assert written["result"]["n"] == 6 and written["data"] == "digits"
    assert [one["eps"] for one in written["perturbations"]] == [0.1, 0.4]  # those of the checkpoint
    assert 100 * written["result"]["clean"] == pytest.approx(rows[1]["clean"], abs=0.01)
    assert 100 * written["result"]["certified_union"] == pytest.approx(rows[1]["certified union"], abs=0.01)


def test_certify_against_radii_of_ones_own(checkpoint, file, tmp_path, capsys):
    assert certify_into(tmp_path / "r", checkpoint, file, "--eps-2", 0.25) == 0
    assert [(one["norm"], one["eps"]) for one in summary_in(tmp_path / "r")["perturbations"]] == [("2", 0.25)]
    assert "certified l_2 0.25" in capsys.readouterr().out


def certify_into(output, checkpoint, file, *arguments):
    return main(["certify", str(checkpoint), "--data", str(file), "--no-progress", "--batch-size", "5",
                 "--output", str(output), *map(str, arguments)])


def summary_in(output):
    return json.loads((output / "summary.json").read_text())


def test_certify_says_everything_everywhere(checkpoint, file, tmp_path, capsys):
    assert certify_into(tmp_path / "r", checkpoint, file) == 0
    printed, written = capsys.readouterr().out, summary_in(tmp_path / "r")
    text, recorded = (tmp_path / "r" / "summary.md").read_text(), read_records(tmp_path / "r")
    assert text.strip() in printed and written["result"] == json.loads(json.dumps(recorded.summary()))
    for title in ("l_inf ball of radius 0.05 within [0, 1]", "l_2 ball of radius 0.1 within [0, 1]"):
        assert title in text and title in written["result"]["sets"]
        assert title in (tmp_path / "r" / "records.jsonl").read_text().splitlines()[0]
    low, high = written["result"]["intervals"]["certified_union"]
    assert f"{low:.4f} to {high:.4f}" in text and "misclassified" in text
    assert written["settings"]["methods"] == list(METHODS)


def test_certify_the_plain_balls(checkpoint, file, tmp_path, capsys):
    assert certify_into(tmp_path / "r", checkpoint, file, "--no-clip") == 0
    assert "plain l_inf ball of radius 0.05; plain l_2 ball of radius 0.1" in capsys.readouterr().out
    assert [one["clip"] for one in summary_in(tmp_path / "r")["perturbations"]] == [None, None]


def test_flags_of_certify_reach_the_settings(checkpoint, file, tmp_path):
    flags = ["--methods", "ibp", "alpha-CROWN", "--attack-steps", 7, "--attack-restarts", 3, "--time-limit", 50,
             "--total-time-limit", 500, "--seed", 4]
    assert certify_into(tmp_path / "r", checkpoint, file, *flags) == 0
    found = summary_in(tmp_path / "r")["settings"]
    assert found["methods"] == ["IBP", "CROWN-Optimized"]
    assert [(one["loss"], one["steps"], one["restarts"]) for one in found["attack"]] == [("margin", 7, 3), ("ce", 7, 3)]
    assert {"time_limit": 50, "total_time_limit": 500, "seed": 4, "batch_size": 5}.items() <= found.items()
    assert certify_into(tmp_path / "none", checkpoint, file, "--no-attack") == 0
    assert summary_in(tmp_path / "none")["settings"]["attack"] is None


def test_certify_in_shards_and_on_resuming(checkpoint, file, tmp_path, capsys):
    assert certify_into(tmp_path / "r", checkpoint, file, "--shard", "1/2") == 0
    assert "5 of 12 images are recorded by this shard" in capsys.readouterr().out
    assert not (tmp_path / "r" / "summary.json").exists()
    assert certify_into(tmp_path / "r", checkpoint, file, "--shard", "0/2") == 0
    assert certify_into(tmp_path / "whole", checkpoint, file) == 0
    assert summary_in(tmp_path / "r")["result"] == summary_in(tmp_path / "whole")["result"]
    capsys.readouterr()
    line = error_of(capsys, certify_into(tmp_path / "whole", checkpoint, file))
    assert "holds records of 12 images" in line and "--resume" in line
    assert certify_into(tmp_path / "whole", checkpoint, file, "--resume") == 0


def test_processes_of_torchrun_are_shards(checkpoint, file, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    for rank in (0, 1):
        monkeypatch.setattr(distributed, "rank", lambda: rank)
        assert certify_into(tmp_path, checkpoint, file) == 0
    assert {path.name for path in tmp_path.glob("records*")} == {"records.jsonl", "records.0-of-2.jsonl",
                                                                 "records.1-of-2.jsonl"}
    assert len(read_records(tmp_path)) == 12 and not summary_in(tmp_path)["result"]["not_run"]


def test_an_interrupted_certification_says_how_to_go_on(checkpoint, file, tmp_path, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Cascade, "certify", interrupted)
    assert certify_into(tmp_path / "r", checkpoint, file) == 130 and "--resume" in capsys.readouterr().err
    monkeypatch.undo()
    assert certify_into(tmp_path / "r", checkpoint, file, "--resume") == 0


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


@pytest.mark.parametrize("command", [[], ["train"], ["finetune"], ["presets"], ["certify"]],
                         ids=["all", "train", "finetune", "presets", "certify"])
def test_help(command, capsys):
    with pytest.raises(SystemExit) as caught:
        main([*command, "--help"])
    assert caught.value.code == 0 and "usage: lirpa-multinorm" in capsys.readouterr().out


# --- presets and flags ----------------------------------------------------------------------------------------------

SHORT = ["--epochs", "2", "--batch-size", "16", "--natural-epochs", "0", "--anneal-epochs", "1", "--no-progress"]


def written_config(output, row):
    return json.loads((output / row / "config.json").read_text())


def test_presets_are_listed(capsys):
    assert main(["presets"]) == 0
    printed = capsys.readouterr().out
    assert all(f"| {name} " in printed for name in preset_names()) and len(preset_names()) > 20


def preset_run(output, *arguments):
    return main(["train", "--preset", "mnist-0.3-1.0-scratch", "--output", str(output), *SHORT, *map(str, arguments)])


def test_a_preset_can_be_changed_by_flags(file, tmp_path, capsys):
    output, name = tmp_path / "run", "mnist-0.3-1.0-scratch"
    flags = ["--data", file, "--model", "cnn3", "--width", 2, "--eps-2", 0.2, "--learning-rate", 0.003, "--decay", 0.5,
             "--milestones", 1, "--kappa-start", 0.25, "--l1", 0.001, "--regularizer", 0.125, "--initialization",
             "default", "--clip-norm", 3, "--average-from", 1, "--precise-bn", "--augment", "cifar", "--seed", 4,
             "--ratio-inf", 0.75, "--ratio-2", 0.5, "--region-2", "ball", "--shrink-inf", 0.25, "--mix-2", "cc",
             "--alpha-2", 0.75, "--eta", 0.25, "--target", "inf", "--detach", "--beta", 0.125]
    assert preset_run(output, *flags) == 0
    assert f"| {name} " in capsys.readouterr().out
    found = written_config(output, name)
    train = found["train"]
    assert found["model"]["name"] == "cnn3" and found["model"]["options"]["width"] == 2 and found["data"] == "toy"
    assert [one["eps"] for one in found["perturbations"]] == [0.3, 0.2]  # the first is the preset's
    assert train["loss"] == "cure" and train["projection"]["beta"] == 0.125
    assert {name: train["loss_options"][name] for name in (
        "ratio_inf", "ratio_2", "region_2", "shrink_inf", "mix_2", "alpha_2", "eta", "target", "detach")} == {
        "ratio_inf": 0.75, "ratio_2": 0.5, "region_2": "ball", "shrink_inf": 0.25, "mix_2": "cc", "alpha_2": 0.75,
        "eta": 0.25, "target": "inf", "detach": True}
    expected = {"epochs": 2, "batch_size": 16, "learning_rate": 0.003, "decay": 0.5, "milestones": [1], "l1": 0.001,
                "regularizer": 0.125, "initialization": "default", "clip_norm": 3.0, "average_from": 1,
                "precise_bn": True, "augment": "cifar", "seed": 4}
    assert {name: train[name] for name in expected} == expected
    assert train["schedule"] == {"natural_epochs": 0.0, "anneal_epochs": 1.0, "kappa_start": 0.25,
                                 "kappa_end": load_preset("mnist-0.3-1.0-scratch").train.schedule.kappa_end}


def test_the_released_codes_version_of_a_preset(file, tmp_path):
    flags = ["--data", file, "--model", "cnn3", "--width", 2, "--eps-inf", 0.05, "--eps-2", 0.2, "--released"]
    assert preset_run(tmp_path, *flags) == 0
    train = written_config(tmp_path, "mnist-0.3-1.0-scratch")["train"]
    assert train["projection"] == {"beta": 0.8, "statistics": "mixed", "optimizer": "copy", "accumulate": True}
    assert train["loss_options"]["region_2"] == "released"


def test_flags_override_what_rows_say(file, tmp_path):
    chosen = ["--methods", "SABR l_inf", "CURE-l2", "Max", "Scratch", "Finetune"]
    assert train_on(file, tmp_path, *chosen, "--beta", 0.3, "--eta", 1, "--regularizer", 0.25, "--ratio-2", 0.5) == 0
    found = {row: written_config(tmp_path, row)["train"] for row in ("sabr_l_inf", "cure-l2", "max", "scratch",
                                                                     "finetune")}
    assert found["scratch"]["projection"]["beta"] == 0.3
    assert [name for name, one in found.items() if one["projection"]] == ["scratch"]  # it makes no other row project
    assert {name: one["loss_options"].get("eta") for name, one in found.items()} == {
        "sabr_l_inf": None, "cure-l2": None, "max": None, "scratch": 1, "finetune": 1}
    assert [one["regularizer"] for one in found.values()] == [0.25] * 5
    assert [one["loss_options"].get("ratio_2") for one in found.values()] == [None, 0.5, 0.5, 0.5, 0.5]


def test_without_flags_rows_say_what_they_say(file, tmp_path):
    assert train_on(file, tmp_path, "--methods", "CURE-l2", "Scratch", "--epochs", 1) == 0
    assert written_config(tmp_path, "scratch")["train"]["projection"]["beta"] == 0.5
    assert written_config(tmp_path, "cure-l2")["train"]["regularizer"] == 0


CONTRADICTIONS = {
    "unknown_preset": (["--preset", "mnist-0.3-1.0-scrach"], ["'mnist-0.3-1.0-scrach'", "mnist-0.3-1.0-scratch"]),
    "nonsense_preset": (["--preset", "zzz"], ["'zzz'", "lirpa-multinorm presets"]),
    "preset_and_methods": (["--preset", "mnist-0.1-0.5-max", "--methods", "Max"], ["--preset", "--methods"]),
    "released_alone": (["--released"], ["--released needs --preset"]),
    "beta_without_projection": (["--methods", "Max", "Joint", "--beta", "0.3"], ["--beta", "projects gradients"]),
    "beta_with_natural": (["--methods", "natural", "--beta", "0.3"], ["--beta"]),
    "beta_in_a_preset_without": (["--preset", "mnist-0.1-0.5-max", "--beta", "0.3"], ["--beta"]),
    "eta_without_alignment": (["--methods", "Max", "Random", "--eta", "0.5"], ["--eta", "max, random"]),
    "eta_in_a_preset_without": (["--preset", "mnist-0.1-0.5-joint", "--eta", "0.5"], ["--eta", "joint"]),
    "ratio_2_without_l2": (["--methods", "SABR l_inf", "natural", "--ratio-2", "0.3"], ["--ratio-2", "sabr, natural"]),
    "ratio_inf_without_linf": (["--methods", "CURE-l2", "--ratio-inf", "0.3"], ["--ratio-inf", "cure_l2"]),
    "weights_without_joint": (["--methods", "Max", "--weights", "0.3", "0.7"], ["--weights", "max"]),
    "ratio_1_without_l1": (["--methods", "Max", "--ratio-1", "0.3"], ["ratio_1", "no set"]),
    "finetune_preset_alone": (["--preset", "mnist-0.1-0.5-finetune"], ["--initial", "mnist-0.1-0.5-linf"]),
    "finetune_row_alone": (["--methods", "Finetune"], ["'SABR l_inf'", "--initial"]),
    "beta_too_large": (["--methods", "Scratch", "--beta", "1.5"], ["beta=1.5", "[0, 1]"]),
    "beta_nan": (["--methods", "Scratch", "--beta", "nan"], ["beta=nan"]),
    "eta_negative": (["--methods", "Scratch", "--eta", "-1"], ["eta=-1", "negative"]),
    "eta_infinite": (["--methods", "Scratch", "--eta", "inf"], ["eta=inf"]),
    "validation_and_n_test": (["--validation", "5", "--n-test", "5"], ["--n-test", "--validation"]),
    "validation_too_large": (["--validation", "40"], ["40"]),
    "seeds_twice": (["--seeds", "1", "2", "1"], ["seeds=[1, 2, 1]"]),
    "clip_norm": (["--clip-norm", "0"], ["clip_norm=0"]),
    "average_from": (["--average-from", "2"], ["average_from=2", "epochs=2"]),
    "no_initial_file": (["--methods", "Max", "--initial", "nowhere.pt"], ["nowhere.pt", "cannot be read"]),
}


@pytest.mark.parametrize("arguments, words", CONTRADICTIONS.values(), ids=CONTRADICTIONS)
def test_arguments_that_cannot_be_used_together(arguments, words, file, tmp_path, capsys):
    line = error_of(capsys, train_on(file, tmp_path / "run", *arguments))
    assert all(word in line for word in words), line
    assert not list(tmp_path.rglob("checkpoint.pt"))


def test_validation_images_come_from_the_training_set(file, tmp_path):
    assert train_on(file, tmp_path, "--methods", "natural", "--validation", 8) == 0
    written = json.loads((tmp_path / "table.json").read_text())
    assert written["rows"][0]["n"] == 8 and "validation" in written["settings"]["data"]
    assert written["settings"]["n_train"] == 32


def test_seeds_give_means_and_intervals(file, tmp_path, capsys):
    assert train_on(file, tmp_path / "all", "--methods", "natural", "Max", "--seeds", 3, 4, 5) == 0
    written = json.loads((tmp_path / "all" / "table.json").read_text())
    assert [row["runs"] for row in written["rows"]] == [3, 3] and len(written["runs"]) == 6
    for row in written["rows"]:
        runs = [one for one in written["runs"] if one["method"] == row["method"]]
        assert [one["seed"] for one in runs] == [3, 4, 5]
        for column in ("clean", "certified l_inf", "certified l_2", "certified union", "attacked union"):
            values = [one[column] for one in runs]
            half = 4.302653 * np.std(values, ddof=1) / np.sqrt(3)  # Student's t, 2 degrees of freedom, 95 %
            assert row[column] == pytest.approx(np.mean(values), abs=0.005)
            assert row[column + " ±"] == pytest.approx(half, abs=0.005)
    cells = (tmp_path / "all" / "table.md").read_text()
    assert cells.count("±") == 10 and f"{written['rows'][0]['clean']} ± {written['rows'][0]['clean ±']}" in cells
    assert train_on(file, tmp_path / "one", "--methods", "Max", "--seed", 4) == 0
    states = [load_checkpoint(path / "checkpoint.pt").model.state_dict()
              for path in (tmp_path / "all" / "max" / "seed_4", tmp_path / "one" / "max")]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def timeless(output):
    return [{key: value for key, value in row.items() if key != "seconds"}
            for row in json.loads((output / "table.json").read_text())["rows"]]


def test_resuming_a_half_finished_table(file, tmp_path, monkeypatch, capsys):
    chosen = ["--methods", "natural", "Joint"]
    assert train_on(file, tmp_path / "whole", *chosen) == 0
    original, started = experiment_module.train, []

    def interrupted(spec, data, sets, config, *rest):
        started.append(config.loss)
        if started == ["natural", "joint"]:
            raise KeyboardInterrupt
        return original(spec, data, sets, config, *rest)

    monkeypatch.setattr(experiment_module, "train", interrupted)
    assert train_on(file, tmp_path / "run", *chosen) == 130 and "--resume" in capsys.readouterr().err
    (tmp_path / "run" / ".table.json.0123.tmp").write_text("half of a table")
    certified, certify = [], experiment_module.certify
    monkeypatch.setattr(experiment_module, "certify", lambda *args: certified.append(1) or certify(*args))
    assert train_on(file, tmp_path / "run", *chosen, "--resume") == 0
    assert timeless(tmp_path / "run") == timeless(tmp_path / "whole")
    assert len(certified) == 1  # the first row's result was there
    assert train_on(file, tmp_path / "run", *chosen, "--resume") == 0 and len(certified) == 1
    assert not list((tmp_path / "run").rglob(".*.tmp"))
    assert "train.learning_rate: 0.002 -> 0.1" in error_of(capsys, train_on(
        file, tmp_path / "run", *chosen, "--resume", "--learning-rate", 0.1))


def test_resuming_certifies_again_where_the_test_images_changed(file, tmp_path):
    assert train_on(file, tmp_path / "run", "--methods", "natural") == 0
    write_npz(file, y_test=images(12, 1)[1].roll(1))  # of other classes: nearly none is right
    assert train_on(file, tmp_path / "run", "--methods", "natural", "--resume") == 0
    resumed = timeless(tmp_path / "run")
    assert train_on(file, tmp_path / "anew", "--methods", "natural") == 0
    assert resumed == timeless(tmp_path / "anew")


@pytest.mark.parametrize("name", ["checkpoint.pt", "table.json", "result.json", "config.json", "table.md"])
def test_a_full_disk_is_one_line(name, file, tmp_path, monkeypatch, capsys):
    original = os.replace

    def replace(source, target):
        if str(target).endswith(name):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(source, target)

    monkeypatch.setattr(os, "replace", replace)
    line = error_of(capsys, train_on(file, tmp_path / "run", "--methods", "natural"))
    assert "No space left" in line and str(tmp_path / "run") in line and "--resume" in line


# --- fine-tuning ------------------------------------------------------------------------------------------------------

def finetune(initial, file, output, *arguments):
    return main(["finetune", str(initial), "--data", str(file), "--output", str(output), "--epochs", "2",
                 "--batch-size", "16", "--milestones", "1", "--anneal-epochs", "1", "--no-progress",
                 *map(str, arguments)])


NORMALIZED = ModelSpec("mlp", (3, 4, 4), 3, (0.4, 0.5, 0.6), (0.2, 0.2, 0.3), {"hidden": [8]})


def test_finetuning_takes_network_and_radii_from_a_checkpoint(checkpoint, file, tmp_path, capsys):
    assert finetune(checkpoint, file, tmp_path / "run") == 0
    assert "| Finetune" in capsys.readouterr().out
    found = written_config(tmp_path / "run", "finetune")
    assert found["model"]["options"] == SPEC.options and [one["eps"] for one in found["perturbations"]] == [0.05, 0.1]
    train = found["train"]
    assert (train["loss"], train["loss_options"]["eta"], train["epochs"]) == ("cure", 0.5, 2)
    assert train["schedule"]["natural_epochs"] == 0 and train["projection"] is None
    assert found["initial_sha256"] == hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    flags = ["--eps-2", 0.3, "--eta", 2, "--beta", 0.25, "--seeds", 1, 2]
    assert finetune(checkpoint, file, tmp_path / "other", *flags) == 0
    other = written_config(tmp_path / "other", "finetune/seed_2")
    assert [one["eps"] for one in other["perturbations"]] == [0.05, 0.3]
    assert other["train"]["loss_options"]["eta"] == 2 and other["train"]["projection"]["beta"] == 0.25


def test_finetuning_goes_on_with_the_checkpoints_settings(file, tmp_path):
    """A fifth of the epochs, everything in proportion, and what the losses have in common."""
    config = dataclasses.replace(CONFIG, loss="sabr", loss_options={"ratio_inf": 0.7}, epochs=10, milestones=(5, 10),
                                 schedule=Schedule(1, 5), l1=1e-4)
    save_checkpoint(tmp_path / "toy.pt", SPEC.build(), SPEC, SETS, config, 1)
    assert main(["finetune", str(tmp_path / "toy.pt"), "--data", str(file), "--output", str(tmp_path / "run"),
                 "--no-progress"]) == 0
    train = written_config(tmp_path / "run", "finetune")["train"]
    assert train["loss_options"] == {"eta": 0.5, "ratio_inf": 0.7} and train["l1"] == 1e-4
    assert (train["epochs"], train["milestones"], train["batch_size"]) == (2, [1, 2], 16)
    assert train["schedule"]["anneal_epochs"] == pytest.approx(1)


def test_losses_that_are_no_default_row(file, tmp_path):
    flags = ["--methods", "MTL-IBP", "Max ball", "--alpha", 0.3, "--ratio-2", 0.4]
    assert train_on(file, tmp_path, *flags) == 0
    options = written_config(tmp_path, "mtl-ibp")["train"]["loss_options"]
    assert options["alpha"] == 0.3
    assert written_config(tmp_path, "max_ball")["train"]["loss_options"] == {"ratio_inf": 0.6, "region_2": "ball",
                                                                            "ratio_2": 0.4}


def test_finetuning_refuses_another_network_than_the_checkpoints(checkpoint, file, tmp_path, capsys):
    assert "--model" in error_of(capsys, finetune(checkpoint, file, tmp_path / "run", "--model", "mlp"))


def test_finetuning_on_images_of_another_shape(checkpoint, tmp_path, capsys):
    line = error_of(capsys, finetune(checkpoint, "digits", tmp_path / "run"))
    assert "(1, 8, 8)" in line and "(1, 4, 4)" in line and not (tmp_path / "run" / "finetune").exists()


def renamed(state):
    return {f"layers.{i}": value for i, value in enumerate(state.values())}


def without_counts(state):
    return {name: value for name, value in state.items() if "num_batches" not in name}


SHAPES = {"bare": lambda state: state, "renamed": renamed, "without_counts": without_counts,
          "data_parallel": lambda state: {f"module.{name}": value for name, value in state.items()},
          "compiled": lambda state: {f"_orig_mod.{name}": value for name, value in state.items()},
          "state_dict": lambda state: {"epoch": 3, "state_dict": state},
          "model": lambda state: {"model": renamed(state), "optimizer": {}},
          "double": lambda state: {name: value.double() for name, value in state.items()}}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_finetuning_from_a_plain_state_dict(shape, file, tmp_path):
    model = ModelSpec("cnn3", (1, 4, 4), 3, options={"width": 2}).build()
    torch.save(shape(model.state_dict()), tmp_path / "weights.pt")
    assert finetune(tmp_path / "weights.pt", file, tmp_path / "run", "--model", "cnn3", "--width", 2, "--eps-inf", 0.05,
                    "--eps-2", 0.1, "--learning-rate", 1e-12) == 0
    found = load_checkpoint(tmp_path / "run" / "finetune" / "checkpoint.pt").model
    for one, other in zip(model.parameters(), found.parameters()):
        assert torch.allclose(one, other, atol=1e-6)


def test_weights_of_a_network_without_normalisation(tmp_path):
    model = NORMALIZED.build()
    with torch.no_grad():
        plain = {name: torch.rand_like(value) for name, value in list(model.state_dict().items())[2:]}
    plain = {f"{int(name[0]) - 1}{name[1:]}": value for name, value in plain.items()}  # layers count from 0 again
    torch.save(plain, tmp_path / "weights.pt")
    before = model.state_dict()["0.mean"].clone()
    initial_weights(tmp_path / "weights.pt", model)
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), plain.values()))
    assert torch.equal(model.state_dict()["0.mean"], before)


class Code:
    """Pickles to a call that would leave a file behind."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def unsafe(path):
    torch.save({"0.weight": Code(path.with_name("trace"))}, path)


def whole_model(path):
    torch.save(SPEC.build(), path)


def other_shape(path):
    torch.save(ModelSpec("mlp", (1, 4, 4), 3, options={"hidden": [9]}).build().state_dict(), path)


def no_weights(path):
    torch.save({"epoch": 3}, path)


def a_list(path):
    torch.save([1, 2], path)


def empty(path):
    torch.save({}, path)


def text(path):
    path.write_text("weights")


UNUSABLE = {unsafe: "could run code", whole_model: "could run code", other_shape: "another architecture",
            no_weights: "hold no state dict", a_list: "hold no state dict", empty: "hold no state dict",
            text: "cannot be read"}


@pytest.mark.parametrize("make", UNUSABLE, ids=lambda one: one.__name__)
def test_files_that_nothing_can_start_from(make, file, tmp_path, capsys):
    path = tmp_path / "weights.pt"
    make(path)
    line = error_of(capsys, finetune(path, file, tmp_path / "run", "--model", "mlp"))
    assert UNUSABLE[make] in line and str(path) in line
    assert not (tmp_path / "trace").exists() and not list(tmp_path.rglob("checkpoint.pt"))


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
    output = tmp_path / "taken" / "run"
    code = train_on(file, output) if command == "train" else main(
        ["certify", str(checkpoint), "--data", str(file), "--output", str(output)])
    line = error_of(capsys, code)
    assert "cannot write" in line and str(tmp_path / "taken") in line


WRONG_CERTIFY = {
    "file": (["--output", "result.json"], ["result.json", "name a folder"]),
    "method": (["--methods", "IBP", "magic"], ["'magic'", "CROWN-Optimized"]),
    "no_time": (["--time-limit", "0"], ["time_limit=0.0", "positive"]),
    "negative_time": (["--total-time-limit", "-1"], ["total_time_limit=-1.0", "positive"]),
    "nan_time": (["--time-limit", "nan"], ["time_limit=nan", "positive"]),
    "attacks": (["--no-attack", "--attack-steps", "5"], ["--no-attack", "--attack-steps"]),
    "attack_steps": (["--attack-steps", "0"], ["steps=0"]),
    "shard": (["--output", "r", "--shard", "2/2"], ["shard=2/2", "from 0 to 1"]),
    "shard_text": (["--output", "r", "--shard", "two"], ["--shard two", "0/4"]),
    "shard_alone": (["--shard", "0/2"], ["--shard needs --output"]),
    "resume_alone": (["--resume"], ["--resume needs --output"]),
    "device": (["--device", "nonsense"], ["device='nonsense'"]),
}


@pytest.mark.parametrize("arguments, words", WRONG_CERTIFY.values(), ids=WRONG_CERTIFY)
def test_what_certify_cannot_use(arguments, words, file, checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    line = error_of(capsys, main(["certify", str(checkpoint), "--data", str(file), "--no-progress", *arguments]))
    assert all(word in line for word in words), line
    assert not list(tmp_path.rglob("records*"))


def test_certify_without_labels(checkpoint, tmp_path, capsys):
    file = write_npz(tmp_path / "unlabelled.npz", y_test=None)
    line = error_of(capsys, certify_into(tmp_path / "r", checkpoint, file))
    assert "y_test" in line and "missing" in line and "unlabelled.npz" in line


def test_certify_refuses_the_folder_of_another_run(checkpoint, file, tmp_path, capsys):
    assert certify_into(tmp_path / "r", checkpoint, file) == 0
    capsys.readouterr()
    line = error_of(capsys, certify_into(tmp_path / "r", checkpoint, file, "--eps-inf", 0.07, "--resume"))
    assert "another certification" in line and "sets.0.eps: 0.05 there, 0.07 now" in line


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
    assert certify_into(tmp_path / "r", checkpoint, file) == 0
    assert summary_in(tmp_path / "r")["result"]["certified_union"] == 0


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
