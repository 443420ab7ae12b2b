"""Bounds of a network on perturbation sets."""

from .margins import margin_matrix
from .module import BoundedModule

__all__ = ["BoundedModule", "margin_matrix"]
