"""The commands ``train`` and ``presets``: what flags and presets come to, and what is written."""

import json

import numpy as np
import pytest
import torch

from lirpa_multinorm.certification import METHODS
from lirpa_multinorm.cli import main
from lirpa_multinorm.experiments.comparison import QUICK_METHODS
from lirpa_multinorm.experiments.presets import load_preset, preset_names
from lirpa_multinorm.training import load_checkpoint
from tests.cli.runs import error_of, train_on, written_config

pytest.importorskip("sklearn")  # for the data set "digits"
pytestmark = pytest.mark.usefixtures("no_figures")

TINY = [
    "--n-train",
    "64",
    "--n-test",
    "6",
    "--epochs",
    "2",
    "--batch-size",
    "32",
    "--width",
    "2",
    "--no-progress",
    "--natural-epochs",
    "1",
    "--anneal-epochs",
    "1",
    "--milestones",
    "1",
]

SHORT = [
    "--epochs",
    "2",
    "--batch-size",
    "16",
    "--natural-epochs",
    "0",
    "--anneal-epochs",
    "1",
    "--no-progress",
]


def preset_run(output, *arguments):
    return main(
        [
            "train",
            "--preset",
            "mnist-0.3-1.0-scratch",
            "--output",
            str(output),
            *SHORT,
            *map(str, arguments),
        ]
    )


# --- runs and their tables ------------------------------------------------------------------------


def test_train_and_certify_digits(tmp_path, capsys):
    output = tmp_path / "run"
    assert main(["train", "--output", str(output), "--losses", "natural", "Max", *TINY]) == 0
    printed = capsys.readouterr().out
    assert (
        "| natural" in printed
        and "| Max" in printed
        and "certified union" in printed
        and str(output) in printed
    )
    rows = json.loads((output / "table.json").read_text())["rows"]
    assert [(row["method"], row["n"]) for row in rows] == [("natural", 6), ("Max", 6)]
    found = load_checkpoint(output / "max" / "checkpoint.pt")
    assert (found.spec.name, found.spec.options, found.epoch) == ("cnn_small", {"width": 2}, 2)
    assert (found.config.loss, found.config.milestones, found.config.batch_size) == (
        "max",
        (1,),
        32,
    )
    assert found.config.loss_options == {"ratio_inf": 0.6}  # the defaults on digits

    result = tmp_path / "results" / "digits"
    assert (
        main(
            [
                "certify",
                str(output / "max" / "checkpoint.pt"),
                "--n-test",
                "6",
                "--batch-size",
                "4",
                "--output",
                str(result),
                "--no-progress",
            ]
        )
        == 0
    )
    assert "certified l_inf 0.1" in capsys.readouterr().out
    written = json.loads((result / "summary.json").read_text())
    assert written["result"]["n"] == 6 and written["data"] == "digits"
    assert [one["eps"] for one in written["perturbations"]] == [0.1, 0.4]  # those of the checkpoint
    assert 100 * written["result"]["clean"] == pytest.approx(rows[1]["clean"], abs=0.01)
    assert 100 * written["result"]["certified_union"] == pytest.approx(
        rows[1]["certified union"], abs=0.01
    )


def test_the_old_name_of_losses_still_works_and_says_the_new_one(file, tmp_path, capsys):
    assert train_on(file, tmp_path / "old", "--methods", "natural", "Max") == 0
    assert capsys.readouterr().err == "note: --methods is now called --losses\n"
    assert train_on(file, tmp_path / "new", "--losses", "natural", "Max") == 0
    assert "--methods" not in capsys.readouterr().err
    for row in ("natural", "max"):
        configs = [written_config(tmp_path / name, row) for name in ("old", "new")]
        assert configs[0]["run_sha256"] == configs[1]["run_sha256"]


