"""Bounds of a network on perturbation sets."""

from .margins import margin_matrix
from .module import BoundedModule, HiddenBounds

__all__ = ["BoundedModule", "HiddenBounds", "margin_matrix"]
