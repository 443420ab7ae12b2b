"""The records of an uninterrupted run."""

from __future__ import annotations

import pytest

from tests.certification.recorded_runs import into


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """The file of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    into(folder)
    return folder / "records.jsonl"
