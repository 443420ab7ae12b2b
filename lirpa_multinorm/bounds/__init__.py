"""Bounds of a network on perturbation sets."""

from .margins import margin_matrix
from .module import BoundedModule
from .result import Bounds, IntermediateIntervals

__all__ = ["BoundedModule", "Bounds", "IntermediateIntervals", "margin_matrix"]
