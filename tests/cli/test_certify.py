"""The command ``certify``: what it writes, and one line for each thing a user can get wrong."""

import json

import pytest
import torch

from lirpa_multinorm import PerturbationLpBox, read_records
from lirpa_multinorm.certification import METHODS
from lirpa_multinorm.certification.cascade import Cascade
from lirpa_multinorm.cli import main
from lirpa_multinorm.training import ModelSpec, save_checkpoint
from lirpa_multinorm.utils import distributed
from tests.cli.runs import certify_into, error_of, summary_in
from tests.toy import CONFIG, SETS, SPEC, write_npz

pytest.importorskip("sklearn")  # for the data set "digits"
pytestmark = pytest.mark.usefixtures("no_figures")

# --- what works -----------------------------------------------------------------------------------

RADII = {
    "one": (["--eps-2", 0.25], [("inf", 0.05), ("2", 0.25)]),
    "both": (["--eps-2", 0.25, "--eps-inf", 0.01], [("inf", 0.01), ("2", 0.25)]),
    "new": (["--eps-1", 0.5], [("inf", 0.05), ("2", 0.1), ("1", 0.5)]),
    "chosen": (["--norms", "2"], [("2", 0.1)]),
    "chosen_radius": (["--norms", "2", "--eps-2", 0.3], [("2", 0.3)]),
    "chosen_new": (["--norms", "1", "--eps-1", 0.5], [("1", 0.5)]),
    "unclipped": (["--eps-2", 0.25, "--no-clip"], [("inf", 0.05), ("2", 0.25)]),
}


@pytest.mark.parametrize("flags, sets", RADII.values(), ids=RADII)
def test_certify_against_radii_of_ones_own(flags, sets, checkpoint, file, tmp_path, capsys):
    """A radius replaces the checkpoint's of its norm; the other sets stay. One set has no union."""
    assert certify_into(tmp_path / "r", checkpoint, file, *flags) == 0
    written = summary_in(tmp_path / "r")["perturbations"]
    assert [(item["norm"], item["eps"]) for item in written] == sets
    assert {item["clip"] is None for item in written} == {"--no-clip" in flags}
    printed = capsys.readouterr().out
    assert all(f"certified l_{norm} {eps:g}" in printed for norm, eps in sets)
    assert ("union" in printed) == (len(sets) > 1)


def test_the_sets_of_a_checkpoint_keep_their_limits(file, tmp_path):
    """Its pixel range, or none, is the new radius's too."""
    sets = [PerturbationLpBox("inf", 0.05, clip=None), PerturbationLpBox(2, 0.1, clip=(-1.0, 2.0))]
    save_checkpoint(tmp_path / "toy.pt", SPEC.build(), SPEC, sets, CONFIG, 1)
    assert (
        certify_into(tmp_path / "r", tmp_path / "toy.pt", file, "--eps-inf", 0.02, "--eps-2", 0.2)
        == 0
    )
    assert [
        (item["eps"], item["clip"]) for item in summary_in(tmp_path / "r")["perturbations"]
    ] == [(0.02, None), (0.2, [-1.0, 2.0])]


def test_certify_says_everything_everywhere(checkpoint, file, tmp_path, capsys):
    assert certify_into(tmp_path / "r", checkpoint, file) == 0
    printed, written = capsys.readouterr().out, summary_in(tmp_path / "r")
    text, recorded = (tmp_path / "r" / "summary.md").read_text(), read_records(tmp_path / "r")
    assert text.strip() in printed and written["result"] == json.loads(
        json.dumps(recorded.summary())
    )
    for title in (
        "l_inf ball of radius 0.05 within [0, 1]",
        "l_2 ball of radius 0.1 within [0, 1]",
    ):
        assert title in text and title in written["result"]["sets"]
        assert title in (tmp_path / "r" / "records.jsonl").read_text().splitlines()[0]
    low, high = written["result"]["intervals"]["certified_union"]
    assert f"{low:.4f} to {high:.4f}" in text and "misclassified" in text
    assert written["settings"]["methods"] == list(METHODS)


