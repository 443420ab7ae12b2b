"""The runner, the report and the check.

Nothing is lost, nothing is done twice, and what is worse is found.
"""

import json
import math

import pytest

from benchmarks import check as check_module
from benchmarks import run as run_module
from benchmarks.check import compare
from benchmarks.report import plain_tables, report
from benchmarks.run import Config, Figure, Places, names, read, run
from lirpa_multinorm.errors import InvalidArgumentError

CALLS = []


def made_up(values, broken=()):
    """A benchmark of one number per task."""

    class Module:
        @staticmethod
        def tasks(settings, places):
            return {
                key: lambda key=key, value=value: task(key, value) for key, value in values.items()
            }

        @staticmethod
        def problems(rows):
            return [f"{row['key']} is negative" for row in rows if row["value"] < 0]

        @staticmethod
        def figures(rows):
            return {row["key"]: Figure(row["value"], 0.1) for row in rows}

    def task(key, value):
        CALLS.append(key)
        if key in broken:
            raise KeyboardInterrupt
        return {"value": value, "ratio": {"median": value, "quartiles": [value, value]}}

    return Module


@pytest.fixture
def config(monkeypatch):
    CALLS.clear()
    monkeypatch.setattr(run_module, "module_of", lambda name: made_up({"a": 1.0, "b": 2.0}))
    return Config("made_up", "made_up", "nothing", 0, {})


def test_results_are_a_header_and_a_line_per_task(config, tmp_path):
    result = read(run(config, folder=tmp_path))
    assert result.header["config"] == "made_up" and {"torch", "git_commit", "host"} <= set(
        result.header["environment"]
    )
    assert [(row["key"], row["value"]) for row in result.rows] == [("a", 1.0), ("b", 2.0)]
    assert [path.name for path in tmp_path.iterdir()] == ["made_up.jsonl"] and result.row("b")[
        "value"
    ] == 2.0


def test_an_interrupted_run_goes_on(config, tmp_path, monkeypatch):
    monkeypatch.setattr(
        run_module, "module_of", lambda name: made_up({"a": 1.0, "b": 2.0}, broken="b")
    )
    with pytest.raises(KeyboardInterrupt):
        run(config, folder=tmp_path)
    part = tmp_path / "made_up.part.jsonl"
    assert not (tmp_path / "made_up.jsonl").exists() and len(part.read_text().splitlines()) == 2
    part.write_text(part.read_text() + '{"key": "b", "val')  # killed while writing
    monkeypatch.setattr(run_module, "module_of", lambda name: made_up({"a": 1.0, "b": 2.0}))
    run(config, folder=tmp_path)
    assert CALLS == ["a", "b", "b"]


def test_an_interrupted_run_of_other_settings_starts_anew(config, tmp_path):
    run(config, folder=tmp_path).rename(tmp_path / "made_up.part.jsonl")
    run(Config("made_up", "made_up", "nothing", 0, {"n": 2}), folder=tmp_path)
    assert CALLS == ["a", "b", "a", "b"]


def test_every_configuration_can_be_read_and_names_a_benchmark():
    assert {"speed_short", "tightness_digits", "certified"} <= set(names()) and set(
        names("short")
    ) < set(names())
    for name in names():
        single = Config.read(name)
        assert (
            callable(run_module.module_of(single.benchmark).tasks)
            and single.shows
            and single.minutes > 0
        )
        assert set(single.needs) <= {"reference", "runs", "official", "data_dir", "ctrain"}
        assert not (single.needs and "short" in single.sets)


def test_the_short_set_takes_less_than_ten_minutes():
    assert 0 < sum(Config.read(name).minutes for name in names("short")) < 10


def test_errors_name_the_remedy(tmp_path, monkeypatch):
    with pytest.raises(
        InvalidArgumentError, match="no configuration 'speeed'; use angles, certificates, "
    ):
        Config.read("speeed")
    with pytest.raises(InvalidArgumentError, match="certified needs --reference"):
        run(Config.read("certified"), Places(), tmp_path)
    monkeypatch.setattr(run_module, "CONFIGS", tmp_path)
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(InvalidArgumentError, match="bad.json"):
        Config.read("bad")


def test_problems_make_the_command_fail(config, tmp_path, monkeypatch):
    monkeypatch.setattr(run_module, "module_of", lambda name: made_up({"a": -1.0}))
    monkeypatch.setattr(Config, "read", classmethod(lambda cls, name: config))
    with pytest.raises(SystemExit, match="made_up: a is negative"):
        run_module.main(["made_up", "--output", str(tmp_path)])
    assert (tmp_path / "made_up.jsonl").exists()


