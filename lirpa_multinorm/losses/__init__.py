"""Certified training losses. They train on small regions; only a certificate says what a network withstands."""

from .branches import TRAINING_ATTACK, Branch, find_regions
from .margin import margin_cross_entropy, robust_logits
from .multinorm import LossResult, MultiNormLoss
from .registry import LOSSES, build_loss, register_loss

__all__ = ["Branch", "LOSSES", "LossResult", "MultiNormLoss", "TRAINING_ATTACK", "build_loss", "find_regions",
           "margin_cross_entropy", "register_loss", "robust_logits"]
