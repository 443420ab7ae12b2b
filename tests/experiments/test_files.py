"""Names that do not exist and files that are damaged are said so."""

import json

import pytest

from lirpa_multinorm.errors import InvalidArgumentError
from lirpa_multinorm.experiments.presets import files, load_preset, preset_names

GOOD = {
    "title": "t",
    "data": "mnist",
    "eps": {"inf": 0.1},
    "model": {"name": "cnn7"},
    "train": {"epochs": 80},
    "source": {},
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of presets of the test's own; ``put`` writes a file into it."""
    monkeypatch.setattr(files, "FOLDER", tmp_path)

    def put(name, content):
        text = content if isinstance(content, str) else json.dumps(content)
        (tmp_path / f"{name}.json").write_text(text, encoding="utf-8")

    return put


@pytest.mark.parametrize(
    "typo, near",
    [
        ("mnist-0.1-0.5-scrath", "mnist-0.1-0.5-scratch"),
        ("cifar10-8/255-0.5-max", "cifar10-8_255-0.5-max"),
        ("tinyimagenet", "tinyimagenet-1_255-36_255-joint"),
        ("MNIST-0.3-1.0-MAX", "mnist-0.3-1.0-max"),
        ("finetune", "mnist-0.1-0.5-finetune"),
    ],
)
def test_an_unknown_name_lists_the_nearest(typo, near):
    with pytest.raises(InvalidArgumentError, match="unknown; nearest: ") as caught:
        load_preset(typo)
    assert (
        repr(typo) in str(caught.value)
        and near in str(caught.value)
        and "preset_names()" in str(caught.value)
    )


@pytest.mark.parametrize(
    "name", ["zzz", "", None, 3, "_mnist-0.1-0.5", "../training/config"], ids=str
)
def test_other_names_are_refused_too(name):
    with pytest.raises(InvalidArgumentError, match="is unknown"):
        load_preset(name)


def test_base_first_then_the_row_then_what_is_released(folder):
    folder("_base", {**GOOD, "train": {"epochs": 80, "l1": 0.5, "schedule": {"anneal_epochs": 5}}})
    folder(
        "row",
        {
            "base": "_base",
            "train": {"l1": None, "schedule": {"natural_epochs": 2}},
            "released": {"train": {"epochs": 90}, "eps": {"inf": "1/4"}},
        },
    )
    paper, released = load_preset("row"), load_preset("row", released=True)
    assert preset_names() == ["row"]
    assert (paper.train.epochs, paper.train.l1, paper.eps) == (80, 0.0, {"inf": 0.1})
    assert (paper.train.schedule.natural_epochs, paper.train.schedule.anneal_epochs) == (2, 5)
    assert (released.train.epochs, released.eps) == (90, {"inf": 0.25})


def test_a_source_of_the_released_code_speaks_for_all_below(folder):
    folder(
        "row",
        {
            **GOOD,
            "released": {"train": {"l1": 1.0}},
            "source": {"train.epochs": "a", "train": "b", "released.train": "c", "eps": "d"},
        },
    )
    assert load_preset("row").source == {"train.epochs": "a", "train": "b", "eps": "d"}
    assert load_preset("row", released=True).source == {"train": "c", "eps": "d"}


DAMAGED = {
    "not JSON": ('{"title": ', r"row\.json cannot be read: .*line 1"),
    "not an object": ("[1, 2]", r"row\.json holds a list"),
    "no train": (
        {key: value for key, value in GOOD.items() if key != "train"},
        r"row\.json: train missing",
    ),
    "no model name": ({**GOOD, "model": {}}, r"row\.json: model\.name missing"),
    "unknown key": ({**GOOD, "trian": {}}, r"row\.json: unknown key trian; known: .*train"),
    "unknown norm": (
        {**GOOD, "eps": {"l2": 1.0}},
        r"row\.json: unknown key eps\.l2; known: inf, 2, 1",
    ),
    "unknown model key": (
        {**GOOD, "model": {"name": "cnn7", "width": 3}},
        r"unknown key model\.width",
    ),
    "unknown released key": ({**GOOD, "released": {"data": "x"}}, r"unknown key released\.data"),
    "unknown released norm": (
        {**GOOD, "released": {"eps": {"3": 1}}},
        r"unknown key released\.eps\.3",
    ),
    "unknown setting": (
        {**GOOD, "train": {"epoch": 3}},
        r"row\.json: train: .*unknown settings: epoch",
    ),
    "unknown nested setting": (
        {**GOOD, "train": {"schedule": {"anneal": 3}}},
        r"row\.json: train: .*schedule\.anneal",
    ),
    "bad setting": ({**GOOD, "train": {"epochs": 0}}, r"row\.json: train: epochs=0"),
    "bad type": ({**GOOD, "train": {"epochs": "many"}}, r"row\.json: train: "),
    "train no object": ({**GOOD, "train": 3}, r"row\.json: train=3 must be an object"),
    "eps no object": ({**GOOD, "eps": 0.1}, r"row\.json: eps=0\.1 must be an object"),
    "eps empty": ({**GOOD, "eps": []}, r"row\.json: eps=\[\] must be an object"),
    "bad radius": (
        {**GOOD, "eps": {"2": "half"}},
        r"row\.json: eps\.2='half' is neither a number nor a fraction",
    ),
    "radius over zero": ({**GOOD, "eps": {"2": "1/0"}}, r"row\.json: eps\.2='1/0' is neither"),
    "negative radius": (
        {**GOOD, "eps": {"2": -1}},
        r"row\.json: eps=-1.0 must be finite and not negative",
    ),
    "base without a mark": (
        {**GOOD, "base": "row"},
        r"row\.json: base='row' must be a file whose name starts with",
    ),
    "base missing": ({**GOOD, "base": "_none"}, r"_none\.json cannot be read"),
}


@pytest.mark.parametrize("content, message", DAMAGED.values(), ids=list(DAMAGED))
def test_a_damaged_file_is_named(folder, content, message):
    folder("row", content)
    with pytest.raises(InvalidArgumentError, match=message):
        load_preset("row", released=True)


def test_reasons_are_chained(folder):
    folder("row", "{")
    with pytest.raises(InvalidArgumentError) as caught:
        load_preset("row")
    assert isinstance(caught.value.__cause__, json.JSONDecodeError)


def test_a_base_has_no_base(folder):
    folder("_a", {"base": "_a"})
    folder("row", {**GOOD, "base": "_a"})
    with pytest.raises(InvalidArgumentError, match="such a file has no base of its own"):
        load_preset("row")


def test_a_damaged_released_part_does_not_hide_behind_the_paper(folder):
    folder("row", {**GOOD, "released": {"train": {"epochs": 0}}})
    assert load_preset("row").train.epochs == 80
    with pytest.raises(InvalidArgumentError, match="epochs=0"):
        load_preset("row", released=True)