@pytest.mark.parametrize(
    "now, better, verdict",
    [
        (1.05, "lower", "fine"),
        (1.2, "lower", "worse"),
        (0.2, "lower", "fine"),
        (0.95, "higher", "fine"),
        (0.8, "higher", "worse"),
        (math.nan, "lower", "worse"),
        (math.nan, "higher", "worse"),
    ],
)
def test_what_is_worse_by_more_than_its_tolerance_is_found(now, better, verdict):
    (row,) = compare({"a": Figure(now, 0.1, better)}, {"a": Figure(1.0, 0.1, better)})
    assert row["verdict"] == verdict and row["tolerance"] == 0.1


def test_numbers_that_one_side_lacks_are_found():
    rows = compare({"a": Figure(1.0, 0.1)}, {"b": Figure(1.0, 0.1)})
    assert [row["verdict"] for row in rows] == ["missing", "missing"]


def test_the_check_compares_with_committed_results(config, tmp_path, monkeypatch):
    for module in (run_module, check_module):
        monkeypatch.setattr(module, "module_of", lambda name: made_up({"a": 1.0, "b": 2.0}))
    committed, new = tmp_path / "committed", tmp_path / "new"
    assert [row["verdict"] for row in check_module.check(config, new, committed=committed)] == [
        "missing"
    ]
    run(config, folder=committed)
    assert [row["verdict"] for row in check_module.check(config, new, committed=committed)] == [
        "fine",
        "fine",
    ]
    for module in (run_module, check_module):
        monkeypatch.setattr(module, "module_of", lambda name: made_up({"a": 1.0, "b": 2.5}))
    assert [row["verdict"] for row in check_module.check(config, new, committed=committed)] == [
        "fine",
        "worse",
    ]
    assert CALLS[-4:] == ["a", "b", "a", "b"]  # once more, since a number was worse
    other = Config("made_up", "made_up", "nothing", 0, {"n": 1})
    assert [row["verdict"] for row in check_module.check(other, new, committed=committed)] == [
        "other settings"
    ]
    monkeypatch.setattr(Config, "read", classmethod(lambda cls, name: config))
    monkeypatch.setattr(
        check_module, "check", lambda *_: compare({"a": Figure(2, 0.1)}, {"a": Figure(1, 0.1)})
    )
    with pytest.raises(SystemExit, match=r"1 of 1 numbers are not what was committed: a \(worse\)"):
        check_module.main(["made_up", "--output", str(new)])


def test_what_is_worse_once_only_is_fine(config, tmp_path, monkeypatch):
    committed, values = tmp_path / "committed", iter([2.5, 2.0])
    monkeypatch.setattr(check_module, "module_of", run_module.module_of)
    run(config, folder=committed)

    def busy_at_first(*where):
        """Run with the next value."""
        value = next(values)
        monkeypatch.setattr(run_module, "module_of", lambda name: made_up({"a": 1.0, "b": value}))
        return run(*where)

    monkeypatch.setattr(check_module, "run", busy_at_first)
    rows = check_module.check(config, tmp_path / "new", committed=committed)
    assert [(row["now"], row["verdict"]) for row in rows] == [(1.0, "fine"), (2.0, "fine")]


def test_the_report_is_made_of_results_alone(config, tmp_path):
    path = run(config, folder=tmp_path)
    path.rename(tmp_path / "speed_short.jsonl")  # its own configuration and module are gone
    text = path.read_text() if path.exists() else (tmp_path / "speed_short.jsonl").read_text()
    lines = text.splitlines()
    (tmp_path / "speed_short.jsonl").write_text(
        "\n".join([json.dumps({**json.loads(lines[0]), "benchmark": "speed"}), *lines[1:]]) + "\n"
    )
    result = report(tmp_path).read_text()
    assert (
        "## speed_short" in result
        and "| a " in result
        and "2 (2 to 2)" in result
        and "auto_LiRPA" in result
    )


def test_rows_without_a_table_of_their_own_are_one():
    rows = [
        {
            "key": "a",
            "n": 3,
            "inner": {"x": 1},
            "ratio": {"median": 1.234, "quartiles": [1.0, 2.0]},
        },
        {"key": "b"},
    ]
    assert plain_tables(rows) == {
        "All": [
            {"key": "a", "n": 3, "ratio": "1.23 (1 to 2)"},
            {"key": "b", "n": None, "ratio": None},
        ]
    }
