"""Several losses side by side: the table, its files, and what an interruption leaves."""

import dataclasses
import json
from types import SimpleNamespace

import pytest
import torch

import lirpa_multinorm.experiments.comparison as experiment_module
from lirpa_multinorm import (
    AttackSettings,
    CertifySettings,
    PerturbationL1Box,
    PerturbationL2Box,
    PerturbationLinf,
    certify,
)
from lirpa_multinorm.errors import InvalidArgumentError, OutputFolderError
from lirpa_multinorm.experiments.comparison import Experiment
from lirpa_multinorm.experiments.rows import ROWS, row_folder
from lirpa_multinorm.training import Schedule, load_checkpoint
from lirpa_multinorm.training.run_folder import digest
from tests.toy import CONFIG, SETS, SPEC, data

CERTIFICATION = CertifySettings(methods=("IBP", "CROWN"), attack=AttackSettings(steps=5))
COLUMNS = [
    "method",
    "clean",
    "certified l_inf",
    "certified l_2",
    "certified union",
    "attacked union",
    "n",
    "seconds",
]
TWO = {name: ROWS[name] for name in ("natural", "Max")}


def experiment(**changes):
    made = Experiment(data(), SPEC, SETS, CONFIG, CERTIFICATION)
    return dataclasses.replace(made, **changes)


def headings(folder):
    line = (folder / "table.md").read_text().splitlines()[0]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_run_writes_everything_it_says(tmp_path, monkeypatch):
    clock = iter([0.0, 2.5, 10.0, 14.0])  # start and end of each training
    monkeypatch.setattr(
        experiment_module, "time", SimpleNamespace(perf_counter=lambda: next(clock))
    )
    table = experiment().run(tmp_path, TWO, progress=False)
    assert [row["method"] for row in table] == ["natural", "Max"] and list(table[0]) == COLUMNS
    assert [(row["n"], row["seconds"]) for row in table] == [(12, 2.5), (12, 4.0)]
    assert all(
        0 <= row["certified union"] <= row["attacked union"] <= row["clean"] <= 100 for row in table
    )
    written = json.loads((tmp_path / "table.json").read_text())
    assert written["rows"] == table and headings(tmp_path) == COLUMNS
    assert (tmp_path / "table.png").read_bytes().startswith(b"\x89PNG")
    for folder in ("natural", "max"):
        assert {path.name for path in (tmp_path / folder).iterdir()} - {"tensorboard"} == {
            ".run.lock",
            "checkpoint.pt",
            "config.json",
            "log.jsonl",
            "result.json",
            "curves.png",
        }


@pytest.mark.usefixtures("no_figures")
def test_rows_are_the_certification_of_the_saved_networks(tmp_path):
    (row,) = experiment().run(tmp_path, {"Joint": ROWS["Joint"]}, progress=False)
    images = data()
    loaded = certify(
        load_checkpoint(tmp_path / "joint" / "checkpoint.pt").model,
        images.x_test,
        images.y_test,
        SETS,
        CERTIFICATION,
    ).summary()
    percent = [
        round(100 * share, 2)
        for share in (
            loaded["clean"],
            *loaded["certified"],
            loaded["certified_union"],
            loaded["attacked_union"],
        )
    ]
    assert [row[name] for name in COLUMNS[1:6]] == percent


@pytest.mark.usefixtures("no_figures")
def test_settings_are_recorded(tmp_path):
    experiment().run(tmp_path, {"natural": ROWS["natural"]}, progress=False)
    settings = json.loads((tmp_path / "table.json").read_text())["settings"]
    assert (settings["data"], settings["n_train"], settings["n_test"]) == ("toy", 40, 12)
    assert settings["model"] == SPEC.to_dict() and settings["train"]["batch_size"] == 16
    assert [(item["norm"], item["eps"]) for item in settings["perturbations"]] == [
        ("inf", 0.05),
        ("2", 0.1),
    ]
    assert settings["certification"]["methods"] == ["IBP", "CROWN"]
    assert settings["certification"]["attack"]["steps"] == 5
    assert settings["environment"]["torch"] == torch.__version__


@pytest.mark.usefixtures("no_figures")
def test_all_rows_of_the_paper(tmp_path):
    table = experiment().run(tmp_path, progress=False)
    assert [row["method"] for row in table] == list(ROWS)
    for name, row in ROWS.items():
        config = json.loads((tmp_path / row_folder(name) / "config.json").read_text())
        assert config["train"]["loss"] == row["loss"]


def test_common_options_go_to_the_losses_that_know_them(tmp_path):
    config = dataclasses.replace(
        CONFIG, loss_options={"ratio_inf": 0.7, "ratio_2": 0.2, "region_2": "ball"}, seed=5
    )
    made = experiment(config=config)
    expected = {
        "natural": {},
        "SABR l_inf": {"ratio_inf": 0.7},
        "CURE-l2": {"ratio_2": 0.2, "region_2": "ball"},
        "Finetune": {**config.loss_options, "eta": 0.5},
    }
    for name, row in ROWS.items():
        loaded = made.row_config(row)
        assert loaded.loss_options == expected.get(name, config.loss_options)
        assert (loaded.loss, loaded.seed) == (row["loss"], 5)
        assert loaded.epochs == (config.epochs if name != "Finetune" else 1)


