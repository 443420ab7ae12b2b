"""Gradient attacks over perturbation sets."""

from .pgd import AttackSettings, attack_regions, margin_loss, maximize, pgd
from .randomness import RowGenerator
from .views import Batched, attack_view, matmul_precision

__all__ = [
    "AttackSettings",
    "Batched",
    "RowGenerator",
    "attack_regions",
    "attack_view",
    "margin_loss",
    "matmul_precision",
    "maximize",
    "pgd",
]
