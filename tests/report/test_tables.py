"""Tables show the numbers that they were given."""

from __future__ import annotations

import pytest

from lirpa_multinorm.errors import InvalidArgumentError
from lirpa_multinorm.report import markdown_table

ROWS = [
    {"loss": "ibp", "linf": 82.44, "union": 81},
    {"loss": "sabr|max", "linf": 84.26, "union": None, "note": "two\nlines"},
]


def test_table_is_aligned_and_formatted():
    assert markdown_table(ROWS, ["loss", "linf", "union", "note"], {"linf": ".1f"}).split("\n") == [
        r"| loss      | linf | union | note      |",
        r"| :-------- | ---: | ----: | :-------- |",
        r"| ibp       | 82.4 |    81 | –         |",
        r"| sabr\|max | 84.3 |     – | two lines |",
    ]


def test_table_takes_functions_as_formats():
    table = markdown_table(ROWS, ["linf"], {"linf": lambda value: f"{value:.0f} %"})
    assert table.split("\n")[2] == "| 82 % |"


def test_table_without_rows_keeps_its_heading():
    assert markdown_table([], ["loss"]).split("\n") == ["| loss |", "| :--- |"]


def test_text_formats_are_not_forced_on_strings():
    rows = [{"time": 1.25}, {"time": "timeout"}]
    assert markdown_table(rows, ["time"], {"time": ".1f"}).split("\n")[2:] == [
        "| 1.2     |",
        "| timeout |",
    ]


def test_unknown_columns_are_named():
    with pytest.raises(
        InvalidArgumentError, match="columns: 'l2' is in none.*loss, linf, union, note"
    ):
        markdown_table(ROWS, ["loss", "l2"])
    with pytest.raises(InvalidArgumentError, match="columns: none given"):
        markdown_table(ROWS, [])