def test_certify_the_plain_balls(checkpoint, file, tmp_path, capsys):
    assert certify_into(tmp_path / "r", checkpoint, file, "--no-clip") == 0
    assert (
        "plain l_inf ball of radius 0.05; plain l_2 ball of radius 0.1" in capsys.readouterr().out
    )
    assert [item["clip"] for item in summary_in(tmp_path / "r")["perturbations"]] == [None, None]


def test_flags_of_certify_reach_the_settings(checkpoint, file, tmp_path):
    flags = [
        "--methods",
        "ibp",
        "alpha-CROWN",
        "--attack-steps",
        7,
        "--attack-restarts",
        3,
        "--time-limit",
        50,
        "--total-time-limit",
        500,
        "--seed",
        4,
    ]
    assert certify_into(tmp_path / "r", checkpoint, file, *flags) == 0
    result = summary_in(tmp_path / "r")["settings"]
    assert result["methods"] == ["IBP", "CROWN-Optimized"]
    assert [(item["loss"], item["steps"], item["restarts"]) for item in result["attack"]] == [
        ("margin", 7, 3),
        ("ce", 7, 3),
    ]
    assert {
        "time_limit": 50,
        "total_time_limit": 500,
        "seed": 4,
        "batch_size": 5,
    }.items() <= result.items()
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
    assert {path.name for path in tmp_path.glob("records*")} == {
        "records.jsonl",
        "records.0-of-2.jsonl",
        "records.1-of-2.jsonl",
    }
    assert len(read_records(tmp_path)) == 12 and not summary_in(tmp_path)["result"]["not_run"]


def test_an_interrupted_certification_says_how_to_go_on(
    checkpoint, file, tmp_path, monkeypatch, capsys
):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Cascade, "certify", interrupted)
    assert (
        certify_into(tmp_path / "r", checkpoint, file) == 130
        and "--resume" in capsys.readouterr().err
    )
    monkeypatch.undo()
    assert certify_into(tmp_path / "r", checkpoint, file, "--resume") == 0


def test_broken_weights_are_reported(file, checkpoint, tmp_path, capsys):
    model = SPEC.build()
    torch.nn.init.constant_(model[-1].bias, float("nan"))
    save_checkpoint(checkpoint, model, SPEC, SETS, CONFIG, 1)
    line = error_of(capsys, certify_into(tmp_path / "r", checkpoint, file))
    assert f"parameter {len(model) - 1}.bias holds NaN" in line


# --- what goes wrong ------------------------------------------------------------------------------

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
    "norms": (["--norms", "1"], ["--norms 1", "--eps-1"]),
    "norms_and_radius": (["--norms", "inf", "--eps-2", "0.3"], ["--norms inf", "l_2"]),
    "no_images": (["--data", "nowhere.npz"], ["--data: there is no file 'nowhere.npz'"]),
    "no_folder": (["--data", "no/where"], ["--data: there is no folder 'no/where'"]),
    "unknown_data": (["--data", "mnits"], ["--data: no data set 'mnits'", "'mnist'"]),
    "validation": (["--validation", "99"], ["--validation: 99"]),
    "train_images": (["--n-train", "99"], ["--n-train: 99"]),
    "no_data": (
        ["--data", "mnist", "--no-download", "--data-dir", "r"],
        ["--data: 'mnist' is not"],
    ),
}


