"""Every preset loads, says where its numbers come from, and builds its parts."""

import json

import pytest

from lirpa_multinorm.data import NAMES
from lirpa_multinorm.experiments.presets import load_preset, preset_names
from lirpa_multinorm.experiments.presets.files import leaves, nearest_source, read_preset
from lirpa_multinorm.experiments.presets.tables import of_this_package
from lirpa_multinorm.losses import build_loss
from lirpa_multinorm.models import MODELS, build_model
from lirpa_multinorm.perturbations import PerturbationLpBox
from lirpa_multinorm.training import TrainConfig

SETTINGS = {
    "mnist-0.1-0.5": (0.1, 0.5),
    "mnist-0.3-1.0": (0.3, 1.0),
    "cifar10-2_255-0.25": (2 / 255, 0.25),
    "cifar10-8_255-0.5": (8 / 255, 0.5),
    "tinyimagenet-1_255-36_255": (1 / 255, 36 / 255),
}
ROWS = ("linf", "l2", "joint", "max", "random", "scratch", "finetune")
OURS = {
    "digits-union-0.1-0.4": {"inf": 0.1, "2": 0.4},
    "mnist-linf-0.1": {"inf": 0.1},
    "mnist-linf-0.3": {"inf": 0.3},
    "mnist-linf-dist-0.3": {"inf": 0.3},
    "mnist-linf-dist-0.3-published": {"inf": 0.3},
    "mnist-linf-dist-0.1-published": {"inf": 0.1},
    "cifar10-linf-dist-8_255-published": {"inf": 8 / 255},
    "mnist-l2-0.5": {"2": 0.5},
    "mnist-l2-1.0": {"2": 1.0},
    "mnist-l2-1.58": {"2": 1.58},
    "mnist-union-0.1-0.5": {"inf": 0.1, "2": 0.5},
    "mnist-union-0.3-1.0": {"inf": 0.3, "2": 1.0},
    "mnist-union-1-0.3-0.1": {"inf": 0.1, "2": 0.3, "1": 1.0},
    "cifar10-union-2_255-0.25": {"inf": 2 / 255, "2": 0.25},
    "mnist-patch-5x5": {},
    "mnist-patch-5x5-ibp": {},
}
VERSIONS = [False, True]


def leaf_paths(content):
    keys = ("eps", "transforms", "patch", "model", "train", "released")
    parts = {key: content[key] for key in keys if key in content}
    return [path for path, _ in leaves(parts)]


def test_every_row_and_setting_has_a_preset():
    assert set(preset_names()) == {
        f"{setting}-{row}" for setting in SETTINGS for row in ROWS
    } | set(OURS)
    assert preset_names() == sorted(preset_names())


@pytest.mark.parametrize("released", VERSIONS, ids=["paper", "released"])
@pytest.mark.parametrize("name", preset_names())
def test_parts_can_be_built(name, released):
    preset = load_preset(name, released)
    assert preset.name == name and preset.title and preset.data in NAMES and preset.model in MODELS
    assert isinstance(preset.train, TrainConfig)
    sets = preset.perturbations()
    balls = [entry for entry in sets if isinstance(entry, PerturbationLpBox)]
    assert [(f"{ball.norm:g}", ball.eps) for ball in balls] == list(preset.eps.items())
    assert len(sets) == len(balls) + len(preset.transforms) + len(preset.patch) > 0
    assert all(entry.clip == (0.0, 1.0) for entry in sets)
    loss = build_loss(preset.train.loss, sets, **preset.train.loss_options)
    terms = [] if preset.train.loss == "natural" else loss.terms
    assert {term.perturbation.name for term in terms} <= {entry.name for entry in sets}


@pytest.mark.parametrize(
    "shape", [(1, 28, 28), (3, 32, 32), (3, 56, 56)], ids=["mnist", "cifar10", "tinyimagenet"]
)
def test_the_network_fits_the_images(shape):
    preset = load_preset("mnist-0.1-0.5-max")
    assert (
        len(
            list(
                build_model(
                    preset.model, shape, 10, **{**preset.model_options, "width": 2}
                ).parameters()
            )
        )
        > 0
    )


