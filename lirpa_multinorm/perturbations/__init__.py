"""Perturbation sets: what an attacker may do to an input."""

from .convert import as_perturbation, as_perturbations
from .l0 import PerturbationL0
from .lp_box import PerturbationL1Box, PerturbationL2Box, PerturbationLinf, PerturbationLpBox
from .norms import NORMS, Norm, register_norm
from .regions import cure_l2_region, sabr_region, small_ball_region
from .stack import PerturbationStack, Region, take_rows

__all__ = [
    "NORMS",
    "Norm",
    "PerturbationL0",
    "PerturbationL1Box",
    "PerturbationL2Box",
    "PerturbationLinf",
    "PerturbationLpBox",
    "PerturbationStack",
    "Region",
    "as_perturbation",
    "as_perturbations",
    "cure_l2_region",
    "register_norm",
    "sabr_region",
    "small_ball_region",
    "take_rows",
]