@pytest.mark.parametrize("arguments, words", WRONG_CERTIFY.values(), ids=WRONG_CERTIFY)
def test_what_certify_cannot_use(arguments, words, file, checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    line = error_of(
        capsys, main(["certify", str(checkpoint), "--data", str(file), "--no-progress", *arguments])
    )
    assert all(word in line for word in words), line
    assert not list(tmp_path.rglob("records*"))


def test_certify_without_labels(checkpoint, tmp_path, capsys):
    file = write_npz(tmp_path / "unlabelled.npz", y_test=None)
    line = error_of(capsys, certify_into(tmp_path / "r", checkpoint, file))
    assert "y_test" in line and "missing" in line and "unlabelled.npz" in line


def test_certify_refuses_the_folder_of_another_run(checkpoint, file, tmp_path, capsys):
    assert certify_into(tmp_path / "r", checkpoint, file) == 0
    capsys.readouterr()
    line = error_of(
        capsys, certify_into(tmp_path / "r", checkpoint, file, "--eps-inf", 0.07, "--resume")
    )
    assert "another certification" in line and "sets.0.eps: 0.05 there, 0.07 now" in line


def remove(path):
    path.unlink()


def truncate(path):
    path.write_bytes(path.read_bytes()[:300])


def bare_weights(path):
    torch.save(SPEC.build().state_dict(), path)


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def change_architecture(path):
    content = torch.load(path, weights_only=True)
    content["spec"]["options"] = {"hidden": [9]}
    torch.save(content, path)


@pytest.mark.parametrize(
    "damage, words",
    [
        (remove, "missing"),
        (truncate, "damaged"),
        (change_architecture, "another architecture"),
        (flip, "SHA-256"),
        (bare_weights, "is a plain state dict"),
    ],
    ids=["missing", "truncated", "architecture", "flipped", "state_dict"],
)
def test_a_checkpoint_that_cannot_be_used(damage, words, file, checkpoint, capsys):
    damage(checkpoint)
    line = error_of(capsys, main(["certify", str(checkpoint), "--data", str(file)]))
    assert str(checkpoint) in line and words in line


def test_a_checkpoint_of_another_image_shape(checkpoint, capsys):
    line = error_of(capsys, main(["certify", str(checkpoint), "--data", "digits"]))
    assert "(1, 8, 8)" in line and "(1, 4, 4)" in line and "'digits'" in line


@pytest.mark.parametrize(
    "trained_on, words",
    [
        ("mnist", "'mnist' is not, or not intact"),
        ("mnist (validation split)", "'mnist' is not, or not intact"),
        ("cifar10_lossless", "cannot be loaded by this name; give the file"),
        ("", "'digits'"),
    ],
)
def test_the_images_are_those_a_checkpoint_was_trained_on(trained_on, words, tmp_path, capsys):
    path = tmp_path / "toy.pt"
    save_checkpoint(path, SPEC.build(), SPEC, SETS, CONFIG, 1, {"data": trained_on})
    command = ["certify", str(path), "--no-download", "--data-dir", str(tmp_path)]
    assert words in error_of(capsys, main(command))


def test_a_checkpoint_with_too_few_classes(file, tmp_path, capsys):
    spec = ModelSpec("mlp", (1, 4, 4), 2)
    save_checkpoint(tmp_path / "two.pt", spec.build(), spec, SETS, CONFIG, 1)
    line = error_of(
        capsys, main(["certify", str(tmp_path / "two.pt"), "--data", str(file), "--no-progress"])
    )
    assert "labels run from 0 to 2" in line and "2 outputs" in line


@pytest.mark.parametrize(
    "arguments, word",
    [
        (["--batch-size", "0"], "batch_size=0"),
        (["--eps-inf", "-1"], "eps=-1"),
        (["--n-test", "99"], "--n-test: 99"),
    ],
    ids=["batch_size", "eps", "n_test"],
)
def test_unusable_arguments_of_certify(arguments, word, file, checkpoint, capsys):
    code = main(["certify", str(checkpoint), "--data", str(file), "--no-progress", *arguments])
    assert word in error_of(capsys, code)


def test_a_radius_on_the_scale_of_bytes_is_refused(checkpoint, file, tmp_path, capsys):
    line = error_of(capsys, certify_into(tmp_path / "out", checkpoint, file, "--eps-inf", 8))
    assert "eps=8 of the l_inf set" in line and "8/255 is 0.03137" in line
