"""Transforms, patches and l_0 sets on the command line of ``certify``."""

import json

import pytest
import torch

from lirpa_multinorm import PerturbationLinf, TrainConfig, save_checkpoint
from lirpa_multinorm.cli import main
from lirpa_multinorm.perturbations.paper_transforms import paper_transforms, transform_names
from lirpa_multinorm.perturbations.patch import PerturbationPatch
from lirpa_multinorm.training import ModelSpec, load_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A checkpoint of a small network for digits, trained for nothing."""
    torch.manual_seed(0)
    spec = ModelSpec("mlp", (1, 8, 8), 10, (0.0,), (1.0,), {"hidden": (16,)})
    path = tmp_path_factory.mktemp("run") / "checkpoint.pt"
    sets = [PerturbationLinf(0.01), PerturbationPatch(1)]
    save_checkpoint(path, spec.build(), spec, sets, TrainConfig(epochs=1), 1)
    return str(path)


def certify(checkpoint, *flags, output):
    flags = ["--no-progress", "--n-test", "4", "--output", str(output), *flags]
    return main(["certify", checkpoint, *flags])


def sets_in(folder):
    return json.loads((folder / "summary.json").read_text())["perturbations"]


def test_transforms_and_patches_stand_beside_the_checkpoint_s_sets(checkpoint, tmp_path, capsys):
    flags = ["--rotation", "4", "--scale", "0.05", "--patch", "1x2", "--transforms", "mnist-r30"]
    assert certify(checkpoint, *flags, "--eps-0", "1", "3", output=tmp_path) == 0
    kinds = [entry.get("kind", entry.get("norm")) for entry in sets_in(tmp_path)]
    assert kinds == ["inf", "patch", "geometric", "geometric", "patch", "0", "0"]
    printed = capsys.readouterr().out
    assert "certified Sc(5),R(4)" in printed and "certified 1x2 patch" in printed
    assert "certified mean of transforms" in printed and "certified l_0" in printed


def test_norms_none_leaves_the_checkpoint_s_sets_out(checkpoint, tmp_path):
    assert certify(checkpoint, "--norms", "none", "--patch", "1x1", output=tmp_path) == 0
    (described,) = sets_in(tmp_path)
    assert (described["kind"], described["height"], described["width"]) == ("patch", 1, 1)


def test_norms_choose_balls_and_leave_what_else_was_trained_out(checkpoint, tmp_path):
    assert certify(checkpoint, "--norms", "inf", output=tmp_path) == 0
    (described,) = sets_in(tmp_path)
    assert described["norm"] == "inf"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--norms", "none"], "leaves no set"),
        (["--norms", "none", "inf"], "leaves all balls out"),
        (["--norms", "none", "--patch", "9x9"], "does not fit"),
        (["--patch", "five"], "give HEIGHTxWIDTH"),
        (["--patch", "0x3"], "--patch=0"),
        (["--eps-0", "-1"], "--eps-0=-1"),
        (["--rotation", "-3"], "--rotation=-3.0 must be >= 0"),
        (["--scale", "1"], "must stay above 0"),
        (["--transforms", "mnist-r3"], "did you mean 'mnist-r30'"),
    ],
)
def test_flags_that_mean_nothing_are_one_sentence(checkpoint, tmp_path, capsys, flags, message):
    assert certify(checkpoint, *flags, output=tmp_path) != 0
    assert message in capsys.readouterr().err


def test_export_refuses_what_another_verifier_does_not_know(checkpoint, tmp_path, capsys):
    assert main(["export", checkpoint, "--n-test", "2", "--output", str(tmp_path)]) != 0
    assert "alpha-beta-CROWN takes balls only" in capsys.readouterr().err


@pytest.mark.parametrize("name", transform_names())
def test_every_column_has_the_published_number_of_cells(name):
    """Section 8 of the paper's sources: 240, 6400, 3200 and 16 384 cells on MNIST."""
    counts = {
        "mnist": [240, 6400, 3200, 16384],
        "mnist-r30": [240],
        "mnist-t2": [6400],
        "mnist-sc5-r5-c5-b0.01": [3200],
        "mnist-sh2-r2-sc2-c2-b0.001": [16384],
        "cifar10-r10": [100_000],
        "cifar10-r2-sh2": [400 * 160],
    }
    if name in counts:
        image = torch.zeros(1, 1, 28, 28)
        cells = [len(transforms.fixed_grid(image)[0]) for transforms in paper_transforms(name)]
        assert cells == counts[name]
    assert all(transforms.splits for transforms in paper_transforms(name))


def test_a_report_of_records_with_transforms_and_patches(checkpoint, tmp_path, capsys):
    records, report = tmp_path / "records", tmp_path / "report"
    assert certify(checkpoint, "--rotation", "2", output=records) == 0
    assert main(["report", str(records), "--output", str(report)]) == 0
    assert "R(2)" in (report / "report.md").read_text() and "1x1 patch" in capsys.readouterr().out


def test_finetuning_keeps_transforms_and_patches(checkpoint, tmp_path):
    flags = ["--data", "digits", "--epochs", "1", "--n-train", "300", "--n-test", "4"]
    flags += ["--anneal-epochs", "50%", "--no-progress", "--output", str(tmp_path)]
    radii = ["--eps-inf", "0.02", "--eps-2", "0.1"]
    assert main(["finetune", checkpoint, *radii, *flags]) == 0
    (run,) = tmp_path.glob("*/checkpoint.pt")
    sets = load_checkpoint(run).perturbations
    assert [(entry.name, getattr(entry, "eps", None)) for entry in sets] == [
        ("l_inf", 0.02),
        ("1x1 patch", None),
        ("l_2", 0.1),
    ]
