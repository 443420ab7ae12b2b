"""Transforms and patches in ``train``: by flags, in presets, and in what a run leaves behind."""

import json

import pytest

import lirpa_multinorm.experiments.presets.files as files_module
from lirpa_multinorm import PerturbationPatch
from lirpa_multinorm.errors import InvalidArgumentError
from lirpa_multinorm.experiments.presets import load_preset
from lirpa_multinorm.experiments.split_sets import all_sets_of
from lirpa_multinorm.training import load_checkpoint
from tests.cli.runs import error_of, train_on, written_config

pytestmark = pytest.mark.usefixtures("no_figures")
SHORT = ("--losses", "IBP", "--natural-epochs", 0, "--anneal-epochs", 1)


def names_in(output, row="ibp"):
    return [entry.name for entry in load_checkpoint(output / row / "checkpoint.pt").perturbations]


def test_flags_name_sets_beside_the_radii(file, tmp_path):
    output = tmp_path / "run"
    flags = ["--patch", "1x2", "2x2", "--rotation", 5, "--scale", 0.1, "--transforms", "mnist-r30"]
    options = ["--candidates-patch", 3, "--ratio-geometric", 0.5, "--shrink-patch", 0.25]
    assert train_on(file, output, *SHORT, *flags, *options, "--norms", "inf") == 0
    expected = ["l_inf", "Sc(10),R(5)", "R(30)", "1x2 patch", "2x2 patch"]
    assert names_in(output) == expected
    given = {"candidates_patch": 3, "ratio_geometric": 0.5, "shrink_patch": 0.25, "ratio_inf": 0.6}
    assert written_config(output, "ibp")["train"]["loss_options"] == given
    assert "certified 2x2 patch" in (output / "table.md").read_text()
    assert train_on(file, output, *SHORT, *flags, *options, "--norms", "inf", "--resume") == 0
    other = ["--patch", "2x2", "--norms", "inf", "--resume", *options, *flags[3:]]
    assert train_on(file, output, *SHORT, *other) == 2


def test_norms_none_leaves_the_radii_out_and_their_options_with_them(file, tmp_path):
    flags = ["--patch", "2x2", "--eps-0", 2]
    assert train_on(file, tmp_path, *SHORT, "--norms", "none", *flags) == 0
    assert names_in(tmp_path) == ["2x2 patch", "l_0"]
    assert written_config(tmp_path, "ibp")["train"]["loss_options"] == {}


def test_a_dry_run_names_the_sets(file, tmp_path, capsys):
    flags = ["--patch", "1x2", "--rotation", 5, "--norms", "2", "--dry-run"]
    assert train_on(file, tmp_path / "none", *SHORT, *flags) == 0
    printed = capsys.readouterr().out
    assert "patches of 1x2 pixels" in printed and "-5 to 5" in printed
    assert "l_2 radius" in printed and "l_inf radius" not in printed


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--norms", "none"], "--norms none leaves no set"),
        (["--norms", "none", "2", "--patch", "1x1"], "leaves all balls out"),
        (["--norms", "1"], "--norms 1: this norm has no radius; give it with --eps-1"),
        (["--patch", "5"], "--patch='5': give HEIGHTxWIDTH"),
        (["--patch", "1x2x3"], "give HEIGHTxWIDTH"),
        (["--patch", "9x9"], "does not fit"),
        (["--rotation", "-3"], "--rotation=-3.0 must be >= 0"),
        (["--transforms", "mnist-r3"], "did you mean 'mnist-r30'"),
        (["--candidates-patch", 2], "name a norm of which this loss has no set"),
        (["--patch", "1x1", "--candidates-patch", 0], "candidates=0 must be a positive integer"),
        (["--norms", "2", "--ratio-inf", 0.5], "ratio_inf name a norm"),
    ],
)
def test_flags_that_mean_nothing_are_one_sentence(file, tmp_path, capsys, flags, message):
    assert message in error_of(capsys, train_on(file, tmp_path / "none", *SHORT, *flags))
    assert not (tmp_path / "none").exists()


@pytest.fixture
def preset(monkeypatch, tmp_path_factory):
    """A preset of ours with other sets."""
    folder, name = tmp_path_factory.mktemp("presets"), "mnist-linf-0.1"
    for file in files_module.FOLDER.iterdir():
        if file.name.endswith(".json"):
            (folder / file.name).write_text(file.read_text())
    content = json.loads((folder / f"{name}.json").read_text())
    monkeypatch.setattr(files_module, "FOLDER", folder)

    def with_sets(**sets):
        (folder / f"{name}.json").write_text(json.dumps({**content, **sets}))
        return load_preset(name)

    return with_sets


def test_a_preset_may_name_sets_beside_its_radii(preset):
    result = preset(patch=["2x3"], transforms=["mnist-t2", {"rotation": [-5, 9]}])
    names = [entry.name for entry in result.perturbations()]
    assert names == ["l_inf", "Tu(2),Tv(2)", "R(-5..9)", "2x3 patch"]
    assert [entry.name for entry in all_sets_of(result.settings())] == names
    assert preset().settings().keys() == {"data", "eps", "model", "train"}


def test_flags_replace_a_preset_s_patches(preset, file, tmp_path):
    preset(patch=["2x3"], transforms=[{"rotation": 5}])
    flags = ["--preset", "mnist-linf-0.1", "--saturation", 0.1, 0.9, "--patch", "1x1"]
    assert train_on(file, tmp_path, *flags, "--eps-inf", 0.01) == 0
    assert names_in(tmp_path, "mnist-linf-0.1") == ["l_inf", "R(5)", "1x1 patch"]


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        ({"patch": "5x5"}, "patch='5x5' must be a list"),
        ({"patch": [5]}, "patch=5: give HEIGHTxWIDTH"),
        ({"patch": ["0x1"]}, "height=0 must be a positive integer"),
        ({"transforms": [{"spin": 3}]}, "transforms: {'spin': 3} must be a column"),
        ({"transforms": [3]}, "transforms: 3 must be a column"),
        ({"transforms": ["mnist-r3"]}, "did you mean"),
    ],
)
def test_a_damaged_preset_names_the_file(preset, sets, message):
    with pytest.raises(InvalidArgumentError, match="preset file mnist-linf-0.1.json: ") as caught:
        preset(**sets)
    assert message in str(caught.value)


def test_sets_of_settings_without_radii():
    (only,) = all_sets_of({"eps": {}, "patch": ["2x3"]})
    assert isinstance(only, PerturbationPatch) and (only.height, only.width) == (2, 3)
