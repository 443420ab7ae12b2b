"""The host's traces counted."""

from __future__ import annotations

import pytest

from lirpa_multinorm import host


@pytest.fixture
def traces(monkeypatch):
    """A list that grows by one with every trace of the host's."""
    made, tracing = [], host.tracing
    monkeypatch.setattr(host, "tracing", lambda: made.append(1) or tracing())
    return made
