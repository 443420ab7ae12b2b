"""Geometric and photometric transforms of images: points, ranges of pixels, and linear forms."""

from .forms import LinearForms
from .parameters import IDENTITY, PARAMETERS
from .pixel_forms import linear_forms
from .pixel_ranges import exact_range, weight_range
from .warp import transformed

__all__ = [
    "IDENTITY",
    "PARAMETERS",
    "LinearForms",
    "exact_range",
    "linear_forms",
    "transformed",
    "weight_range",
]
