"""Run files: the same run as by flags, and a line for each thing a user can get wrong."""

import json

import pytest

from lirpa_multinorm.cli import main
from tests.cli.runs import summary_in

pytestmark = pytest.mark.usefixtures("no_figures")

YAML = """
data: {file}
eps_inf: 1/50          # as on the command line
eps-2: 1e-1
methods: [IBP, CROWN]
no-attack: true
no-clip: false
time-limit: null
no_progress: true
"""


def test_a_run_file_is_its_flags(checkpoint, file, tmp_path):
    """YAML and JSON, with the network in the file or beside it."""
    path = tmp_path / "run.yaml"
    path.write_text(YAML.format(file=file))
    flags = ["--eps-inf", "1/50", "--eps-2", "0.1", "--methods", "IBP", "CROWN"]
    flags += ["--no-attack", "--no-progress"]
    runs = {
        "flags": [str(checkpoint), "--data", str(file), *flags],
        "file": [str(checkpoint), "--config", str(path)],
        "front": [f"--config={path}", str(checkpoint)],
    }
    whole = {"checkpoint": str(checkpoint), "data": str(file), "eps_inf": "1/50", "eps-2": 0.1}
    whole |= {"methods": ["IBP", "CROWN"], "no-attack": True, "no-progress": True}
    (tmp_path / "run.json").write_text(json.dumps(whole))
    runs["whole"] = ["--config", str(tmp_path / "run.json")]
    results = {}
    for name, words in runs.items():
        assert main(["certify", *words, "--output", str(tmp_path / name)]) == 0, name
        results[name] = summary_in(tmp_path / name)
    for name, result in results.items():
        assert result["perturbations"] == results["flags"]["perturbations"], name
        assert result["settings"] == results["flags"]["settings"], name
        assert result["result"]["counts"] == results["flags"]["result"]["counts"], name


def test_flags_override_the_file(checkpoint, file, tmp_path):
    (tmp_path / "run.yaml").write_text(YAML.format(file=file))
    words = [str(checkpoint), "--eps-2", "0.3", "--config", str(tmp_path / "run.yaml")]
    assert main(["certify", *words, "--output", str(tmp_path / "r")]) == 0
    assert [entry["eps"] for entry in summary_in(tmp_path / "r")["perturbations"]] == [0.02, 0.3]


def test_several_runs_are_a_list(checkpoint, file, tmp_path, capsys):
    folders = [str(tmp_path / name) for name in ("a", "b")]
    for folder in folders:
        words = ["--data", str(file), "--methods", "IBP", "--no-progress", "--output", folder]
        assert main(["certify", str(checkpoint), *words]) == 0
    (tmp_path / "report.yaml").write_text(
        json.dumps({"runs": folders, "csv": str(tmp_path / "c.csv")})
    )
    assert main(["report", "--config", str(tmp_path / "report.yaml")]) == 0
    assert (tmp_path / "c.csv").read_text().count("\n") == 1 + 2 * 2 * 12


def test_train_takes_one_too(file, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(
        f"data: {file}\nmodel: mlp\nlosses: [natural]\nepochs: 1\nbatch-size: 16\n"
        f"certify-methods: [IBP]\nno-progress: yes\noutput: {tmp_path / 'runs'}\n"
    )
    assert main(["train", "--config", str(path)]) == 0
    table = json.loads((tmp_path / "runs" / "table.json").read_text())
    assert [row["method"] for row in table["rows"]] == ["natural"]


ERRORS = {
    "unknown": ("epz-inf: 0.1", "there is no flag --epz-inf; did you mean eps-inf?"),
    "list": ("- eps-inf", "holds no names with values"),
    "empty": ("", "holds no names with values"),
    "damaged": ("eps-inf: [", "cannot be read"),
    "nested": ("eps-inf: {a: 1}", "write each flag on a line of its own"),
    "truth": ("eps-inf: true", "eps-inf: True is no value of this flag"),
    "value": ("eps-inf: wide", "'wide' is neither a number nor a fraction"),
    "itself": ("config: other.yaml", "there is no flag --config"),
}


@pytest.mark.parametrize("text, message", ERRORS.values(), ids=ERRORS)
def test_what_is_wrong_is_named(text, message, checkpoint, tmp_path, capsys):
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(SystemExit) as stopped:
        main(["certify", str(checkpoint), "--config", str(tmp_path / "run.yaml")])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_a_file_that_is_missing_or_given_twice_is_named(checkpoint, tmp_path, capsys):
    for words, message in (
        (["--config", str(tmp_path / "no.yaml")], "no.yaml"),
        (["--config", "a.yaml", "--config", "b.yaml"], "given 2 times"),
    ):
        with pytest.raises(SystemExit):
            main(["certify", str(checkpoint), *words])
        assert message in capsys.readouterr().err
