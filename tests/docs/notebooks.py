"""Notebooks without Jupyter: their cells run one after the other, and what they print is kept.

``python -m tests.docs.notebooks`` runs those of the documentation and writes their outputs anew.
"""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

NOTEBOOKS = sorted((Path(__file__).resolve().parents[2] / "docs" / "notebooks").glob("*.ipynb"))


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def code_cells(notebook):
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def run(notebook):
    """Return what each code cell prints."""
    names, printed = {"__name__": "__main__"}, []
    for cell in code_cells(notebook):
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(compile("".join(cell["source"]), "cell", "exec"), names)
        printed.append(out.getvalue())
    return printed


def committed(cell):
    """Return the printed output that a cell was committed with."""
    return "".join("".join(output["text"]) for output in cell["outputs"])


def write(path):
    """Run a notebook and write its outputs."""
    notebook = read(path)
    for cell, printed in zip(code_cells(notebook), run(notebook)):
        text = {"name": "stdout", "output_type": "stream", "text": printed.splitlines(True)}
        cell["outputs"] = [text] if printed else []
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    for found in NOTEBOOKS:
        write(found)
