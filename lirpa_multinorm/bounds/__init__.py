"""Bounds of a network on perturbation sets."""

from .intervals import HiddenBounds
from .margins import margin_matrix
from .module import BoundedModule

__all__ = ["BoundedModule", "HiddenBounds", "margin_matrix"]
