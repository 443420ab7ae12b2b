"""Audit of bounds by attacks, on networks of many shapes and operators."""

from .attack import attacked_range, largest_violation
from .graphs import GRAPHS, INPUT_SHAPE, NUM_OUTPUTS, build_graph
from .operators import OPERATORS, Operator, build_operator
from .outcomes import METHODS, Audit, audit

__all__ = [
    "Audit",
    "GRAPHS",
    "INPUT_SHAPE",
    "METHODS",
    "NUM_OUTPUTS",
    "OPERATORS",
    "Operator",
    "attacked_range",
    "audit",
    "build_graph",
    "build_operator",
    "largest_violation",
]
