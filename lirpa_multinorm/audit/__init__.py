"""Auditing bounds: graphs of many shapes and an attack on what is claimed for them."""

from .attack import largest_violation
from .graphs import GRAPHS, INPUT_SHAPE, NUM_OUTPUTS, build_graph

__all__ = ["GRAPHS", "INPUT_SHAPE", "NUM_OUTPUTS", "build_graph", "largest_violation"]
