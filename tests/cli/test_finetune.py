"""The command ``finetune``.

What it takes from a checkpoint or a state dict, and what it refuses.
"""

import dataclasses

import pytest
import torch

from lirpa_multinorm import PerturbationL2Box, PerturbationLinf
from lirpa_multinorm.cli import main
from lirpa_multinorm.training import ModelSpec, Schedule, load_checkpoint, save_checkpoint
from lirpa_multinorm.training.run_folder import digest
from tests.cli.runs import error_of, finetune, written_config
from tests.toy import CONFIG, SETS, SPEC

pytest.importorskip("sklearn")  # for the data set "digits"
pytestmark = pytest.mark.usefixtures("no_figures")

NORMALIZED = ModelSpec("mlp", (3, 4, 4), 3, (0.4, 0.5, 0.6), (0.2, 0.2, 0.3), {"hidden": [8]})


def test_finetuning_takes_network_and_radii_from_a_checkpoint(checkpoint, file, tmp_path, capsys):
    assert finetune(checkpoint, file, tmp_path / "run") == 0
    assert "| Finetune" in capsys.readouterr().out
    loaded = written_config(tmp_path / "run", "finetune")
    assert loaded["model"]["options"] == SPEC.options and [
        item["eps"] for item in loaded["perturbations"]
    ] == [0.05, 0.1]
    train = loaded["train"]
    assert (train["loss"], train["loss_options"]["eta"], train["epochs"]) == ("cure", 0.5, 2)
    assert train["schedule"]["natural_epochs"] == 0 and train["projection"] is None
    assert loaded["initial_sha256"] == digest(
        *load_checkpoint(checkpoint).model.state_dict().values()
    )
    flags = ["--eps-2", 0.3, "--eta", 2, "--beta", 0.25, "--seeds", 1, 2]
    assert finetune(checkpoint, file, tmp_path / "other", *flags) == 0
    other = written_config(tmp_path / "other", "finetune/seed_2")
    assert [item["eps"] for item in other["perturbations"]] == [0.05, 0.3]
    assert (
        other["train"]["loss_options"]["eta"] == 2 and other["train"]["projection"]["beta"] == 0.25
    )


def test_finetuning_goes_on_with_the_checkpoints_settings(file, tmp_path):
    """A fifth of the epochs, all else in proportion, and what the losses share.

    Only a milestone that is never reached is not in proportion.
    """
    config = dataclasses.replace(
        CONFIG,
        loss="sabr",
        loss_options={"ratio_inf": 0.7},
        epochs=10,
        milestones=(5, 10),
        schedule=Schedule(1, 5),
        l1=1e-4,
    )
    save_checkpoint(tmp_path / "toy.pt", SPEC.build(), SPEC, SETS, config, 1)
    assert (
        main(
            [
                "finetune",
                str(tmp_path / "toy.pt"),
                "--data",
                str(file),
                "--output",
                str(tmp_path / "run"),
                "--no-progress",
            ]
        )
        == 0
    )
    train = written_config(tmp_path / "run", "finetune")["train"]
    assert train["loss_options"] == {"eta": 0.5, "ratio_inf": 0.7} and train["l1"] == 1e-4
    assert (train["epochs"], train["milestones"], train["batch_size"]) == (2, [1], 16)
    assert train["schedule"]["anneal_epochs"] == pytest.approx(1)


def test_finetuning_refuses_another_network_than_the_checkpoints(
    checkpoint, file, tmp_path, capsys
):
    assert "--model" in error_of(
        capsys, finetune(checkpoint, file, tmp_path / "run", "--model", "mlp")
    )


def test_finetuning_on_images_of_another_shape(checkpoint, tmp_path, capsys):
    line = error_of(capsys, finetune(checkpoint, "digits", tmp_path / "run"))
    assert (
        "(1, 8, 8)" in line and "(1, 4, 4)" in line and not (tmp_path / "run" / "finetune").exists()
    )


# --- sets and data of the checkpoint --------------------------------------------------------------


def saved(tmp_path, sets, origin=None, spec=SPEC):
    save_checkpoint(tmp_path / "toy.pt", spec.build(), spec, sets, CONFIG, 1, origin)
    return tmp_path / "toy.pt"


def sets_in(folder):
    return [
        (item["norm"], item["eps"], item["clip"])
        for item in written_config(folder, "finetune")["perturbations"]
    ]


