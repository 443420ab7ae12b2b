"""--dry-run: what a run will do, row by row, and nothing on the disk."""

import re

import pytest
import torch

import lirpa_multinorm.experiments.dry_run as dry_run
from lirpa_multinorm import PerturbationL2Box, PerturbationLinf
from lirpa_multinorm.experiments.comparison import Experiment
from lirpa_multinorm.experiments.rows import ROWS
from lirpa_multinorm.training import Schedule, TrainConfig
from tests.cli.runs import error_of, finetune, train_on
from tests.toy import CONFIG, SETS, SPEC, data


def table_of(printed):
    """Lines of the first table as lists of cells."""
    lines = list(printed.split("\n\n")[1].splitlines())
    return [
        [cell.strip() for cell in line.strip("|").split("|")] for line in lines if "--" not in line
    ]


def test_every_epoch_has_radius_kappa_and_learning_rate():
    config = TrainConfig(
        "joint",
        epochs=4,
        batch_size=16,
        learning_rate=0.01,
        decay=0.1,
        milestones=(0.75,),
        schedule=Schedule("25%", "50%", 0.5, 0.25),
    )
    rows = dry_run.epochs_of_run(Experiment(data(), SPEC, SETS, config), config)
    assert [list(row.values()) for row in rows] == [
        [1, "0 %", "0", "0", "0.5", "0.01"],
        [2, "38.5 %", "0.01923", "0.03846", "0.375", "0.01"],
        [3, "100 %", "0.05", "0.1", "0.25", "0.01"],
        [4, "100 %", "0.05", "0.1", "0.25", "0.001"],
    ]
    assert list(rows[0]) == [
        "epoch",
        "share of the radius",
        "l_inf radius",
        "l_2 radius",
        "kappa",
        "learning rate",
    ]


def test_radii_are_those_that_training_takes():
    config = TrainConfig(
        "joint", {"eps_factor_inf": 1.5}, epochs=2, batch_size=16, schedule=Schedule(0, 1)
    )
    rows = dry_run.epochs_of_run(Experiment(data(), SPEC, SETS, config), config)
    assert [(row["l_inf radius"], row["l_2 radius"]) for row in rows] == [("0.075", "0.1")] * 2


def test_the_natural_row_has_no_radius():
    rows = dry_run.epochs_of_run(
        Experiment(data(), SPEC, SETS, CONFIG), TrainConfig("natural", epochs=30)
    )
    assert {(row["share of the radius"], row["kappa"]) for row in rows} == {("0 %", "1")}


def test_the_time_follows_from_the_steps(monkeypatch):
    """Natural and robust steps, and the natural epochs of projection, at their own pace."""
    paces = {True: (0.0, 10, 2.0), False: (0.0, 10, 0.5)}
    monkeypatch.setattr(dry_run, "pace", lambda step, images, now, device: paces[now >= 0])
    text = dry_run.plan(
        Experiment(
            data(),
            SPEC,
            SETS,
            TrainConfig(epochs=10, batch_size=16, milestones=(), schedule=Schedule(2, 3)),
            seeds=(1, 2),
        ),
        {
            "Max": {"loss": "max"},
            "Scratch": {"loss": "max", "projection": {"beta": 0.5}},
            "natural": {"loss": "natural"},
        },
        "x",
    )
    seconds = re.findall(
        r"^(\w+) \(.*\), about (\d+) s of training for each of 2 seeds \(from 10 steps\)",
        text,
        re.MULTILINE,
    )
    # two steps per epoch: 2 natural and 8 robust epochs; 5 natural epochs more; 10 of a loss
    # without sets
    assert (
        seconds == [("Max", "34"), ("Scratch", "39"), ("natural", "40")]
        and "in all about 4 min" in text
    )


def test_annealing_by_crown_ibp_has_a_pace_of_its_own(monkeypatch):
    monkeypatch.setattr(
        dry_run,
        "pace",
        lambda step, images, now, device: (
            0.0,
            10,
            0.5 if now < 0 else 4.0 if 2 < now < 5 else 2.0,
        ),
    )
    text = dry_run.plan(
        Experiment(
            data(),
            SPEC,
            SETS,
            TrainConfig(epochs=10, batch_size=16, milestones=(), schedule=Schedule(2, 3)),
        ),
        {"CROWN-IBP": {"loss": "crown_ibp"}, "IBP": {"loss": "ibp"}},
        "x",
    )
    seconds = re.findall(r"^([\w-]+) \(.*\), about (\d+) s of training", text, re.MULTILINE)
    # two steps per epoch: 2 natural epochs, 3 in which the radius grows, 5 at its full size
    assert seconds == [("CROWN-IBP", "46"), ("IBP", "34")]


def test_steps_are_counted_and_generators_stay():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    text = dry_run.plan(Experiment(data(), SPEC, SETS, CONFIG), {"Random": ROWS["Random"]}, "x")
    assert "(from 10 steps)" in text and torch.equal(torch.get_rng_state(), before)


@pytest.mark.usefixtures("no_figures")
def test_train_prints_a_table_per_row_and_writes_nothing(file, tmp_path, capsys):
    rows = ["natural", "Scratch", "Finetune", "SABR l_inf"]
    assert train_on(file, tmp_path / "run", "--losses", *rows, "--dry-run") == 0
    printed = capsys.readouterr().out
    for name in rows:
        assert f"{name} (" in printed
    assert "nothing was written" in printed and sorted(
        path.name for path in tmp_path.iterdir()
    ) == ["toy.npz"]
    assert table_of(printed)[0][0] == "epoch" and len(table_of(printed)) == 3


@pytest.mark.usefixtures("no_figures")
def test_finetune_too(checkpoint, file, tmp_path, capsys):
    assert finetune(checkpoint, file, tmp_path / "run", "--dry-run") == 0
    assert "Finetune (cure)" in capsys.readouterr().out and not (tmp_path / "run").exists()


@pytest.mark.usefixtures("no_figures")
def test_it_refuses_what_a_run_refuses(file, tmp_path, capsys):
    code = train_on(file, tmp_path / "run", "--losses", "Max", "--anneal-epochs", 20, "--dry-run")
    assert "of the radius" in error_of(capsys, code) and not (tmp_path / "run").exists()


def test_sets_of_one_norm_have_columns_of_their_own():
    sets = [PerturbationLinf(0.02), PerturbationLinf(0.05), PerturbationL2Box(0.1)]
    row, *_ = dry_run.epochs_of_run(Experiment(data(), SPEC, sets, CONFIG), CONFIG)
    assert {"l_inf 0.02 radius", "l_inf 0.05 radius", "l_2 radius"} <= row.keys()


@pytest.mark.parametrize("flags", [["--resume", "--overwrite"], ["--extend"]], ids=" ".join)
def test_contradictions_are_found(flags, file, tmp_path, capsys):
    assert "error" in error_of(
        capsys, train_on(file, tmp_path / "run", "--losses", "natural", "--dry-run", *flags)
    )
