"""One folder, one run, for whole comparisons.

Locks, refusals, results that belong to their weights, signals.
"""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

import lirpa_multinorm.experiments.comparison as experiment_module
from lirpa_multinorm import AttackSettings, CertifySettings
from lirpa_multinorm.errors import InvalidArgumentError, OutputFolderError
from lirpa_multinorm.experiments.comparison import Experiment
from lirpa_multinorm.experiments.rows import ROWS
from lirpa_multinorm.training import load_checkpoint, save_checkpoint
from lirpa_multinorm.utils.files import exclusive
from tests.cli.runs import error_of, train_on
from tests.processes import FORKS
from tests.toy import CONFIG, SETS, SPEC, data, is_locked
from tests.training import folder_races
from tests.training.comparisons import timeless, written

pytestmark = pytest.mark.usefixtures("no_figures")
NATURAL = {"natural": ROWS["natural"]}


def experiment(**changes):
    made = Experiment(
        data(),
        SPEC,
        SETS,
        dataclasses.replace(CONFIG, epochs=2),
        CertifySettings(methods=("IBP",), attack=AttackSettings(steps=2)),
    )
    return dataclasses.replace(made, **changes)


def go(folder, rows=NATURAL, made=None, **choices):
    return (made or experiment()).run(folder, rows, progress=False, **choices)


# --- two processes --------------------------------------------------------------------------------


@pytest.mark.skipif(not FORKS, reason="starting anew takes too long")
@pytest.mark.parametrize("count", [1, pytest.param(100, marks=pytest.mark.slow)])
def test_of_two_that_start_at_the_same_moment_one_runs_and_one_says_why_not(count, tmp_path):
    races = folder_races.races(tmp_path, count)
    assert len(races) == count
    for race in races:
        assert sorted(race["codes"]) == [0, 2], race
        winner = race["codes"].index(0)
        (line,) = race["errors"][1 - winner].splitlines()
        assert (
            line.startswith("error: output: ")
            and race["folder"] in line
            and race["errors"][winner] == ""
        )
        assert "another process has a run" in line or "holds a run already" in line
        assert "--resume" in line and "--overwrite" in line
        folder = Path(race["folder"])
        assert [path.name for path in (folder / "natural").iterdir()] == [f"seed_{winner}"]
        run = folder / "natural" / f"seed_{winner}"
        seeds = (
            load_checkpoint(run / "checkpoint.pt").config.seed,
            written(run / "config.json")["train"]["seed"],
        )
        assert seeds == (winner, winner)
        assert [
            json.loads(line)["epoch"] for line in (run / "log.jsonl").read_text().splitlines()
        ] == [1, 2]


def test_a_comparison_locks_its_folder(tmp_path, monkeypatch):
    with exclusive(tmp_path / "run"):
        with pytest.raises(OutputFolderError, match="another process has a run"):
            go(tmp_path)
    original, held = experiment_module.certify, []

    def certify(*args):
        held.append(is_locked(tmp_path))
        return original(*args)

    monkeypatch.setattr(experiment_module, "certify", certify)
    go(tmp_path)
    assert held == [True] and not is_locked(tmp_path)


# --- whose table it is ----------------------------------------------------------------------------


def test_every_file_names_its_run(tmp_path):
    go(tmp_path)
    run, table = written(tmp_path / "natural" / "config.json"), written(tmp_path / "table.json")
    result = written(tmp_path / "natural" / "result.json")["settings"]
    assert (
        table["run_sha256"] == written(tmp_path / "config.json")["run_sha256"] != run["run_sha256"]
    )
    assert result["run_sha256"] == run["run_sha256"] and result["model"] == SPEC.to_dict()
    assert table["identities"] == [
        {
            "method": "natural",
            "seed": 0,
            "run_sha256": run["run_sha256"],
            "weights_sha256": result["weights_sha256"],
        }
    ]


OTHERS = {
    "model": {"spec": dataclasses.replace(SPEC, options={"hidden": [9]})},
    "data": {"data": data(48)},
    "learning_rate": {"config": dataclasses.replace(CONFIG, epochs=2, learning_rate=0.5)},
    "epochs": {"config": CONFIG},
    "sets": {"perturbations": SETS[:1]},
}


