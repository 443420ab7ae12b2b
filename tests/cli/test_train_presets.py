"""``train``: presets, and flags that change them or what rows say."""

import pytest

from lirpa_multinorm.cli import main
from lirpa_multinorm.experiments.presets import load_preset, preset_names
from tests.cli.runs import train_on, written_config

pytestmark = pytest.mark.usefixtures("no_figures")
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


def test_presets_are_listed(capsys):
    assert main(["presets"]) == 0
    printed = capsys.readouterr().out
    assert all(f"| {name} " in printed for name in preset_names()) and len(preset_names()) > 20


#: Flags, and where the settings that a run writes have their values.
CHANGED = {
    "--model cnn3": ("model.name", "cnn3"),
    "--width 2": ("model.options.width", 2),
    "--eps-2 0.2": ("perturbations.1.eps", 0.2),
    "--learning-rate 0.003": ("train.learning_rate", 0.003),
    "--decay 0.5": ("train.decay", 0.5),
    "--milestones 1": ("train.milestones", [1]),
    "--kappa-start 0.25": ("train.schedule.kappa_start", 0.25),
    "--l1 0.001": ("train.l1", 0.001),
    "--regularizer 0.125": ("train.regularizer", 0.125),
    "--initialization default": ("train.initialization", "default"),
    "--clip-norm 3": ("train.clip_norm", 3.0),
    "--average-from 1": ("train.average_from", 1),
    "--precise-bn": ("train.precise_bn", True),
    "--augment cifar": ("train.augment", "cifar"),
    "--seed 4": ("train.seed", 4),
    "--ratio-inf 0.75": ("train.loss_options.ratio_inf", 0.75),
    "--ratio-2 0.5": ("train.loss_options.ratio_2", 0.5),
    "--region-2 ball": ("train.loss_options.region_2", "ball"),
    "--shrink-inf 0.25": ("train.loss_options.shrink_inf", 0.25),
    "--mix-2 cc": ("train.loss_options.mix_2", "cc"),
    "--alpha-2 0.75": ("train.loss_options.alpha_2", 0.75),
    "--eta 0.25": ("train.loss_options.eta", 0.25),
    "--target inf": ("train.loss_options.target", "inf"),
    "--detach": ("train.loss_options.detach", True),
    "--beta 0.125": ("train.projection.beta", 0.125),
}


def value_at(settings, path):
    for name in path.split("."):
        settings = settings[int(name)] if isinstance(settings, list) else settings[name]
    return settings


def test_a_preset_can_be_changed_by_flags(file, tmp_path, capsys):
    output, name = tmp_path / "run", "mnist-0.3-1.0-scratch"
    assert preset_run(output, "--data", file, *" ".join(CHANGED).split()) == 0
    assert f"| {name} " in capsys.readouterr().out
    written = written_config(output, name)
    assert {path: value_at(written, path) for path, _ in CHANGED.values()} == dict(CHANGED.values())
    kept = load_preset(name)
    assert value_at(written, "perturbations.0.eps") == kept.eps["inf"] and written["data"] == "toy"
    train = written["train"]
    assert (train["loss"], train["epochs"], train["batch_size"]) == ("cure", 2, 16)
    assert train["schedule"]["kappa_end"] == kept.train.schedule.kappa_end
    assert train["schedule"]["anneal_epochs"] == 1.0


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
    loaded = {
        row: written_config(tmp_path, row)["train"]
        for row in ("sabr_l_inf", "cure-l2", "max", "scratch", "finetune")
    }
    assert loaded["scratch"]["projection"]["beta"] == 0.3
    assert [name for name, item in loaded.items() if item["projection"]] == [
        "scratch"
    ]  # it makes no other row project
    assert {name: item["loss_options"].get("eta") for name, item in loaded.items()} == {
        "sabr_l_inf": None,
        "cure-l2": None,
        "max": None,
        "scratch": 1,
        "finetune": 1,
    }
    assert [item["regularizer"] for item in loaded.values()] == [0.25] * 5
    assert [item["loss_options"].get("ratio_2") for item in loaded.values()] == [
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
