"""The notebooks run, say what they were committed with, and are pages of the site."""

import json
import re
import warnings

import pytest

from tests.docs.notebooks import NOTEBOOKS, code_cells, committed, read, run


def shape(printed):
    """Return the words of a text, with marks in place of numbers and of verdicts."""
    words = re.sub(r"-?\d+(\.\d+)?", "#", printed)
    return re.sub(r": \w+ \([\w-]+\)", ": (method)", words).split()


def test_there_are_two():
    assert [path.stem for path in NOTEBOOKS] == ["bound_and_certify", "train_for_the_union"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_prints_what_it_was_committed_with(path):
    notebook = read(path)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        printed = run(notebook)
    assert not [str(item.message) for item in caught if item.category is UserWarning]
    for cell, text in zip(code_cells(notebook), printed):
        assert shape(text) == shape(committed(cell))
    assert sum(map(bool, printed)) >= 3


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_can_be_opened_and_holds_no_pictures(path):
    text = path.read_text(encoding="utf-8")
    notebook = read(path)
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5) and len(text) < 30_000
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    for cell in code_cells(notebook):
        assert cell["execution_count"] is None and cell["metadata"] == {}
        assert all(output["output_type"] == "stream" for output in cell["outputs"])
    assert text == json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"
