"""docs/recipes.md says what the files say."""

import re
from pathlib import Path

import pytest

from lirpa_multinorm.experiments.presets import preset_names
from lirpa_multinorm.experiments.presets.files import leaves, read_preset
from lirpa_multinorm.experiments.presets.tables import OURS, own_tables, setting_tables, settings

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "recipes.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("setting", settings())
def test_tables_agree_with_the_files(setting):
    printed = f"### {setting}\n\n{setting_tables(setting)}\n"
    assert printed in TEXT, (
        "print the tables anew: python -m lirpa_multinorm.experiments.presets.tables"
    )


def test_the_table_of_this_packages_recipes_agrees_with_the_files():
    assert f"### {OURS}\n\n{own_tables()}\n" in TEXT, (
        "print the tables anew: python -m lirpa_multinorm.experiments.presets.tables"
    )


def test_no_other_setting_is_documented():
    assert re.findall(r"^### (.+)$", TEXT, re.MULTILINE) == [*settings(), OURS]


def test_every_difference_is_named_with_its_option():
    """What --released changes anywhere stands in the table of differences."""
    part = TEXT.partition("## Paper and released code")[2].partition("\n\nWhere the paper")[0]
    changed = {
        path for name in preset_names() for path, _ in leaves(read_preset(name).get("released", {}))
    }
    fields = {
        re.sub(r"^(train\.)?(loss_options\.|(schedule)\..*)?", r"\3", path) for path in changed
    }
    missing = [
        field
        for field in fields
        if f"`{field}`" not in part and f"`{field.partition('.')[0]}`" not in part
    ]
    assert not missing


def test_kinds_of_sources_are_explained():
    kinds = {
        re.match(
            r"CURE v1|SABR README|(CURE|SABR)( and CURE)? (src|scripts)|ours|\w+ et al. \d+", source
        ).group()
        for name in preset_names()
        for source in read_preset(name)["source"].values()
    }
    explained = TEXT.partition("## Where the numbers come from")[2].partition("##")[0]
    for kind in kinds:
        assert f"`{kind}" in explained, kind
