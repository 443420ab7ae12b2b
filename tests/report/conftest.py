"""Figures caught before they are saved."""

from __future__ import annotations

import importlib

import pytest


@pytest.fixture()
def figures(monkeypatch):
    """Every figure that the report draws, in place of its file."""
    caught = []
    for name in ("bars", "curves", "images", "margins", "scatter"):
        module = importlib.import_module(f"lirpa_multinorm.report.{name}")
        monkeypatch.setattr(module, "save", lambda figure, path: caught.append(figure) or path)
    return caught
