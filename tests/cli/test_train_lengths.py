"""``train``: the length of a run, and of its parts."""

import pytest

from lirpa_multinorm.cli import DEFAULTS, main
from lirpa_multinorm.cli.parser import Parser
from lirpa_multinorm.cli.training import add_train_arguments, rows_and_settings
from lirpa_multinorm.experiments.rows import row_config
from lirpa_multinorm.experiments.settings import config_of
from tests.cli.runs import error_of, train_on, written_config

pytestmark = pytest.mark.usefixtures("no_figures")


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
def test_epochs_keep_the_proportions_of_what_is_not_given(flags, expected):
    """The defaults are 40 epochs, 2 of them natural and 15 of annealing, milestones 30 and 36."""
    parser = Parser()
    add_train_arguments(parser, DEFAULTS)
    words = ["--output", "x", "--losses", "Max", "--epochs", 4, *flags]
    rows, settings = rows_and_settings(parser.parse_args(list(map(str, words))), DEFAULTS)
    train = row_config(config_of(settings["train"]), rows["Max"]).in_epochs()
    lengths = (round(length, 6) for length in train.schedule.lengths())
    assert (train.epochs, list(train.milestones), *lengths) == expected


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