@pytest.mark.parametrize("setting", SETTINGS)
def test_rows_of_a_setting_share_data_and_radii(setting):
    eps_inf, eps_2 = SETTINGS[setting]
    for name in (
        item for item in preset_names() if item.rpartition("-")[0] == setting and item not in OURS
    ):
        preset = load_preset(name)
        assert preset.eps == {"inf": eps_inf, "2": eps_2} and preset.data == setting.split("-")[0]


@pytest.mark.parametrize("name", preset_names())
def test_every_number_and_choice_has_a_source(name):
    content = read_preset(name)
    unexplained = [
        path for path in leaf_paths(content) if nearest_source(content["source"], path) is None
    ]
    assert not unexplained


@pytest.mark.parametrize("name", preset_names())
def test_every_source_explains_something(name):
    content = read_preset(name)
    known = leaf_paths(content) + ["model"]
    idle = [
        key
        for key in content["source"]
        if not any(f"{path}.".startswith(f"{key}.") for path in known)
    ]
    assert not idle
    assert all(isinstance(source, str) and source for source in content["source"].values())


@pytest.mark.parametrize("name", preset_names())
def test_options_are_written_out(name):
    """Nothing rests on a default of this package that may change."""
    settings = read_preset(name)["train"]
    left_out = set(TrainConfig().to_dict()) - set(settings)
    assert left_out <= {
        "adam",
        "projection",
        "clip_norm",
        "average_from",
        "precise_bn",
        "partial_radius",
        "seed",
    }
    assert set(settings["schedule"]) - {"ramp", "radius_start"} == {
        "natural_epochs",
        "anneal_epochs",
        "kappa_start",
        "kappa_end",
    }
    if "adam" in settings:
        assert set(settings["adam"]) == {"beta_1", "beta_2", "eps", "cosine", "scale_rate"}
    if "projection" in settings:
        assert set(settings["projection"]) == {"beta", "statistics", "optimizer", "accumulate"}


@pytest.mark.parametrize("setting", SETTINGS)
def test_only_finetuning_starts_from_another_preset(setting):
    started = {row: load_preset(f"{setting}-{row}").initial for row in ROWS}
    assert started == {**dict.fromkeys(ROWS), "finetune": f"{setting}-linf"}
    assert load_preset(f"{setting}-finetune", released=True).initial == f"{setting}-linf"


@pytest.mark.parametrize("name", OURS)
def test_ours_has_no_released_version_and_no_row(name):
    paper, released = load_preset(name), load_preset(name, released=True)
    assert released == paper and paper.eps == OURS[name]
    of_a_paper = "Zhang et al. 2022" if name.endswith("-published") else "ours; "
    assert paper.source_of("train.epochs").startswith(of_a_paper)
    assert of_this_package() == sorted(OURS)


@pytest.mark.parametrize("name", preset_names())
def test_settings_describe_the_preset(name):
    preset = load_preset(name)
    settings = json.loads(json.dumps(preset.settings()))
    assert set(settings) - {"patch"} == {"data", "eps", "model", "train"}
    assert settings.get("patch", []) == list(preset.patch)
    assert (settings["data"], settings["eps"]) == (preset.data, preset.eps)
    assert settings["model"] == {"name": preset.model, "options": preset.model_options}
    assert TrainConfig.from_dict(settings["train"]) == preset.train


def test_changing_settings_does_not_change_the_preset():
    preset = load_preset("mnist-0.1-0.5-max")
    preset.settings()["eps"]["2"] = preset.settings()["train"]["loss_options"]["ratio_2"] = 7
    assert preset == load_preset("mnist-0.1-0.5-max")


def test_sources_follow_the_version():
    paper, released = (load_preset("mnist-0.1-0.5-scratch", version) for version in VERSIONS)
    assert paper.source_of("train.projection.beta").startswith("CURE src/parse_args.py")
    assert (
        released.source_of("train.projection.beta")
        == "CURE scripts/mnist_small/ours.sh: --beta 0.8"
    )
    assert (paper.source_of("eps.2"), released.source_of("eps.inf")) == ("CURE v1, Table 1",) * 2
    assert released.source_of("eps.2") == "CURE scripts/mnist_small/ours.sh: --eps_end_L2 0.75"
    assert paper.source_of("train.seed") is None
