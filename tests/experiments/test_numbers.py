"""The numbers themselves, once more: from SABR's README, CURE's paper and CURE's scripts."""

import pytest

from lirpa_multinorm.experiments.presets import load_preset, preset_names
from lirpa_multinorm.experiments.presets.tables import of_this_package

M1, M3, C2, C8, TIN = SETTINGS = (
    "mnist-0.1-0.5",
    "mnist-0.3-1.0",
    "cifar10-2_255-0.25",
    "cifar10-8_255-0.5",
    "tinyimagenet-1_255-36_255",
)
# epochs, milestones, annealing epochs, batch size, l1, lambda_inf, augmentation
RECIPES = {
    M1: (70, (50, 60), 20, 256, 1e-5, 0.4, "none"),
    M3: (70, (50, 60), 20, 256, 1e-6, 0.6, "none"),
    C2: (160, (120, 140), 80, 128, 1e-6, 0.1, "cifar"),
    C8: (180, (140, 160), 80, 128, 0.0, 0.7, "cifar"),
    TIN: (180, (140, 160), 80, 128, 1e-6, 0.4, "tinyimagenet"),
}
# eta from scratch, bottleneck norm, released beta, epochs of fine-tuning and their milestones
CURE = {
    M1: (2.0, "2", 0.8, 14, (10, 12)),
    M3: (0.5, "2", 0.8, 14, (10, 12)),
    C2: (2.0, "inf", 0.8, 32, (24, 28)),
    C8: (2.0, "inf", 0.8, 36, (28, 32)),
    TIN: (2.0, "inf", 0.5, 36, (28, 32)),
}
TWO_NORMS = ("joint", "max", "random", "scratch", "finetune")


def train(setting, row, released=False):
    return load_preset(f"{setting}-{row}", released).train


@pytest.mark.parametrize("row", ["linf", "joint", "max", "random", "scratch"])
@pytest.mark.parametrize("setting", SETTINGS)
def test_recipes_from_scratch(setting, row):
    config = train(setting, row)
    assert (
        config.epochs,
        config.milestones,
        config.schedule.anneal_epochs,
        config.batch_size,
        config.l1,
        config.loss_options["ratio_inf"],
        config.augment,
    ) == RECIPES[setting]
    assert (config.learning_rate, config.decay, config.regularizer, config.initialization) == (
        5e-4,
        0.2,
        0.5,
        "shi",
    )
    assert (
        config.schedule.natural_epochs,
        config.schedule.kappa_start,
        config.schedule.kappa_end,
    ) == (1, 0, 0)
    assert (config.clip_norm, config.average_from, config.precise_bn) == (None, None, False)


@pytest.mark.parametrize("setting", SETTINGS)
def test_losses_of_the_rows(setting):
    names = {row: train(setting, row).loss for row in ("linf", "l2", *TWO_NORMS)}
    assert names == {
        "linf": "sabr",
        "l2": "cure_l2",
        "joint": "joint",
        "max": "max",
        "random": "random",
        "scratch": "cure",
        "finetune": "cure",
    }
    assert train(setting, "joint").loss_options["weights"] == [0.5, 0.5]
    assert train(setting, "random").loss_options["blocks"] == "partition"
    for row in ("l2", *TWO_NORMS):
        options = train(setting, row).loss_options
        assert (options["ratio_2"], options["region_2"]) == (1e-5, "box")


@pytest.mark.parametrize("setting", SETTINGS)
def test_shrinking_is_for_cifar_2_255_only(setting):
    shrink = {
        row: train(setting, row).loss_options.get("shrink_inf") for row in ("linf", *TWO_NORMS)
    }
    assert set(shrink.values()) == {0.4 if setting == C2 else None}
    assert "shrink_inf" not in train(setting, "l2").loss_options


@pytest.mark.parametrize("setting", SETTINGS)
def test_single_norm_l2_has_no_regulariser(setting):
    config = train(setting, "l2")
    assert (config.regularizer, config.l1) == (0.0, 0.0) and "ratio_inf" not in config.loss_options
    assert (config.epochs, config.milestones) == RECIPES[setting][:2]