KEPT = {
    "plain balls": (
        [PerturbationLinf(0.05, None), PerturbationL2Box(0.1, None)],
        [],
        [("inf", 0.05, None), ("2", 0.1, None)],
    ),
    "two of a norm": (
        [PerturbationLinf(0.05), PerturbationLinf(0.01), PerturbationL2Box(0.1)],
        [],
        [("inf", 0.05, [0, 1]), ("inf", 0.01, [0, 1]), ("2", 0.1, [0, 1])],
    ),
    "order": (
        [PerturbationL2Box(0.1), PerturbationLinf(0.05)],
        [],
        [("2", 0.1, [0, 1]), ("inf", 0.05, [0, 1])],
    ),
    "one norm and another": (
        [PerturbationLinf(0.05, None)],
        ["--eps-2", 0.2],
        [("inf", 0.05, None), ("2", 0.2, None)],
    ),
    "changed": (
        [PerturbationLinf(0.05, None), PerturbationL2Box(0.1)],
        ["--eps-inf", 0.02],
        [("inf", 0.02, None), ("2", 0.1, [0, 1])],
    ),
}


@pytest.mark.parametrize("sets, flags, expected", KEPT.values(), ids=KEPT)
def test_the_checkpoints_sets_are_kept(sets, flags, expected, file, tmp_path):
    assert finetune(saved(tmp_path, sets), file, tmp_path / "run", *flags) == 0
    assert sets_in(tmp_path / "run") == expected


@pytest.mark.parametrize(
    "sets, flags, words",
    [
        (
            [PerturbationLinf(0.05)],
            [],
            "--eps-2: the checkpoint is for one norm only (l_inf ball of radius 0.05",
        ),
        ([PerturbationL2Box(0.1)], [], "--eps-inf: the checkpoint is for one norm only"),
        (
            [PerturbationLinf(0.05), PerturbationLinf(0.01), PerturbationL2Box(0.1)],
            ["--eps-inf", 0.02],
            "--eps-inf: there are 2 sets of this norm (radii 0.05, 0.01)",
        ),
    ],
    ids=["one_norm", "l_2_only", "which"],
)
def test_what_a_flag_must_say(sets, flags, words, file, tmp_path, capsys):
    assert words in error_of(
        capsys, finetune(saved(tmp_path, sets), file, tmp_path / "run", *flags)
    )
    assert not (tmp_path / "run").exists()


def test_weights_alone_need_radii_and_data(file, tmp_path, capsys):
    torch.save(SPEC.build().state_dict(), tmp_path / "weights.pt")
    for flags in ([], ["--eps-inf", 0.05]):
        line = error_of(
            capsys,
            finetune(tmp_path / "weights.pt", file, tmp_path / "run", "--model", "mlp", *flags),
        )
        assert "--eps-" in line
    line = error_of(
        capsys, main(["finetune", str(tmp_path / "weights.pt"), "--output", str(tmp_path / "run")])
    )
    assert "--data: the file does not say" in line


@pytest.mark.parametrize(
    "name, words",
    [
        ("toy", "trained on 'toy'"),
        (None, "does not say what it was trained on"),
        ("digits (validation split)", "also give --validation"),
    ],
    ids=str,
)
def test_data_that_no_name_loads_are_asked_for(name, words, tmp_path, capsys):
    path = saved(tmp_path, SETS, None if name is None else {"data": name})
    line = error_of(capsys, main(["finetune", str(path), "--output", str(tmp_path / "run")]))
    assert line.startswith("error: --data: ") and words in line


def test_the_data_are_those_of_the_checkpoint(tmp_path):
    spec = ModelSpec("mlp", (1, 8, 8), 10, options={"hidden": [4]})
    flags = ["--n-train", 64, "--n-test", 4, "--batch-size", 32, "--epochs", 2, "--no-progress"]
    for name, more, folder in (
        ("digits", [], "run"),
        ("digits (validation split)", ["--validation", 4], "split"),
    ):
        path, chosen = (
            saved(tmp_path, SETS, {"data": name}, spec),
            [item for item in flags if not more or "n-test" not in str(item) and item != 4],
        )
        assert (
            main(
                [
                    "finetune",
                    str(path),
                    "--output",
                    str(tmp_path / folder),
                    *map(str, [*chosen, *more]),
                ]
            )
            == 0
        )
        assert written_config(tmp_path / folder, "finetune")["data"] == name