def test_rows_may_have_settings_of_their_own():
    row = {"loss": "joint", "loss_options": {"ratio_2": 0.3, "weights": [0.4, 0.6]}, "epochs": 9}
    made = experiment(
        config=dataclasses.replace(CONFIG, loss_options={"ratio_inf": 0.7, "ratio_2": 0.2})
    )
    loaded = made.row_config(row)
    assert (
        loaded.loss_options == {"ratio_inf": 0.7, "ratio_2": 0.3, "weights": [0.4, 0.6]}
        and loaded.epochs == 9
    )


SETS_AND_COLUMNS = {
    "l1_too": (
        [*SETS, PerturbationL1Box(0.2)],
        ["certified l_inf", "certified l_2", "certified l_1"],
    ),
    "two_radii": (
        [PerturbationLinf(0.02), PerturbationLinf(0.3)],
        ["certified l_inf 0.02", "certified l_inf 0.3"],
    ),
    "one": ([PerturbationL2Box(0.1)], ["certified l_2"]),
}


@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize("sets, columns", SETS_AND_COLUMNS.values(), ids=SETS_AND_COLUMNS)
def test_every_set_has_a_column(tmp_path, sets, columns):
    (row,) = experiment(perturbations=sets).run(
        tmp_path, {"natural": ROWS["natural"]}, progress=False
    )
    assert headings(tmp_path) == list(row) == ["method", "clean", *columns, *COLUMNS[4:]]


def test_an_interruption_keeps_the_rows_that_are_done(tmp_path, monkeypatch):
    original = experiment_module.train

    def interrupted(spec, images, sets, config, *rest):
        if config.loss == "max":
            raise KeyboardInterrupt
        return original(spec, images, sets, config, *rest)

    monkeypatch.setattr(experiment_module, "train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        experiment().run(tmp_path, TWO, progress=False)
    assert [row["method"] for row in json.loads((tmp_path / "table.json").read_text())["rows"]] == [
        "natural"
    ]
    assert "natural" in (tmp_path / "table.md").read_text() and (tmp_path / "table.png").is_file()


def test_an_unwritable_folder_is_found_first(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(experiment_module, "train", lambda *_: pytest.fail("training has started"))
    with pytest.raises(OutputFolderError, match="cannot write to the folder"):
        experiment().run(tmp_path / "file" / "run", progress=False)


def test_no_rows_make_no_table(tmp_path):
    assert experiment().run(tmp_path, {}, progress=False) == []
    assert {path.name for path in tmp_path.iterdir()} == {".run.lock", "config.json"}


@pytest.mark.usefixtures("no_figures")
def test_a_row_that_starts_from_another_comes_after_it(tmp_path):
    rows = {name: ROWS[name] for name in ("Finetune", "SABR l_inf")}
    config = dataclasses.replace(
        CONFIG,
        epochs=5,
        schedule=Schedule(1, 2, 0.5, 0.25),
        milestones=(4,),
        initialization="shi",
        average_from=3,
    )
    table = experiment(config=config, seeds=(1, 2)).run(tmp_path, rows, progress=False)
    assert [row["method"] for row in table] == ["SABR l_inf", "Finetune"] and [
        row["runs"] for row in table
    ] == [2, 2]
    for seed in (1, 2):
        start = load_checkpoint(
            tmp_path / "sabr_l_inf" / f"seed_{seed}" / "checkpoint.pt"
        ).model.state_dict()
        loaded = json.loads((tmp_path / "finetune" / f"seed_{seed}" / "config.json").read_text())
        assert loaded["initial_sha256"] == digest(*start.values())
        train = loaded["train"]
        assert (train["epochs"], train["milestones"], train["seed"], train["loss"]) == (
            1,
            [],
            seed,
            "cure",
        )
        assert train["schedule"] == {
            "natural_epochs": 0,
            "anneal_epochs": pytest.approx(0.4),
            "kappa_start": 0.25,
            "kappa_end": 0.25,
            "ramp": "smooth",
            "radius_start": 0.0,
        }
        assert (train["initialization"], train["average_from"]) == ("default", None)


@pytest.mark.usefixtures("no_figures")
def test_all_rows_may_start_from_a_file(tmp_path):
    torch.save(SPEC.build().state_dict(), tmp_path / "weights.pt")
    config = dataclasses.replace(CONFIG, epochs=1, learning_rate=1e-12)
    made = experiment(config=config, initial=tmp_path / "weights.pt")
    made.run(
        tmp_path / "run", {name: ROWS[name] for name in ("natural", "Finetune")}, progress=False
    )
    weights = torch.load(tmp_path / "weights.pt", weights_only=True)
    for folder in ("natural", "finetune"):
        loaded = load_checkpoint(tmp_path / "run" / folder / "checkpoint.pt").model.state_dict()
        assert all(torch.allclose(loaded[name], weights[name], atol=1e-6) for name in weights)


@pytest.mark.parametrize("name, folder", [("SABR l_inf", "sabr_l_inf"), ("Max", "max")])
def test_row_folder(name, folder):
    assert row_folder(name) == folder


@pytest.mark.parametrize(
    "rows",
    [
        {"IBP": {"loss": "ibp"}, "ibp": {"loss": "ibp"}},
        {"/": {"loss": "ibp"}},
        {"a/b": {"loss": "ibp"}},
        {"..": {"loss": "ibp"}},
    ],
    ids=str,
)
def test_rows_without_a_folder_of_their_own_are_found_first(rows, tmp_path):
    with pytest.raises(InvalidArgumentError, match="^rows: .*rename it"):
        experiment().run(tmp_path, rows, progress=False)
    assert not list(tmp_path.rglob("*.pt"))