@pytest.mark.parametrize("changes", OTHERS.values(), ids=OTHERS)
def test_a_folder_of_another_comparison_is_refused_also_for_new_rows(changes, tmp_path):
    go(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for choices, words in (({}, "holds a run already"), ({"resume": True}, "has other settings")):
        with pytest.raises(OutputFolderError, match=words) as caught:
            go(tmp_path, {"Max": ROWS["Max"]}, experiment(**changes), **choices)
        assert str(tmp_path) in str(caught.value) and "--overwrite" in str(caught.value)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_resuming_may_add_rows(tmp_path):
    go(tmp_path)
    rows = {**NATURAL, "Max": ROWS["Max"]}
    assert timeless(go(tmp_path, rows, resume=True)) == timeless(go(tmp_path / "fresh", rows))


def test_overwriting_removes_every_row_of_the_old_comparison(tmp_path):
    go(tmp_path, {**NATURAL, "Max": ROWS["Max"]}, experiment(seeds=(1, 2)))
    (tmp_path / "notes.txt").write_text("mine")
    table = go(tmp_path, made=experiment(config=CONFIG), overwrite=True)
    assert timeless(table) == timeless(go(tmp_path / "fresh", made=experiment(config=CONFIG)))
    left = {
        str(path.relative_to(tmp_path))
        for path in tmp_path.rglob("*")
        if path.is_file() and "fresh" not in path.parts and path.name != ".run.lock"
    }
    assert left == {
        "notes.txt",
        "config.json",
        "table.json",
        "table.md",
        *(
            f"natural/{name}"
            for name in ("config.json", "checkpoint.pt", "log.jsonl", "result.json")
        ),
    }


def test_a_run_is_no_comparison(tmp_path):
    go(tmp_path)
    with pytest.raises(OutputFolderError, match="comparison: None -> True"):
        go(tmp_path / "natural", resume=True)


def test_a_result_of_other_weights_is_not_taken(tmp_path):
    """As after a trial run of another network, finished in the same folder."""
    wide = experiment(spec=dataclasses.replace(SPEC, options={"hidden": [32]}))
    go(tmp_path / "trial")
    expected = go(tmp_path / "run", made=wide)
    result = written(tmp_path / "trial" / "natural" / "result.json")
    (tmp_path / "run" / "natural" / "result.json").write_text(json.dumps(result))
    assert timeless(go(tmp_path / "run", made=wide, resume=True)) == timeless(expected)


def test_a_result_is_of_the_weights_that_are_there(tmp_path, monkeypatch):
    """As with a checkpoint of the same run from another machine, whose last bits differ."""
    go(tmp_path)
    path, certified, original = (
        tmp_path / "natural" / "checkpoint.pt",
        [],
        experiment_module.certify,
    )
    checkpoint = load_checkpoint(path)
    with torch.no_grad():
        checkpoint.model[-1].bias[0] += 1e-3
    save_checkpoint(
        path,
        checkpoint.model,
        checkpoint.spec,
        checkpoint.perturbations,
        checkpoint.config,
        checkpoint.epoch,
        **checkpoint.run,
    )
    monkeypatch.setattr(
        experiment_module, "certify", lambda *args: certified.append(1) or original(*args)
    )
    before = written(tmp_path / "natural" / "result.json")["settings"]["weights_sha256"]
    go(tmp_path, resume=True)
    assert (
        certified == [1]
        and written(tmp_path / "natural" / "result.json")["settings"]["weights_sha256"] != before
    )


CHANGED = [
    "run_sha256",
    "weights_sha256",
    "model",
    "data",
    "test_sha256",
    "perturbations",
    "certification",
    "n",
]


@pytest.mark.parametrize("name", CHANGED)
def test_a_result_is_taken_only_if_all_agrees(name, tmp_path, monkeypatch):
    go(tmp_path)
    original, certified = experiment_module.certify, []
    monkeypatch.setattr(
        experiment_module, "certify", lambda *args: certified.append(1) or original(*args)
    )
    go(tmp_path, resume=True)
    assert not certified
    path = tmp_path / "natural" / "result.json"
    content = written(path)
    content["settings"][name] = "another"
    path.write_text(json.dumps(content))
    go(tmp_path, resume=True)
    assert certified == [1] and written(path)["settings"][name] != "another"


# --- more epochs ----------------------------------------------------------------------------------


def test_a_table_may_be_given_more_epochs(file, tmp_path, capsys):
    longer = ["--losses", "natural", "--epochs", 4]
    assert train_on(file, tmp_path / "run", "--losses", "natural") == 0
    capsys.readouterr()
    line = error_of(capsys, train_on(file, tmp_path / "run", *longer, "--resume"))
    assert "train.epochs: 2 -> 4" in line and "--extend" in line
    assert train_on(file, tmp_path / "run", *longer, "--resume", "--extend") == 0
    begun = written(tmp_path / "run" / "config.json")[
        "train"
    ]  # lengths stay those of the run that is continued
    lengths = [
        "--natural-epochs",
        begun["schedule"]["natural_epochs"],
        "--anneal-epochs",
        begun["schedule"]["anneal_epochs"],
        "--milestones",
        *begun["milestones"],
    ]
    assert train_on(file, tmp_path / "long", *longer, *lengths) == 0
    assert timeless(written(tmp_path / "run" / "table.json")["rows"]) == timeless(
        written(tmp_path / "long" / "table.json")["rows"]
    )
    for path in (tmp_path / "run" / "config.json", tmp_path / "run" / "natural" / "config.json"):
        (continued,) = written(path)["continuations"]
        assert (continued["epochs"], continued["new_epochs"]) == (2, 4)


def test_a_row_that_starts_from_another_cannot_be_extended(tmp_path):
    rows = {name: ROWS[name] for name in ("SABR l_inf", "Finetune")}
    go(tmp_path, rows)
    with pytest.raises(
        InvalidArgumentError, match="extend: 'Finetune' starts from the network of 'SABR l_inf'"
    ):
        go(tmp_path, rows, experiment(config=CONFIG), resume=True, extend=True)
    assert load_checkpoint(tmp_path / "sabr_l_inf" / "checkpoint.pt").config.epochs == 2
