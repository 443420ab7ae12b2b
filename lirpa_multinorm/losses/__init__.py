"""Certified training losses.

They train on small regions; only a certificate says what a network withstands.
"""

from .alignment import Alignment, bound_alignment
from .branches import TRAINING_ATTACK, Branch, find_regions
from .margin import margin_cross_entropy, robust_logits
from .multinorm import LossResult, MultiNormLoss
from .registry import LOSSES, accepts, branch_options, build_loss, register_loss
from .regularizers import shi_regularizer
from .taps import Taps

__all__ = [
    "Alignment",
    "Branch",
    "LOSSES",
    "LossResult",
    "MultiNormLoss",
    "TRAINING_ATTACK",
    "Taps",
    "accepts",
    "bound_alignment",
    "branch_options",
    "build_loss",
    "find_regions",
    "margin_cross_entropy",
    "register_loss",
    "robust_logits",
    "shi_regularizer",
]