@pytest.mark.parametrize("setting", SETTINGS)
def test_cure_from_scratch(setting):
    config = train(setting, "scratch")
    eta, target = CURE[setting][:2]
    assert (config.loss_options["eta"], config.loss_options["target"]) == (eta, target)
    assert (config.loss_options["combine"], config.loss_options["detach"]) == ("max", False)
    assert (
        config.projection.beta,
        config.projection.statistics,
        config.projection.optimizer,
        config.projection.accumulate,
    ) == (0.5, "certified", "own", False)


@pytest.mark.parametrize("setting", SETTINGS)
def test_finetuning(setting):
    config = train(setting, "finetune")
    _, target, _, epochs, milestones = CURE[setting]
    assert config.epochs == epochs == round(0.2 * RECIPES[setting][0])
    assert (config.milestones, config.projection, config.initialization) == (
        milestones,
        None,
        "default",
    )
    assert (
        config.loss_options["eta"],
        config.loss_options["target"],
        config.loss_options["combine"],
    ) == (0.5, target, "max")
    assert (
        config.schedule.kappa(0.0) == 0
        and config.schedule.anneal_epochs == 0.2 * RECIPES[setting][2]
    )


# --- the released code ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in preset_names() if name not in of_this_package()])
def test_released_rates_drop_an_epoch_earlier(name):
    paper, released = (load_preset(name, version).train for version in (False, True))
    expected = (119, 139) if name == f"{C8}-l2" else tuple(item - 1 for item in paper.milestones)
    assert released.milestones == expected


@pytest.mark.parametrize("setting", SETTINGS)
def test_released_losses(setting):
    for row in ("l2", *TWO_NORMS):
        assert train(setting, row, released=True).loss_options["region_2"] == "released"
    for row in TWO_NORMS:
        assert train(setting, row, released=True).loss_options["regularized"] == -1
    options = train(setting, "random", released=True).loss_options
    assert (options["blocks"], options.get("shrink_2")) == (
        "overlapping",
        0.4 if setting == C2 else None,
    )


@pytest.mark.parametrize("setting", SETTINGS)
def test_released_projection(setting):
    for row, beta in (("scratch", CURE[setting][2]), ("finetune", 0.5)):
        projection = train(setting, row, released=True).projection
        if (setting, row) == (M1, "finetune"):
            assert projection is None
            continue
        assert (
            projection.beta,
            projection.statistics,
            projection.optimizer,
            projection.accumulate,
        ) == (beta, "mixed", "copy", True)


@pytest.mark.parametrize(
    "setting, anneal", [(M1, 20), (M3, 2), (C2, 14), (C8, 14), (TIN, 14)], ids=SETTINGS
)
def test_released_finetuning(setting, anneal):
    config = train(setting, "finetune", released=True)
    assert config.epochs == CURE[setting][3] + 1
    assert (config.schedule.natural_epochs, config.schedule.anneal_epochs) == (2, anneal)
    assert config.loss_options["combine"] == ("joint" if setting == C2 else "max")
    full = config.schedule.eps_scale(config.epochs)
    assert full < 1 if setting == M1 else full == 1


def test_released_radii():
    changed = {
        name: preset.eps["2"]
        for name in preset_names()
        if (preset := load_preset(name, released=True)).eps != load_preset(name).eps
    }
    assert changed == {
        **{f"{M1}-{row}": 0.75 for row in ("joint", "max", "random", "scratch")},
        **{f"{M3}-{row}": 1.5 for row in ("joint", "random")},
    }


def test_released_epochs_of_single_norm_l2():
    changed = {
        setting: train(setting, "l2", released=True).epochs
        for setting in SETTINGS
        if train(setting, "l2", released=True).epochs != train(setting, "l2").epochs
    }
    assert changed == {C8: 160}
