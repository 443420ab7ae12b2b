"""The host's traces counted."""

from tests.tracing.conftest import traces  # noqa: F401  (a fixture)
