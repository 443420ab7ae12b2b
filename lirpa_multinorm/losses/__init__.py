"""Certified training losses.

They train on small regions; only a certificate says what a network withstands.
"""

from .alignment import Alignment, bound_alignment
from .distance import DistanceLoss
from .margin import margin_cross_entropy, robust_logits
from .multinorm import LossResult, MultiNormLoss
from .options import branch_options
from .regions import TRAINING_ATTACK, AnyTerm, find_regions
from .registry import LOSSES, accepts, build_loss, register_loss
from .regularizers import shi_regularizer
from .split_terms import SplitTerm
from .taps import Taps
from .terms import LossTerm

__all__ = [
    "Alignment",
    "AnyTerm",
    "DistanceLoss",
    "LossTerm",
    "SplitTerm",
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
