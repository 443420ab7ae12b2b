"""The ablations and the comparison with the paper.

Every row can be trained, and tables say what they mean.
"""

import json

import pytest

from benchmarks import tradeoff
from benchmarks.ablation import ABLATIONS, draw
from benchmarks.tradeoff import PAPER, paper_rows, side_by_side
from lirpa_multinorm import build_loss
from lirpa_multinorm.experiments.comparison import Experiment
from lirpa_multinorm.experiments.presets import preset_names
from tests.toy import CONFIG, SETS, SPEC, data


@pytest.mark.parametrize("name", ABLATIONS)
def test_every_value_of_an_ablation_can_be_trained(name):
    experiment = Experiment(data(), SPEC, SETS, CONFIG)
    configs = [experiment.row_config(row) for row in ABLATIONS[name].values()]
    assert all(
        build_loss(config.loss, SETS, **config.loss_options) is not None for config in configs
    )
    assert (
        len({json.dumps(config.to_dict(), sort_keys=True) for config in configs})
        == len(configs)
        > 2
    )


def test_an_ablation_is_drawn_over_its_values(tmp_path):
    table = [
        {
            "method": value,
            "clean": 90.0,
            "certified union": 10.0 * i,
            "certified union ±": 1.0,
            "n": 12,
        }
        for i, value in enumerate(ABLATIONS["eta"])
    ]
    draw("eta", table, tmp_path)
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_the_papers_numbers_stand_beside_ours():
    """Table 1 of CURE, checked on two cells; a method the paper lacks has dashes."""
    paper = paper_rows("mnist-0.3-1.0")
    assert {row["method"]: row["certified union"] for row in paper}["Scratch"] == 83.9
    ours = [
        {
            "method": "Max",
            "clean": 97.0,
            "certified l_inf": 90.0,
            "certified l_2": 1.0,
            "certified union": 1.0,
        },
        {
            "method": "Max ball",
            "clean": 95.0,
            "certified l_inf": 86.0,
            "certified l_2": 70.0,
            "certified union": 70.0,
        },
    ]
    rows = side_by_side(ours, paper)
    assert (rows[0]["certified union"], rows[0]["paper: certified union"]) == (1.0, 74.8)
    assert rows[1]["paper: clean"] is None


def test_folders_are_put_together(tmp_path, monkeypatch):
    """The later folder's row counts, and presets have their methods' names.

    Rows with and without intervals mix.
    """
    cells = {"certified l_inf": 90.0, "certified l_2": 1.0, "certified union": 1.0}
    tables = {
        "one": [
            {"method": "Max", "clean": 97.0, **cells},
            {"method": "Joint", "clean": 96.0, **cells},
        ],
        "two": [
            {
                "method": "mnist-0.3-1.0-max",
                "clean": 95.0,
                **cells,
                "clean ±": 0.5,
                "certified union ±": 0.2,
            },
            {"method": "mnist-0.3-1.0-ours", "clean": 94.0, **cells},
        ],
    }
    for name, rows in tables.items():
        (tmp_path / name).mkdir()
        content = {"rows": rows, "settings": {"model": {"name": "mlp"}}}
        (tmp_path / name / "table.json").write_text(json.dumps(content))
    monkeypatch.setattr(
        "sys.argv", ["tradeoff", "mnist-0.3-1.0", str(tmp_path / "one"), str(tmp_path / "two")]
    )
    tradeoff.main()
    lines = (tmp_path / "one" / "paper.md").read_text().splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["Max", "Joint", "ours"]
    assert "95.0 ± 0.5" in lines[2] and "74.8" in lines[2] and "—" not in lines[3]
    assert (tmp_path / "one" / "tradeoff.png").stat().st_size > 1000
    (tmp_path / "two" / "table.json").write_text(
        json.dumps({"rows": [], "settings": {"model": {"name": "cnn7"}}})
    )
    with pytest.raises(SystemExit, match="different networks"):
        tradeoff.main()


def test_the_paper_has_a_row_for_every_preset():
    settings = set(json.loads(PAPER.read_text(encoding="utf-8"))) - {"source", "columns"}
    rows = {
        "linf": "SABR l_inf",
        "l2": "CURE-l2",
        "joint": "Joint",
        "max": "Max",
        "random": "Random",
        "scratch": "Scratch",
        "finetune": "Finetune",
    }
    for name in preset_names():
        setting, _, row = name.rpartition("-")
        if setting in settings and row != "ours":
            assert rows[row] in {item["method"] for item in paper_rows(setting)}


def test_an_unknown_setting_names_the_known_ones():
    with pytest.raises(SystemExit, match="mnist-0.1-0.5"):
        paper_rows("mnist")
