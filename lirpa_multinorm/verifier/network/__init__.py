"""Piecewise-linear networks, read off their models: affine operators and ReLUs."""

from .affine_operators import batch_norm_scale
from .export import model_graph
from .first_layers import FirstLayer, convolution_options, first_layers
from .graph import ModelGraph, Step, schur_norm
from .minmax import PairedGraph, paired
from .operators import CONVOLUTIONS, EXACT, RESHAPES

__all__ = [
    "CONVOLUTIONS",
    "EXACT",
    "FirstLayer",
    "ModelGraph",
    "PairedGraph",
    "RESHAPES",
    "Step",
    "batch_norm_scale",
    "convolution_options",
    "first_layers",
    "model_graph",
    "paired",
    "schur_norm",
]
