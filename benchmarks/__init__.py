"""Benchmarks by configuration: ``python -m benchmarks.run``."""