def test_the_help_names_losses_only(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    text = capsys.readouterr().out
    assert "--losses LOSS" in text and " --methods" not in text


@pytest.mark.parametrize(
    "words, methods",
    [
        ((), QUICK_METHODS),
        (("default",), METHODS),
        (("crown", "Lipschitz"), ("CROWN", "Lipschitz")),
    ],
)
def test_how_trained_networks_are_certified(words, methods, file, tmp_path):
    flag = ("--certify-methods", *words) if words else ()
    few = ("--losses", "natural", "--n-test", 2)
    assert train_on(file, tmp_path / "run", *few, *flag) == 0
    settings = json.loads((tmp_path / "run" / "table.json").read_text())["settings"]
    assert settings["certification"]["methods"] == list(methods)


def test_an_unknown_way_of_certifying_is_named(file, tmp_path, capsys):
    assert "CROWNN" in error_of(
        capsys, train_on(file, tmp_path / "run", "--certify-methods", "CROWNN")
    )


def test_options_reach_the_training(file, tmp_path):
    assert (
        train_on(
            file,
            tmp_path / "run",
            "--losses",
            "Joint",
            "--ratio-inf",
            0.7,
            "--ratio-2",
            0.3,
            "--region-2",
            "ball",
            "--l1",
            1e-4,
            "--seed",
            3,
            "--learning-rate",
            0.01,
            "--eps-inf",
            0.02,
            "--eps-2",
            0.1,
        )
        == 0
    )
    found = load_checkpoint(tmp_path / "run" / "joint" / "checkpoint.pt")
    assert found.config.loss_options == {"ratio_inf": 0.7, "ratio_2": 0.3, "region_2": "ball"}
    assert (found.config.l1, found.config.seed, found.config.learning_rate) == (1e-4, 3, 0.01)
    assert [one.eps for one in found.perturbations] == [0.02, 0.1]


def test_the_same_seed_gives_the_same_table(file, tmp_path):
    tables = []
    for name in ("first", "second"):
        assert train_on(file, tmp_path / name, "--losses", "Random") == 0
        (row,) = json.loads((tmp_path / name / "table.json").read_text())["rows"]
        tables.append({key: value for key, value in row.items() if key != "seconds"})
    assert tables[0] == tables[1]


def test_losses_that_are_no_default_row(file, tmp_path):
    flags = ["--losses", "MTL-IBP", "Max ball", "--alpha", 0.3, "--ratio-2", 0.4]
    assert train_on(file, tmp_path, *flags) == 0
    options = written_config(tmp_path, "mtl-ibp")["train"]["loss_options"]
    assert options["alpha"] == 0.3
    assert written_config(tmp_path, "max_ball")["train"]["loss_options"] == {
        "ratio_inf": 0.6,
        "region_2": "ball",
        "ratio_2": 0.4,
    }


def test_margins_by_crown_ibp_and_taps(file, tmp_path, capsys):
    flags = [
        "--losses",
        "CROWN-IBP",
        "TAPS",
        "STAPS",
        "Max",
        "--bounding-2",
        "CROWN-IBP",
        "--crown-share-2",
        0.5,
    ]
    assert train_on(file, tmp_path / "all", *flags, "--taps-layers-inf", 1) == 0
    rows = json.loads((tmp_path / "all" / "table.json").read_text())["rows"]
    assert [row["method"] for row in rows] == ["CROWN-IBP", "TAPS", "STAPS", "Max"]
    for name in ("crown-ibp", "taps", "staps", "max"):
        options = written_config(tmp_path / "all", name)["train"]["loss_options"]
        assert options["bounding_2"] == "CROWN-IBP" and options["taps_inf"] == {"layers": 1}
    assert train_on(file, tmp_path / "deep", "--losses", "TAPS", "--taps-layers-2", 4) == 2
    found = error_of(capsys, 2)
    assert "taps of the l_2" in found and "layers=4" in found and "use at most 1" in found


def test_validation_images_come_from_the_training_set(file, tmp_path):
    assert train_on(file, tmp_path, "--losses", "natural", "--validation", 8) == 0
    written = json.loads((tmp_path / "table.json").read_text())
    assert written["rows"][0]["n"] == 8 and "validation" in written["settings"]["data"]
    assert written["settings"]["n_train"] == 32


def test_seeds_give_means_and_intervals(file, tmp_path, capsys):
    assert train_on(file, tmp_path / "all", "--losses", "natural", "Max", "--seeds", 3, 4, 5) == 0
    written = json.loads((tmp_path / "all" / "table.json").read_text())
    assert [row["runs"] for row in written["rows"]] == [3, 3] and len(written["runs"]) == 6
    for row in written["rows"]:
        runs = [one for one in written["runs"] if one["method"] == row["method"]]
        assert [one["seed"] for one in runs] == [3, 4, 5]
        for column in (
            "clean",
            "certified l_inf",
            "certified l_2",
            "certified union",
            "attacked union",
        ):
            values = [one[column] for one in runs]
            half = (
                4.302653 * np.std(values, ddof=1) / np.sqrt(3)
            )  # Student's t, 2 degrees of freedom, 95 %
            assert row[column] == pytest.approx(np.mean(values), abs=0.005)
            assert row[column + " ±"] == pytest.approx(half, abs=0.005)
    cells = (tmp_path / "all" / "table.md").read_text()
    assert (
        cells.count("±") == 10
        and f"{written['rows'][0]['clean']} ± {written['rows'][0]['clean ±']}" in cells
    )
    assert train_on(file, tmp_path / "one", "--losses", "Max", "--seed", 4) == 0
    states = [
        load_checkpoint(path / "checkpoint.pt").model.state_dict()
        for path in (tmp_path / "all" / "max" / "seed_4", tmp_path / "one" / "max")
    ]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


# --- presets and flags ----------------------------------------------------------------------------


def test_presets_are_listed(capsys):
    assert main(["presets"]) == 0
    printed = capsys.readouterr().out
    assert all(f"| {name} " in printed for name in preset_names()) and len(preset_names()) > 20


def test_a_preset_can_be_changed_by_flags(file, tmp_path, capsys):
    output, name = tmp_path / "run", "mnist-0.3-1.0-scratch"
    flags = [
        "--data",
        file,
        "--model",
        "cnn3",
        "--width",
        2,
        "--eps-2",
        0.2,
        "--learning-rate",
        0.003,
        "--decay",
        0.5,
        "--milestones",
        1,
        "--kappa-start",
        0.25,
        "--l1",
        0.001,
        "--regularizer",
        0.125,
        "--initialization",
        "default",
        "--clip-norm",
        3,
        "--average-from",
        1,
        "--precise-bn",
        "--augment",
        "cifar",
        "--seed",
        4,
        "--ratio-inf",
        0.75,
        "--ratio-2",
        0.5,
        "--region-2",
        "ball",
        "--shrink-inf",
        0.25,
        "--mix-2",
        "cc",
        "--alpha-2",
        0.75,
        "--eta",
        0.25,
        "--target",
        "inf",
        "--detach",
        "--beta",
        0.125,
    ]
    assert preset_run(output, *flags) == 0
    assert f"| {name} " in capsys.readouterr().out
    found = written_config(output, name)
    train = found["train"]
    assert (
        found["model"]["name"] == "cnn3"
        and found["model"]["options"]["width"] == 2
        and found["data"] == "toy"
    )
    assert [one["eps"] for one in found["perturbations"]] == [0.3, 0.2]  # the first is the preset's
    assert train["loss"] == "cure" and train["projection"]["beta"] == 0.125
    assert {
        name: train["loss_options"][name]
        for name in (
            "ratio_inf",
            "ratio_2",
            "region_2",
            "shrink_inf",
            "mix_2",
            "alpha_2",
            "eta",
            "target",
            "detach",
        )
    } == {
        "ratio_inf": 0.75,
        "ratio_2": 0.5,
        "region_2": "ball",
        "shrink_inf": 0.25,
        "mix_2": "cc",
        "alpha_2": 0.75,
        "eta": 0.25,
        "target": "inf",
        "detach": True,
    }
    expected = {
        "epochs": 2,
        "batch_size": 16,
        "learning_rate": 0.003,
        "decay": 0.5,
        "milestones": [1],
        "l1": 0.001,
        "regularizer": 0.125,
        "initialization": "default",
        "clip_norm": 3.0,
        "average_from": 1,
        "precise_bn": True,
        "augment": "cifar",
        "seed": 4,
    }
    assert {name: train[name] for name in expected} == expected
    assert train["schedule"] == {
        "natural_epochs": 0.0,
        "anneal_epochs": 1.0,
        "kappa_start": 0.25,
        "kappa_end": load_preset("mnist-0.3-1.0-scratch").train.schedule.kappa_end,
    }


OTHERS = {
    "mnist-union-0.1-0.5": {
        "ratio_inf": 0.1
    },  # the recipe's margins by Lipschitz constants are its own
    "mnist-0.3-1.0-scratch": {"ratio_inf": 0.6, "ratio_2": 1e-5},
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_methods_beside_a_preset_share_all_but_its_method(name, file, tmp_path):
    assert (
        main(
            [
                "train",
                "--preset",
                name,
                "--losses",
                "Max",
                "natural",
                "--data",
                str(file),
                "--model",
                "mlp",
                "--augment",
                "none",
                *SHORT,
                "--output",
                str(tmp_path),
            ]
        )
        == 0
    )
    preset = load_preset(name).train
    trained = {row: written_config(tmp_path, row)["train"] for row in ("max", "natural", name)}
    assert {row: train["loss"] for row, train in trained.items()} == {
        "max": "max",
        "natural": "natural",
        name: preset.loss,
    }
    assert trained["max"]["loss_options"] == {
        **OTHERS[name],
        "attack": preset.to_dict()["loss_options"]["attack"],
    }
    assert (
        trained[name]["loss_options"] == preset.to_dict()["loss_options"]
        and not trained["max"]["projection"]
    )
    assert trained[name]["projection"] == preset.to_dict()["projection"]
    for other in ("learning_rate", "decay", "schedule", "regularizer"):
        assert trained["max"][other] == trained[name][other]


def test_the_released_codes_version_of_a_preset(file, tmp_path):
    flags = [
        "--data",
        file,
        "--model",
        "cnn3",
        "--width",
        2,
        "--eps-inf",
        0.05,
        "--eps-2",
        0.2,
        "--released",
    ]
    assert preset_run(tmp_path, *flags) == 0
    train = written_config(tmp_path, "mnist-0.3-1.0-scratch")["train"]
    assert train["projection"] == {
        "beta": 0.8,
        "statistics": "mixed",
        "optimizer": "copy",
        "accumulate": True,
    }
    assert train["loss_options"]["region_2"] == "released"


def test_flags_override_what_rows_say(file, tmp_path):
    chosen = ["--losses", "SABR l_inf", "CURE-l2", "Max", "Scratch", "Finetune"]
    assert (
        train_on(
            file,
            tmp_path,
            *chosen,
            "--beta",
            0.3,
            "--eta",
            1,
            "--regularizer",
            0.25,
            "--ratio-2",
            0.5,
        )
        == 0
    )
    found = {
        row: written_config(tmp_path, row)["train"]
        for row in ("sabr_l_inf", "cure-l2", "max", "scratch", "finetune")
    }
    assert found["scratch"]["projection"]["beta"] == 0.3
    assert [name for name, one in found.items() if one["projection"]] == [
        "scratch"
    ]  # it makes no other row project
    assert {name: one["loss_options"].get("eta") for name, one in found.items()} == {
        "sabr_l_inf": None,
        "cure-l2": None,
        "max": None,
        "scratch": 1,
        "finetune": 1,
    }
    assert [one["regularizer"] for one in found.values()] == [0.25] * 5
    assert [one["loss_options"].get("ratio_2") for one in found.values()] == [
        None,
        0.5,
        0.5,
        0.5,
        0.5,
    ]


def test_without_flags_rows_say_what_they_say(file, tmp_path):
    assert train_on(file, tmp_path, "--losses", "CURE-l2", "Scratch") == 0
    assert written_config(tmp_path, "scratch")["train"]["projection"]["beta"] == 0.5
    assert written_config(tmp_path, "cure-l2")["train"]["regularizer"] == 0


# --- the length of a run --------------------------------------------------------------------------


def schedule_in(output, row):
    train = written_config(output, row)["train"]
    lengths = train["schedule"]["natural_epochs"], train["schedule"]["anneal_epochs"]
    return train["epochs"], train["milestones"], *(round(length, 6) for length in lengths)


@pytest.mark.parametrize(
    "flags, expected",
    [
        ([], (4, [3, 3], 0.2, 1.5)),
        (["--anneal-epochs", 2], (4, [3, 3], 0.2, 2)),
        (["--natural-epochs", 0, "--milestones", 1], (4, [1], 0, 1.5)),
        (["--anneal-epochs", "50%", "--milestones", "50%", 0.75], (4, [2, 3], 0.2, 2)),
        (["--milestones"], (4, [], 0.2, 1.5)),
    ],
    ids=str,
)
def test_epochs_keep_the_proportions_of_what_is_not_given(flags, expected, file, tmp_path):
    """The defaults are 40 epochs, 2 of them natural and 15 of annealing, milestones 30 and 36."""
    assert train_on(file, tmp_path, "--losses", "Max", "--epochs", 4, *flags) == 0
    assert schedule_in(tmp_path, "max") == expected


def test_epochs_keep_the_proportions_of_a_preset(file, tmp_path):
    assert (
        main(
            [
                "train",
                "--preset",
                "mnist-0.1-0.5-max",
                "--data",
                str(file),
                "--model",
                "cnn3",
                "--width",
                "2",
                "--epochs",
                "7",
                "--batch-size",
                "16",
                "--no-progress",
                "--output",
                str(tmp_path),
            ]
        )
        == 0
    )
    assert schedule_in(tmp_path, "mnist-0.1-0.5-max") == (7, [5, 6], 0.1, 2)


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--anneal-epochs", 20], "% of the radius"),
        (["--losses", "Scratch", "--anneal-epochs", 1.9], "never start"),
        (["--anneal-epochs", "inf"], "anneal_epochs=inf"),
        (["--anneal-epochs", "150%"], "anneal_epochs='150%'"),
    ],
    ids=str,
)
def test_a_run_too_short_is_one_line_before_any_row(flags, words, file, tmp_path, capsys):
    assert words in error_of(capsys, train_on(file, tmp_path / "run", *flags))
    assert not (tmp_path / "run").exists()


def test_a_partial_radius_may_be_asked_for(file, tmp_path):
    assert (
        train_on(file, tmp_path, "--losses", "Max", "--anneal-epochs", 20, "--partial-radius") == 0
    )
    assert schedule_in(tmp_path, "max")[3] == 20
