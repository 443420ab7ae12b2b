"""The commands ``train`` and ``presets``: what flags and presets come to, and what is written."""

import json

import numpy as np
import pytest
import torch

from lirpa_multinorm.certification import METHODS
from lirpa_multinorm.cli import main
from lirpa_multinorm.experiments.comparison import QUICK_METHODS
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
    loaded = load_checkpoint(output / "max" / "checkpoint.pt")
    assert (loaded.spec.name, loaded.spec.options, loaded.epoch) == ("cnn_small", {"width": 2}, 2)
    assert (loaded.config.loss, loaded.config.milestones, loaded.config.batch_size) == (
        "max",
        (1,),
        32,
    )
    assert loaded.config.loss_options == {"ratio_inf": 0.6}  # the defaults on digits

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
    assert [item["eps"] for item in written["perturbations"]] == [
        0.1,
        0.4,
    ]  # those of the checkpoint
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
    assert train_on(file, tmp_path / "run", *few, *flag, methods=()) == 0
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
    loaded = load_checkpoint(tmp_path / "run" / "joint" / "checkpoint.pt")
    assert loaded.config.loss_options == {"ratio_inf": 0.7, "ratio_2": 0.3, "region_2": "ball"}
    assert (loaded.config.l1, loaded.config.seed, loaded.config.learning_rate) == (1e-4, 3, 0.01)
    assert [item.eps for item in loaded.perturbations] == [0.02, 0.1]


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
    loaded = error_of(capsys, 2)
    assert "taps of the l_2" in loaded and "layers=4" in loaded and "use at most 1" in loaded


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
        runs = [item for item in written["runs"] if item["method"] == row["method"]]
        assert [item["seed"] for item in runs] == [3, 4, 5]
        for column in (
            "clean",
            "certified l_inf",
            "certified l_2",
            "certified union",
            "attacked union",
        ):
            values = [item[column] for item in runs]
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
