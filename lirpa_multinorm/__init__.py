"""lirpa-multinorm: sound bounds, certified training and certification for several norms at once, on auto_LiRPA."""

__version__ = "0.1.0"

from .bounds import BoundedModule, margin_matrix
from .perturbations import (PerturbationL1Box, PerturbationL2Box, PerturbationLinf, PerturbationLpBox, Region)

__all__ = ["BoundedModule", "PerturbationL1Box", "PerturbationL2Box", "PerturbationLinf", "PerturbationLpBox",
           "Region", "margin_matrix", "__version__"]
