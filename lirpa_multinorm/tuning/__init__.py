"""Tuning: clean against union certified accuracy over the options of a loss, by optuna."""

from .defaults import default_space, space_of
from .front import front_of
from .space import Dimension, parse_dimension
from .study import Tuning, finished_points, train_chosen

__all__ = [
    "Dimension",
    "Tuning",
    "default_space",
    "finished_points",
    "front_of",
    "parse_dimension",
    "space_of",
    "train_chosen",
]
